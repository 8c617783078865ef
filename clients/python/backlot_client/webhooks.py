"""Proof that a delivery of a webhook comes from Backlot, as Standard Webhooks has it."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any


class InvalidSignature(Exception):
    """A delivery was not signed with the secret, or too long ago."""


def verify_webhook(
    secret: str | Sequence[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance_seconds: float = 300.0,
    now: float | None = None,
) -> dict[str, Any]:
    """Return the CloudEvent of a delivery, given its body byte by byte; raise InvalidSignature.

    Several secrets may be valid while one is replaced. The same event may come again: its `id`
    says so.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        sent_at = int(given["webhook-timestamp"])
        signed = f"{given['webhook-id']}.{sent_at}.".encode() + body
        signatures = given["webhook-signature"].split()
    except (KeyError, ValueError):
        raise InvalidSignature("a header is missing or not readable") from None
    if abs((time.time() if now is None else now) - sent_at) > tolerance_seconds:
        raise InvalidSignature("sent too long ago, or clocks differ")
    secrets = [secret] if isinstance(secret, str) else secret
    expected = [_signature(each, signed) for each in secrets]
    if not any(_same(mine, theirs) for mine in expected for theirs in signatures):
        raise InvalidSignature("signed with another secret")
    event: dict[str, Any] = json.loads(body)
    return event


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def _same(mine: str, theirs: str) -> bool:
    return hmac.compare_digest(mine.encode(), theirs.encode())

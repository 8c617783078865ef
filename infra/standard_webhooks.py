"""Signatures of the Standard Webhooks specification, and the secrets that make them.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

A secret is derived from a key of the installation and a random id: nothing else need be kept, and
nothing that can be lost from a log or an answer.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Iterable
from uuid import UUID

PREFIX = "whsec_"
PURPOSE = b"backlot webhook secret "


def derive_secret(key: bytes, secret_id: UUID) -> bytes:
    """Return the 256 bits of a secret; without the key nobody can tell them from random ones."""
    return hmac.digest(key, PURPOSE + secret_id.bytes, "sha256")


def show_secret(secret: bytes) -> str:
    """Return a secret as the libraries of receivers take it."""
    return PREFIX + b64encode(secret).decode()


def signed_headers(
    secrets: Iterable[bytes], message_id: str, seconds: int, body: bytes
) -> dict[str, str]:
    """Return the headers of a delivery at a time (Unix seconds), signed by each of the secrets."""
    signed = b"%b.%d.%b" % (message_id.encode(), seconds, body)
    digests = (hmac.digest(secret, signed, "sha256") for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": " ".join(f"v1,{b64encode(each).decode()}" for each in digests),
    }

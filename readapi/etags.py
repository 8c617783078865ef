"""Answers that a client need not be sent again: entity tags and `If-None-Match` (RFC 9110)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import Annotated

from fastapi import Header, Response

from infra.contract import Wire
from infra.http import wire

TAG = re.compile(r'(?:W/)?("[^"]*")')
IfNoneMatch = Annotated[
    str | None,
    Header(
        alias="If-None-Match",
        description="An `ETag` received before: the answer is 304 while nothing is new.",
    ),
]


def weak_tag(parts: Iterable[Wire]) -> str:
    """The tag of an answer that stands for these parts, whatever else it says."""
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part.to_json() + b"\n")
    return f'W/"{digest.hexdigest()}"'


def known(tag: str, if_none_match: str | None) -> bool:
    """Whether the client has it, by the weak comparison."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    return tag.removeprefix("W/") in TAG.findall(if_none_match)


def tagged(body: Wire, tag: str, if_none_match: str | None) -> Response:
    """The answer, or 304 without a body. It is asked for again each time, and is the caller's."""
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Authorization"}
    if known(tag, if_none_match):
        return Response(status_code=304, headers=headers)
    return wire(body, headers=headers)

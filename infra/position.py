"""The opaque token behind `Backlot-Position`: how far in the event log a client has seen."""

from __future__ import annotations

import base64
import binascii

APPLICATION = "backlot"


class InvalidPosition(ValueError):
    """The token was not made by this store."""


def encode_position(position: int) -> str:
    """The token for a position (from 0); it names its store, so that shards can be added."""
    return base64.urlsafe_b64encode(f"{APPLICATION}:{position}".encode()).decode().rstrip("=")


def decode_position(token: str) -> int:
    """The position in a token; raises InvalidPosition for anything else."""
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        name, _, number = (
            base64.b64decode(padded, altchars=b"-_", validate=True).decode().partition(":")
        )
    except (binascii.Error, UnicodeError) as error:
        raise InvalidPosition(
            "The position token is unreadable; send back one as received."
        ) from error
    if name != APPLICATION or not (number.isascii() and number.isdigit()) or len(number) > 18:
        raise InvalidPosition(
            "The position token is not one of this store; send back one as received."
        )
    return int(number)

"""The opaque token behind `Backlot-Position`: how far in the history a client has seen."""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

APPLICATION = "backlot"


class InvalidPosition(ValueError):
    """The token was not made by this store."""


class Position(NamedTuple):
    """How much was recorded, in both orders: that of the event log, and that of the telemetry."""

    events: int = 0
    telemetry: int = 0

    def covers(self, other: Position) -> bool:
        """Return whether all that the other includes is included here."""
        return self.events >= other.events and self.telemetry >= other.telemetry


BEGINNING = Position()


def encode_position(events: int, telemetry: int = 0) -> str:
    """Return the token for a position (from 0); it names its store, so that shards can be added."""
    numbers = f"{events}:{telemetry}" if telemetry else f"{events}"
    return base64.urlsafe_b64encode(f"{APPLICATION}:{numbers}".encode()).decode().rstrip("=")


def decode_position(token: str) -> Position:
    """Return the position in a token; raise InvalidPosition for anything else."""
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        name, *numbers = base64.b64decode(padded, altchars=b"-_", validate=True).decode().split(":")
    except (binascii.Error, UnicodeError) as error:
        raise InvalidPosition(
            "The position token is unreadable; send back one as received."
        ) from error
    if name != APPLICATION or len(numbers) not in (1, 2) or not all(map(_is_number, numbers)):
        raise InvalidPosition(
            "The position token is not one of this store; send back one as received."
        )
    return Position(*map(int, numbers))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18

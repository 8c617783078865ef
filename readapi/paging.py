"""Pages of lists that stay in order while they grow: a cursor is the position of the last item."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeVar

from fastapi import Query

from engine.log import END_OF_LOG
from infra.http.shapes import Wire

T = TypeVar("T")

Cursor = Annotated[
    str | None,
    Query(description="`nextCursor` of the page before; none: the first page.", max_length=100),
]
Limit = Annotated[int, Query(description="How many items at most.", ge=1, le=100)]
DEFAULT_LIMIT = 20


class Page(Wire, Generic[T]):
    """A part of a list; `next_cursor` asks for the following one and is missing on the last."""

    items: list[T]
    next_cursor: str | None = None


def storable(text: str | None) -> str | None:
    """Return the text; raise ValueError for the NUL character, which PostgreSQL does not store."""
    if text is not None and "\x00" in text:
        raise ValueError("can't contain the NUL character")
    return text


class InvalidCursor(ValueError):
    """The cursor was not given out for this list."""

    def __init__(self) -> None:
        super().__init__("`cursor` is not one of this list; send back `nextCursor` as received.")


def encode_cursor(kind: str, position: int) -> str:
    """Return an opaque name of a place in a list of one kind."""
    return base64.urlsafe_b64encode(f"{kind}:{position}".encode()).decode().rstrip("=")


def decode_cursor(kind: str, cursor: str | None) -> int:
    """Return the position behind which the page begins; raise InvalidCursor.

    Without a cursor it begins with the newest.
    """
    if cursor is None:
        return END_OF_LOG
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        decoded = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, UnicodeError) as error:
        raise InvalidCursor from error
    name, _, number = decoded.partition(":")
    if name != kind or not number.isdigit() or len(number) > 18:
        raise InvalidCursor
    return int(number)


def cut(
    kind: str, rows: Sequence[T], limit: int, position: Callable[[T], int]
) -> tuple[Sequence[T], str | None]:
    """Return the rows of a page, and the cursor of the next page if there is one.

    `rows` were read with `limit + 1`, so that the last page knows that it is the last.
    """
    if len(rows) <= limit:
        return rows, None
    shown = rows[:limit]
    return shown, encode_cursor(kind, position(shown[-1]))

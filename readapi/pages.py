"""Pages: parts of lists that stay in order while they grow.

The cursor of a page is the position of its last item.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

from fastapi import Depends, Header, Query
from starlette.types import Scope

from engine.log import END_OF_LOG
from infra.http.requests import plain_query
from infra.http.shapes import Wire

T = TypeVar("T")

DEFAULT_LIMIT, MOST_LIMIT, MOST_CURSOR = 20, 100, 100

PLAIN_LIMIT = re.compile("[1-9][0-9]?|100", re.ASCII)

IfNoneMatch = Annotated[
    str | None,
    Header(
        alias="If-None-Match",
        description="An `ETag` received before: the answer is 304 while nothing is new.",
    ),
]
"""Documents what `conditional` reads."""

Cursor = Annotated[
    str | None,
    Query(
        description="`nextCursor` of the page before; none: the first page.", max_length=MOST_CURSOR
    ),
]

Limit = Annotated[int, Query(description="How many items at most.", ge=1, le=MOST_LIMIT)]


class Page(Wire, Generic[T]):
    """A part of a list; `next_cursor` asks for the following one and is missing on the last."""

    items: list[T]
    next_cursor: str | None = None

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """Return what a page of these is called in the OpenAPI document: `VideoPage`."""
        return f"{params[0].__name__}{cls.__name__}"


def page_of(items: Iterable[bytes], next_cursor: str | None) -> bytes:
    """Return a page as JSON, given its items as JSON."""
    following = "" if next_cursor is None else f',"nextCursor":"{next_cursor}"'
    return b'{"items":[%b]%b}' % (b",".join(items), following.encode())


def storable(text: str | None) -> str | None:
    """Return the text; raise ValueError for the NUL character, which PostgreSQL does not store."""
    if text is not None and "\x00" in text:
        raise ValueError("can't contain the NUL character")
    return text


class InvalidCursor(ValueError):
    """The cursor was not given out for this list."""

    def __init__(self) -> None:
        super().__init__("`cursor` is not one of this list; send back `nextCursor` as received.")


def encode_cursor(kind: str, *place: int) -> str:
    """Return an opaque name of a place in a list of one kind."""
    name = ":".join((kind, *map(str, place)))
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def decode_cursor(kind: str, cursor: str | None, first: int = END_OF_LOG) -> int:
    """Return the position behind which the page begins; raise InvalidCursor.

    Without a cursor it is `first`, which is the newest.
    """
    return decode_place(kind, cursor, first)[0]


def decode_place(kind: str, cursor: str | None, *first: int) -> tuple[int, ...]:
    """Return the same of a list in which it takes several numbers to tell a place."""
    if cursor is None:
        return first
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        decoded = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, UnicodeError) as error:
        raise InvalidCursor from error
    name, *numbers = decoded.split(":")
    if name != kind or len(numbers) != len(first):
        raise InvalidCursor
    if any(not each.isdigit() or len(each) > 18 for each in numbers):
        raise InvalidCursor
    return tuple(map(int, numbers))


class PageRequest(NamedTuple):
    """Which page of a list a client asks for: what comes behind a cursor, so many items at most."""

    cursor: str | None
    limit: int

    @property
    def rows(self) -> int:
        """How many rows to read: one more, so that the last page knows that it is the last."""
        return self.limit + 1

    async def read(
        self,
        kind: str,
        read: Callable[[int, int], Awaitable[Sequence[T]]],
        position: Callable[[T], int],
        first: int = END_OF_LOG,
    ) -> tuple[Sequence[T], str | None]:
        """Return the rows of the page, and the cursor of the next page if there is one.

        `read` gets the position behind which the page begins (`first` is that of the first page)
        and a number of rows. Raise InvalidCursor.
        """
        return self.cut(
            kind, await read(decode_cursor(kind, self.cursor, first), self.rows), position
        )

    def cut(
        self, kind: str, rows: Sequence[T], position: Callable[[T], int]
    ) -> tuple[Sequence[T], str | None]:
        """Return the rows of the page, and the cursor of the next page if there is one."""
        if len(rows) <= self.limit:
            return rows, None
        shown = rows[: self.limit]
        return shown, encode_cursor(kind, position(shown[-1]))


def plain_page(scope: Scope) -> PageRequest | None:
    """Return the page that a query asks for which says nothing else; None for any other query."""
    given = plain_query(scope)
    if given is None:
        return None
    limit, cursor = given.pop("limit", str(DEFAULT_LIMIT)), given.pop("cursor", None)
    if given or len(cursor or "") > MOST_CURSOR or not PLAIN_LIMIT.fullmatch(limit):
        return None
    return PageRequest(cursor, int(limit))


async def _page_request(cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT) -> PageRequest:
    return PageRequest(cursor, limit)


Paged = Annotated[PageRequest, Depends(_page_request)]

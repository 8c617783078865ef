"""Lists, item by item."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Protocol, TypeVar

from backlot_client.generated.types import UNSET, Unset

T = TypeVar("T")


class Page(Protocol[T]):
    """A page of a list, as generated; the last one has no cursor."""

    items: list[T]
    next_cursor: str | Unset


def all_items(page_at: Callable[[str | Unset], Page[T]]) -> Iterator[T]:
    """Return the items of all pages; each page is asked for when the one before is used up."""
    cursor: str | Unset = UNSET
    while True:
        page = page_at(cursor)
        yield from page.items
        if isinstance(page.next_cursor, Unset):
            return
        cursor = page.next_cursor


async def all_items_async(
    page_at: Callable[[str | Unset], Awaitable[Page[T]]],
) -> AsyncGenerator[T, None]:
    """Return the same to an event loop."""
    cursor: str | Unset = UNSET
    while True:
        page = await page_at(cursor)
        for item in page.items:
            yield item
        if isinstance(page.next_cursor, Unset):
            return
        cursor = page.next_cursor

"""What is published, for services: page after page, each with the position behind it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from backlot_client.generated import AuthenticatedClient
from backlot_client.generated.api.services import list_published_events
from backlot_client.generated.models import ListPublishedEventsCloudEvent
from backlot_client.generated.types import UNSET, Unset
from backlot_client.problem import answered

LONGEST_WAIT_SECONDS = 30


@dataclass(frozen=True)
class PublishedPage:
    """Events, and the position to go on from; store both in one transaction.

    There may be no events: others were passed over, and the position has moved.
    """

    events: list[ListPublishedEventsCloudEvent]
    position: str


def published_pages(
    api: AuthenticatedClient, after: str | None, topics: Sequence[str], limit: int, wait: int
) -> Iterator[PublishedPage]:
    """Return pages for ever; with `wait` 0, until there is nothing more."""
    call = partial(list_published_events.sync_detailed, client=api, limit=limit, wait=wait)
    while True:
        response = call(after=_given(after), topics=_given(",".join(topics)))
        page = PublishedPage(answered(response), response.headers["Backlot-Position"])
        if page.events or page.position != after:
            yield page
        elif not wait:
            return
        after = page.position


async def published_pages_async(
    api: AuthenticatedClient, after: str | None, topics: Sequence[str], limit: int, wait: int
) -> AsyncGenerator[PublishedPage, None]:
    """Return the same to an event loop."""
    call = partial(list_published_events.asyncio_detailed, client=api, limit=limit, wait=wait)
    while True:
        response = await call(after=_given(after), topics=_given(",".join(topics)))
        page = PublishedPage(answered(response), response.headers["Backlot-Position"])
        if page.events or page.position != after:
            yield page
        elif not wait:
            return
        after = page.position


def _given(value: str | None) -> str | Unset:
    return value or UNSET

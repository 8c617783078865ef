"""What is published, for services: page after page, each with the position behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from backlot_client.generated import AuthenticatedClient
from backlot_client.generated.api.services import list_published_events
from backlot_client.generated.models import ListPublishedEventsCloudEvent
from backlot_client.generated.types import UNSET
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
    while True:
        response = list_published_events.sync_detailed(
            client=api,
            after=UNSET if after is None else after,
            topics=",".join(topics) or UNSET,
            limit=limit,
            wait=wait,
        )
        events, position = answered(response), response.headers["Backlot-Position"]
        if events or position != after:
            yield PublishedPage(events, position)
        if not wait and not events and position == after:
            return
        after = position

"""Uploads as a source of the analytics: read from the event log, also where there is Kafka."""

from __future__ import annotations

from projections.analytics.uploads import TOPICS, message, told
from projections.analytics.videos import WRITES
from workers.following import EventFeed

__all__ = ["TOPICS", "feed", "told"]


def feed(batch_events: int) -> EventFeed:
    """What happens to uploads, for the analytics alone."""
    return EventFeed(WRITES, batch_events=batch_events, tell=message)

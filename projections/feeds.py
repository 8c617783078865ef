"""What is published, straight from where it is recorded: the log and the telemetry, by position.

Both are read in the order in which they become visible, so that a position that was passed is
complete, and a follower needs to store nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import orjson
from eventsourcing.persistence import MapperDeserialisationError
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.json import set_json_loads

from domain.model import Aggregate
from engine.log import HEAD as EVENTS_HEAD
from engine.log import Log
from engine.telemetry import HEAD as TELEMETRY_HEAD
from engine.telemetry import TelemetryEvent
from projections.integration_events import (
    TELEMETRY,
    Message,
    NotPublishable,
    events_for,
    from_event,
    from_telemetry,
)

READ_TELEMETRY = b"""
SELECT seq, event_id, topic, video_id, user_id, happened_at, details, correlation_id
FROM public.backlot_telemetry WHERE seq > %b AND seq <= %b AND topic = ANY (%b::text[])
ORDER BY seq LIMIT %b
"""


class Unpublishable(NamedTuple):
    """Something recorded that makes no message, with what is wrong with it."""

    topic: str
    position: int
    error: str


@dataclass(frozen=True, slots=True)
class Stretch:
    """What lies behind a position, up to `until`; `head` is the end as it was seen before."""

    messages: Sequence[Message]
    unreadable: Sequence[Unpublishable]
    until: int
    head: int

    @property
    def age_seconds(self) -> float:
        """Return how long ago the first message was recorded; 0 without any."""
        if not self.messages:
            return 0.0
        return max(0.0, (datetime.now(UTC) - self.messages[0].at).total_seconds())


class EventFeed:
    """Some events of the log, as the messages that `message_of` makes of them."""

    name = "events"

    def __init__(
        self,
        events: Iterable[type[Aggregate.Event]],
        *,
        batch_events: int,
        message_of: Callable[[int, Aggregate.Event], Message] = from_event,
    ) -> None:
        self._log = Log(events, batch_events=batch_events)
        self._message_of = message_of

    def read(self, conn: Connection[TupleRow], after: int) -> Stretch:
        """Return the next stretch, bounded in events and bytes; an empty one at the end."""
        head = _head(conn, EVENTS_HEAD)
        if head <= after:
            return Stretch((), (), after, head)
        window = self._log.read(conn, after, head)
        messages: list[Message] = []
        unreadable: list[Unpublishable] = []
        for stored in window.events:
            try:
                messages.append(self._message_of(*stored.decode()))
            except (MapperDeserialisationError, NotPublishable) as error:
                unreadable.append(Unpublishable(stored.topic, stored.position, str(error)))
        return Stretch(messages, unreadable, window.until, head)


class TelemetryFeed:
    """What viewers do without deciding, of some of the topics."""

    name = "telemetry"

    def __init__(self, topics: Collection[str], *, batch_events: int) -> None:
        self._topics = sorted(TELEMETRY.intersection(topics))
        self._batch_events = batch_events

    def read(self, conn: Connection[TupleRow], after: int) -> Stretch:
        """Return the next stretch, bounded in events; an empty one at the end."""
        head = _head(conn, TELEMETRY_HEAD)
        if head <= after:
            return Stretch((), (), after, head)
        limits = (after, head, self._topics, self._batch_events)
        with conn.cursor(binary=True) as cursor:
            set_json_loads(orjson.loads, cursor)
            rows = cursor.execute(READ_TELEMETRY, limits, prepare=True).fetchall()
        messages: list[Message] = []
        unreadable: list[Unpublishable] = []
        for seq, *fields in rows:
            event = TelemetryEvent(*fields)
            try:
                messages.append(from_telemetry(seq, event))
            except NotPublishable as error:
                unreadable.append(Unpublishable(event.topic, seq, str(error)))
        until = rows[-1][0] if len(rows) >= self._batch_events else head
        return Stretch(messages, unreadable, until, head)


def _head(conn: Connection[TupleRow], query: bytes) -> int:
    row = conn.execute(query, prepare=True).fetchone()
    return int(row[0]) if row else 0


Feed = EventFeed | TelemetryFeed


def feeds(topics: Collection[str], *, batch_events: int) -> list[Feed]:
    """Return what has to be followed for all these topics."""
    found: list[Feed] = []
    if events := events_for(topics):
        found.append(EventFeed(events, batch_events=batch_events))
    if TELEMETRY.intersection(topics):
        found.append(TelemetryFeed(topics, batch_events=batch_events))
    return found

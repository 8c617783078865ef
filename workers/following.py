"""What was recorded as messages, stretch by stretch: from the event log and from the telemetry.

Both are read in the order in which they become visible, so that a position that was passed is
complete, and who follows needs to keep nothing but it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import orjson
from eventsourcing.persistence import MapperDeserialisationError
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.json import set_json_loads

from domain.model import Aggregate
from infra.codec import EventMapper
from infra.event_store import EVENTS
from infra.integration import Message, NotPublishable, events_for, from_event, from_telemetry
from infra.integration.topics import TELEMETRY
from infra.telemetry import TelemetryEvent
from projections.log import Log

EVENTS_HEAD = f"SELECT coalesce(max(notification_id), 0) FROM {EVENTS}".encode()
TELEMETRY_HEAD = b"SELECT coalesce(max(seq), 0) FROM public.backlot_telemetry"
READ_TELEMETRY = b"""
SELECT seq, event_id, topic, video_id, user_id, happened_at, details, correlation_id
FROM public.backlot_telemetry WHERE seq > %b AND seq <= %b AND topic = ANY (%b::text[])
ORDER BY seq LIMIT %b
"""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something recorded that makes no message, with what is wrong with it."""

    topic: str
    position: int
    error: str


@dataclass(frozen=True, slots=True)
class Stretch:
    """What lies behind a position, up to `until`; `head` is the end as it was seen before."""

    messages: Sequence[Message]
    unreadable: Sequence[Unreadable]
    until: int
    head: int

    @property
    def oldest(self) -> datetime | None:
        """When the first of it was recorded."""
        return self.messages[0].at if self.messages else None


class Feed(Protocol):
    """Something recorded in order, told as messages."""

    name: str

    def read(self, conn: Connection[TupleRow], after: int) -> Stretch:
        """The next stretch, bounded in events and bytes; empty at the end."""


class EventFeed:
    """Some events of the log, told as they are published or as `tell` does."""

    name = "events"

    def __init__(
        self,
        events: Iterable[type[Aggregate.Event]],
        *,
        mapper: EventMapper,
        batch_events: int,
        tell: Callable[[int, Aggregate.Event], Message] = from_event,
    ) -> None:
        self._log = Log(events, mapper=mapper, batch_events=batch_events)
        self._tell = tell

    def read(self, conn: Connection[TupleRow], after: int) -> Stretch:
        head = _head(conn, EVENTS_HEAD)
        if head <= after:
            return Stretch((), (), after, head)
        window = self._log.read(conn, after, head)
        messages: list[Message] = []
        unreadable: list[Unreadable] = []
        for stored in window.events:
            try:
                messages.append(self._tell(*self._log.decode(stored)))
            except (MapperDeserialisationError, NotPublishable) as error:
                unreadable.append(Unreadable(stored.topic, stored.position, str(error)))
        return Stretch(messages, unreadable, window.until, head)


class TelemetryFeed:
    """What viewers do beside deciding, of some of the topics."""

    name = "telemetry"

    def __init__(self, topics: Collection[str], *, batch_events: int) -> None:
        self._topics = sorted(TELEMETRY.intersection(topics))
        self._batch_events = batch_events

    def read(self, conn: Connection[TupleRow], after: int) -> Stretch:
        head = _head(conn, TELEMETRY_HEAD)
        if head <= after:
            return Stretch((), (), after, head)
        limits = (after, head, self._topics, self._batch_events)
        with conn.cursor(binary=True) as cursor:
            set_json_loads(orjson.loads, cursor)
            rows = cursor.execute(READ_TELEMETRY, limits, prepare=True).fetchall()
        messages: list[Message] = []
        unreadable: list[Unreadable] = []
        for seq, *fields in rows:
            event = TelemetryEvent(*fields)
            try:
                messages.append(from_telemetry(seq, event))
            except NotPublishable as error:
                unreadable.append(Unreadable(event.topic, seq, str(error)))
        until = rows[-1][0] if len(rows) >= self._batch_events else head
        return Stretch(messages, unreadable, until, head)


def feeds(topics: Collection[str], *, mapper: EventMapper, batch_events: int) -> list[Feed]:
    """What has to be followed for all these topics."""
    found: list[Feed] = []
    if events := events_for(topics):
        found.append(EventFeed(events, mapper=mapper, batch_events=batch_events))
    if TELEMETRY.intersection(topics):
        found.append(TelemetryFeed(topics, batch_events=batch_events))
    return found


def _head(conn: Connection[TupleRow], query: bytes) -> int:
    row = conn.execute(query, prepare=True).fetchone()
    return int(row[0]) if row else 0

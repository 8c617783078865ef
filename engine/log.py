"""Reads the event log in order; no reader can skip a position.

Positions are given without gaps and become visible in their order, so whatever lies at or below a
head that was seen is complete.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from eventsourcing.persistence import MapperDeserialisationError
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.model import Aggregate
from engine.codec import MAPPER, EventMapper, topics_of
from engine.event_store import EVENTS
from engine.projection import Recorded

# Above every position, which are bigint.
END_OF_LOG = 2**63 - 1
WINDOW_BATCHES = 10
MAX_WINDOW_BYTES = 16 * 1024 * 1024

HEAD = f"SELECT coalesce(max(notification_id), 0) FROM {EVENTS}".encode()

READ = f"""
SELECT notification_id, originator_id, originator_version, topic, state FROM (
    SELECT notification_id, originator_id, originator_version, topic, state,
           sum(octet_length(state)) OVER (ORDER BY notification_id) AS bytes
    FROM {EVENTS}
    WHERE notification_id > %b AND notification_id <= %b AND topic = ANY (%b::text[])
    ORDER BY notification_id
    LIMIT %b) AS e
WHERE bytes - octet_length(state) < %b
""".encode()
# Ids of streams are random or hashes, so that their last byte spreads them evenly.
READ_PART = READ.replace(
    b"ORDER BY notification_id\n",
    b"AND get_byte(uuid_send(originator_id), 15) %% %b = %b ORDER BY notification_id\n",
)

READ_ONE = f"""
SELECT notification_id, originator_id, originator_version, topic, state
FROM {EVENTS} WHERE notification_id = %s
""".encode()


class Stored(NamedTuple):
    """An event as it lies in the log."""

    position: int
    stream_id: UUID
    version: int
    topic: str
    state: bytes


class StreamShare(NamedTuple):
    """One of `of` parts of all streams, by number (from 0): processes share the log by them."""

    number: int
    of: int


@dataclass(frozen=True, slots=True)
class LogWindow:
    """The wanted events of a stretch of the log, which ends with the position `until`."""

    events: list[Stored]
    until: int


class Log:
    """The log as one projection sees it: only its topics, a bounded window at a time."""

    def __init__(
        self,
        wanted: Iterable[type[Aggregate.Event]],
        *,
        mapper: EventMapper = MAPPER,
        batch_events: int,
        part: StreamShare | None = None,
    ) -> None:
        self._part = part
        self._topics = [topic for event in wanted for topic in topics_of(event)]
        self._mapper = mapper
        self._batch_events = batch_events

    def read(self, conn: Connection[TupleRow], after: int, head: int) -> LogWindow:
        """Return the next wanted events, at most `batch_events` and about 16 MiB of them.

        The window reaches at most ten batches far, so that no read takes long however rare the
        wanted events are.
        """
        until = min(head, after + WINDOW_BATCHES * self._batch_events)
        part = (self._part.of, self._part.number) if self._part else ()
        limits = (after, until, self._topics, *part, self._batch_events, MAX_WINDOW_BYTES)
        with conn.cursor(binary=True) as cursor:
            read = READ_PART if self._part else READ
            rows = cursor.execute(read, limits, prepare=True).fetchall()
        events = [Stored(*row) for row in rows]
        cut = len(events) >= self._batch_events
        cut |= sum(len(event.state) for event in events) >= MAX_WINDOW_BYTES
        return LogWindow(events, events[-1].position if cut else until)

    def decode(self, stored: Stored) -> Recorded:
        """Return the event in its newest shape; raise MapperDeserialisationError."""
        position, stream_id, version, topic, state = stored
        return Recorded(position, self._mapper.decode(stream_id, version, topic, state))

    def recorded_at(self, conn: Connection[TupleRow], position: int) -> datetime | None:
        """When the event at a position was recorded; None when it can't be read."""
        with conn.cursor(binary=True) as cursor:
            row = cursor.execute(READ_ONE, (position,)).fetchone()
        return recorded_at(Stored(*row), self._mapper) if row else None


def recorded_at(stored: Stored, mapper: EventMapper = MAPPER) -> datetime | None:
    """When a stored event was recorded; None when it can't be read."""
    try:
        return mapper.decode(*stored[1:]).timestamp
    except MapperDeserialisationError:
        return None

"""The event log: events as compact JSON, upcast when they are read, and the log read in order.

Positions are given without gaps and become visible in their order, so whatever lies at or below a
head that was seen is complete: no reader can skip a position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from datetime import datetime
from functools import cache
from hashlib import sha1
from types import UnionType
from typing import Any, NamedTuple, Union, cast, get_args, get_origin, get_type_hints
from uuid import UUID

import orjson
from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import (
    JSONTranscoder,
    Mapper,
    MapperDeserialisationError,
    StoredEvent,
)
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.model import EVENTS as EVENT_CLASSES
from domain.model import Aggregate, Upcast
from engine.event_store import EVENTS

COLUMNS = frozenset(("originator_id", "originator_version"))
FROM_JSON: dict[type, Callable[[str], Any]] = {UUID: UUID, datetime: datetime.fromisoformat}

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


class EventShape(NamedTuple):
    """How to make an event of one topic: its class, its upcast, its fields, those to convert.

    `later` are the fields that it got under the same topic, with what stands for them in events
    that were stored before.
    """

    event: type[Aggregate.Event]
    upcast: Upcast | None
    fields: frozenset[str]
    later: dict[str, Any]
    conversions: tuple[tuple[str, Callable[[str], Any]], ...]


class EventMapper(Mapper[UUID]):
    """The library's mapper for events that an aggregate declares; knows each topic, old and new.

    Raise MapperDeserialisationError for a topic that no imported module declares, and for a
    payload that does not fit its event.
    """

    def __init__(self) -> None:
        super().__init__(JSONTranscoder())

    def to_stored_event(self, domain_event: DomainEventProtocol[UUID]) -> StoredEvent:
        payload = dict(vars(domain_event))
        stream, version = payload.pop("originator_id"), payload.pop("originator_version")
        topic = cast("Aggregate.Event", domain_event).TOPIC
        return StoredEvent(stream, version, topic, orjson.dumps(payload))

    def to_domain_event(self, stored_event: StoredEvent) -> DomainEventProtocol[UUID]:
        stream, version = cast("UUID", stored_event.originator_id), stored_event.originator_version
        event = self.decode(stream, version, stored_event.topic, stored_event.state)
        return cast("DomainEventProtocol[UUID]", event)

    def decode(self, stream_id: UUID, version: int, topic: str, state: bytes) -> Aggregate.Event:
        """Return the event that these four columns hold, in its newest shape."""
        try:
            shape = _shape(topic)
            payload = orjson.loads(state)
            if shape.upcast is not None:
                shape.upcast(payload)
            if shape.later:
                payload = {**shape.later, **payload}
            if not payload.keys() >= shape.fields:
                raise KeyError(*sorted(shape.fields - payload.keys()))
            for name, convert in shape.conversions:
                if payload[name] is not None:
                    payload[name] = convert(payload[name])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MapperDeserialisationError(
                f"Can't read version {version} of stream {stream_id} (topic {topic}): {error!r}"
            ) from error
        payload["originator_id"] = stream_id
        payload["originator_version"] = version
        event = object.__new__(shape.event)
        object.__setattr__(event, "__dict__", payload)
        return event

    @property
    def topics(self) -> frozenset[str]:
        """Every topic that this mapper can read."""
        return frozenset(EVENT_CLASSES)


def event_id(stream_id: UUID, version: int) -> UUID:
    """Return the id of an event outside the log: `uuid5(stream id, version)`, always the same."""
    digest = sha1(stream_id.bytes + b"%d" % version, usedforsecurity=False).digest()
    return UUID(bytes=digest[:16], version=5)


def topics_of(event: type[Aggregate.Event]) -> list[str]:
    """Return every topic under which an event may be stored: the present one and the old ones."""
    return [event.TOPIC, *event.UPCASTS]


def payload_fields(event: type[Aggregate.Event]) -> frozenset[str]:
    """Return the fields of an event's payload: stream and version have columns of their own."""
    return frozenset(field.name for field in fields(event)) - COLUMNS


def later_fields(event: type[Aggregate.Event]) -> dict[str, Any]:
    """Return the fields that events of the same topic may lack, and what they stand for then."""
    return {field.name: field.default for field in fields(event) if field.default is not MISSING}


@cache
def _shape(topic: str) -> EventShape:
    """Return how to make an event of this topic; raise KeyError where none is declared."""
    event = EVENT_CLASSES[topic]
    upcast, conversions = event.UPCASTS.get(topic), tuple(_conversions(event))
    return EventShape(event, upcast, payload_fields(event), later_fields(event), conversions)


def _conversions(event: type[Aggregate.Event]) -> Iterable[tuple[str, Callable[[str], Any]]]:
    hints = get_type_hints(event)
    for name in payload_fields(event):
        annotation = hints[name]
        optional = get_origin(annotation) in (Union, UnionType)
        for candidate in get_args(annotation) if optional else (annotation,):
            if candidate in FROM_JSON:
                yield name, FROM_JSON[candidate]


MAPPER = EventMapper()
"""Reads and writes every event of this program; it has no state."""


class Stored(NamedTuple):
    """An event as it lies in the log."""

    position: int
    stream_id: UUID
    version: int
    topic: str
    state: bytes

    def decode(self) -> Recorded:
        """Return the event in its newest shape; raise MapperDeserialisationError."""
        position, stream_id, version, topic, state = self
        return Recorded(position, MAPPER.decode(stream_id, version, topic, state))


class Recorded(NamedTuple):
    """An event and its position in the log (from 1)."""

    position: int
    event: Aggregate.Event


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
        batch_events: int,
        part: StreamShare | None = None,
    ) -> None:
        self._part = part
        self._topics = [topic for event in wanted for topic in topics_of(event)]
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

    def recorded_at(self, conn: Connection[TupleRow], position: int) -> datetime | None:
        """Return when the event at a position was recorded; None when it can't be read."""
        with conn.cursor(binary=True) as cursor:
            row = cursor.execute(READ_ONE, (position,)).fetchone()
        return recorded_at(Stored(*row)) if row else None


def recorded_at(stored: Stored) -> datetime | None:
    """Return when a stored event was recorded; None when it can't be read."""
    try:
        return MAPPER.decode(*stored[1:]).timestamp
    except MapperDeserialisationError:
        return None

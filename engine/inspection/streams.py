"""Events and streams as an auditor sees them, readable or not, and the state that they lead to."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import orjson
from eventsourcing.persistence import MapperDeserialisationError
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.model import Aggregate
from engine.event_store import EVENTS
from engine.log import MAPPER, Stored

VERSION = re.compile(r"\.v[0-9]+$")
META = ("timestamp", "actor", "correlation_id", "causation_id")
CHUNK = 500
BEFORE_ALL = -(2**63)

READ_STREAM = f"""
SELECT notification_id, originator_id, originator_version, topic, state
FROM {EVENTS} WHERE originator_id = %s AND originator_version > %s
ORDER BY originator_version LIMIT %s
""".encode()

Values = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored event with what could be made of it.

    `payload` is the JSON object as it was recorded, without what the other fields hold; `event` is
    the event in its newest shape, or None with the `error` of reading it.
    """

    stored: Stored
    payload: dict[str, object] | None
    recorded_at: datetime | None
    actor: str | None
    correlation_id: str | None
    causation_id: str | None
    event: Aggregate.Event | None
    error: MapperDeserialisationError | None


class FieldChange(NamedTuple):
    """A field of an aggregate before and after an event, as JSON values."""

    before: object
    after: object


@dataclass(frozen=True, slots=True)
class StreamStep:
    """An event and what it changed; `changes` is None from the first unreadable event on."""

    entry: Entry
    changes: Mapping[str, FieldChange] | None


class ForeignEvent(Exception):
    """A stream holds an event of another kind of aggregate."""


def type_of(topic: str) -> str:
    """Return a topic without its version: `comment.posted` of `comment.posted.v1`."""
    return VERSION.sub("", topic)


def aggregate_of(topic: str) -> str:
    """Return the kind of aggregate that a topic belongs to: `comment` of `comment.posted.v1`."""
    return topic.partition(".")[0]


def read_entry(stored: Stored) -> Entry:
    """Make what can be made of a stored event; never fails."""
    content = _object(stored.state)
    values = content or {}
    return Entry(
        stored,
        None if content is None else {k: v for k, v in content.items() if k not in META},
        _time(values.get("timestamp")),
        _text(values.get("actor")),
        _text(values.get("correlation_id")),
        _text(values.get("causation_id")),
        *_decode(stored),
    )


def _decode(
    stored: Stored,
) -> tuple[Aggregate.Event | None, MapperDeserialisationError | None]:
    try:
        return MAPPER.decode(*stored[1:]), None
    except MapperDeserialisationError as error:
        return None, error


def _object(state: bytes) -> dict[str, object] | None:
    try:
        content = orjson.loads(state)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _time(value: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return time if time is not None and time.tzinfo is not None else None


class Fold:
    """An aggregate as it comes about; its events are given in the order of their versions."""

    def __init__(self, stream_id: UUID) -> None:
        self.stream_id = stream_id
        self.kind = ""
        self.aggregate: Aggregate | None = None
        self.created_on: datetime | None = None
        self.fields: Values = {}
        # Why the aggregate is not known beyond its `version`.
        self.error: Exception | None = None

    @property
    def version(self) -> int:
        """The last version that could be applied."""
        return self.aggregate.version if self.aggregate is not None else 0

    def add(self, entry: Entry) -> StreamStep:
        """Apply the next event, unless one before it could not be."""
        self.kind = self.kind or aggregate_of(entry.stored.topic or "")
        if self.error is None:
            self.error = entry.error
        if self.error is not None or entry.event is None:
            return StreamStep(entry, None)
        before = self.fields
        try:
            self._apply(entry.event)
        # Whatever an event of another aggregate, or a gap in the versions, leads to.
        except Exception as error:  # noqa: BLE001
            self.error = error
            return StreamStep(entry, None)
        return StreamStep(entry, _changes(before, self.fields))

    def _apply(self, event: Aggregate.Event) -> None:
        if self.aggregate is None:
            self.aggregate = event.AGGREGATE.blank(self.stream_id)
            self.fields = fields(self.aggregate)
            self.created_on = event.timestamp
        if not isinstance(self.aggregate, event.AGGREGATE):
            raise ForeignEvent(f"{event.TOPIC} is no event of this stream's {self.kind}.")
        event.mutate(self.aggregate)
        self.fields = fields(self.aggregate)


async def follow(
    conn: AsyncConnection[TupleRow],
    fold: Fold,
    *,
    at_version: int | None = None,
    at_time: datetime | None = None,
) -> AsyncIterator[StreamStep]:
    """Yield each event of the fold's stream, once it is applied, up to a version and up to a time.

    The fold then holds the aggregate as it stood there. The stream is read in chunks.
    """
    version = BEFORE_ALL
    while chunk := await _chunk(conn, fold.stream_id, version):
        for stored in chunk:
            entry = read_entry(stored)
            if at_version is not None and stored.version > at_version:
                return
            if at_time is not None and entry.recorded_at and entry.recorded_at > at_time:
                return
            yield fold.add(entry)
        version = chunk[-1].version


async def _chunk(conn: AsyncConnection[TupleRow], stream_id: UUID, after: int) -> list[Stored]:
    async with conn.cursor(binary=True) as cursor:
        await cursor.execute(READ_STREAM, (stream_id, after, CHUNK))
        return [Stored(*row) for row in await cursor.fetchall()]


def fields(aggregate: Aggregate) -> Values:
    """Return the public fields of an aggregate, as JSON values."""
    public = {name: value for name, value in vars(aggregate).items() if not name.startswith("_")}
    values: Values = orjson.loads(
        orjson.dumps(public, default=_plain, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z)
    )
    return values


def _plain(value: object) -> object:
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)


def _changes(before: Values, after: Values) -> dict[str, FieldChange]:
    names = [*before, *(name for name in after if name not in before)]
    return {
        name: FieldChange(before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    }

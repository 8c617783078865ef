"""Events as an auditor sees them, readable or not: their streams, their causes and effects."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, LiteralString, NamedTuple
from uuid import UUID

import orjson
from eventsourcing.persistence import MapperDeserialisationError
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.model import ActorKind, Aggregate
from engine.connections import in_thread
from engine.event_store import EVENTS
from engine.inspection.index import INDEXED, PLANNING, Audit, Search, find
from engine.inspection.names import named, persons_in, with_names
from engine.log import MAPPER, READ_ONE, Stored, event_id
from infra.pseudonyms import Pseudonyms

VERSION = re.compile(r"\.v[0-9]+$")
META = ("timestamp", "actor", "actor_kind", "correlation_id", "causation_id")
KINDS = frozenset(ActorKind)
CHUNK = 500
BEFORE_ALL = -(2**63)

MAX_TRACED = 1_000
MAX_EFFECTS = 100
# A tree that is deeper than any program draws or parses is no longer drawn as one.
MAX_DEPTH = 50

COLUMNS = "notification_id, originator_id, originator_version, topic, state"
IN_STREAM = f"SELECT {COLUMNS} FROM {EVENTS} WHERE originator_id = %s AND originator_version "
READ_STREAM = f"{IN_STREAM} > %s ORDER BY originator_version LIMIT %s".encode()
BEFORE = f"{IN_STREAM} < %s ORDER BY originator_version DESC LIMIT 1".encode()
CAUSED: LiteralString = (
    INDEXED + ", found AS ("
    "(SELECT position FROM {schema}.events WHERE causation_id = %(cause)s "
    "ORDER BY position LIMIT %(limit)s) UNION ALL "
    f"(SELECT notification_id FROM {EVENTS} AS b "
    "LEFT JOIN LATERAL {schema}.read(b.state) AS f ON true "
    "WHERE notification_id > (SELECT position FROM indexed) AND f.causation_id = %(cause)s "
    "ORDER BY notification_id LIMIT %(limit)s)) "
    f"SELECT {COLUMNS} FROM found JOIN {EVENTS} ON notification_id = position "
    "ORDER BY position LIMIT %(limit)s"
)

Kind = Literal["request", "event", "unknown"]
Values = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored event with what could be made of it.

    `payload` is the JSON object as it was recorded, decrypted, without what the other fields hold;
    `event` is the event in its newest shape, or None with the `error` of reading it. Where `names`
    are told, they stand in `actor` and `payload` in place of these pseudonyms.
    """

    stored: Stored
    payload: dict[str, object] | None
    recorded_at: datetime | None
    actor: str | None
    actor_kind: ActorKind | None
    correlation_id: str | None
    causation_id: str | None
    event: Aggregate.Event | None
    error: MapperDeserialisationError | None
    names: Mapping[str, str] = field(default_factory=dict)


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
    """Return what can be made of a stored event; it may have to ask for a person's key."""
    content = _content(stored)
    payload = content if isinstance(content, dict) else None
    at, actor, kind, correlation, cause = ((payload or {}).pop(name, None) for name in META)
    event, error = None, None
    try:
        event = MAPPER.decode(*stored[1:])
    except MapperDeserialisationError as failure:
        error = failure
    who, ids = (_text(actor), _kind(kind)), (_text(correlation), _text(cause))
    return Entry(stored, payload, _time(at), *who, *ids, event, error)


def _content(stored: Stored) -> object:
    try:
        return MAPPER.payload(*stored[1:])
    except ValueError:
        # What can't be decrypted is shown as it is.
        with suppress(ValueError):
            return orjson.loads(stored.state)
    return None


def read_entries(stored: Sequence[Stored], persons: Pseudonyms | None = None) -> list[Entry]:
    """Return what can be made of events; those who are named have their names where `persons` are.

    May ask the database for keys and names. Raise psycopg.Error and KeyEncryptionFailed.
    """
    MAPPER.prepare((each.topic, each.state) for each in stored)
    entries = [read_entry(each) for each in stored]
    if persons is None:
        return entries
    names = persons.names({who for entry in entries for who in _persons_in(entry)})
    return [_named(entry, names) for entry in entries]


async def in_entries(stored: Sequence[Stored], persons: Pseudonyms | None = None) -> list[Entry]:
    """Do `read_entries` in a thread."""
    return await in_thread(read_entries, stored, persons)


def _persons_in(entry: Entry) -> Iterator[str]:
    yield from persons_in(entry.stored.topic, {**(entry.payload or {}), "actor": entry.actor})


def _named(entry: Entry, names: Mapping[str, str]) -> Entry:
    topic, payload = entry.stored.topic, entry.payload
    return replace(
        entry,
        actor=with_names(entry.actor, names),
        payload=None if payload is None else named(topic, payload, names),
        names={who: names[who] for who in _persons_in(entry) if who in names},
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _kind(value: object) -> ActorKind | None:
    return ActorKind(value) if isinstance(value, str) and value in KINDS else None


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
        self._names: dict[str, str] = {}
        # Why the aggregate is not known beyond its `version`.
        self.error: Exception | None = None

    @property
    def version(self) -> int:
        """The last version that could be applied."""
        return self.aggregate.version if self.aggregate is not None else 0

    def add(self, entry: Entry) -> StreamStep:
        """Apply the next event, unless one before it could not be."""
        self.kind = self.kind or aggregate_of(entry.stored.topic or "")
        self.error = self.error or entry.error
        self._names.update(entry.names)
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
            self.fields = self._shown(self.aggregate)
            self.created_on = event.timestamp
        if not isinstance(self.aggregate, event.AGGREGATE):
            raise ForeignEvent(f"{event.TOPIC} is no event of this stream's {self.kind}.")
        event.mutate(self.aggregate)
        self.fields = self._shown(self.aggregate)

    def _shown(self, aggregate: Aggregate) -> Values:
        """Return the fields with names where the stream's events have these."""
        shown: Values = with_names(fields(aggregate), self._names)
        return shown


async def follow(
    conn: AsyncConnection[TupleRow],
    fold: Fold,
    *,
    at_version: int | None = None,
    at_time: datetime | None = None,
    persons: Pseudonyms | None = None,
) -> AsyncIterator[StreamStep]:
    """Yield each event of the fold's stream, once it is applied, up to a version and up to a time.

    The fold then holds the aggregate as it stood there. The stream is read in chunks; where
    `persons` are given, those whom it names have their names.
    """
    version = BEFORE_ALL
    while chunk := await _read(conn, READ_STREAM, (fold.stream_id, version, CHUNK)):
        for entry in await in_entries(chunk, persons):
            if at_version is not None and entry.stored.version > at_version:
                return
            if at_time is not None and entry.recorded_at and entry.recorded_at > at_time:
                return
            yield fold.add(entry)
        version = chunk[-1].version


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
    return {
        name: FieldChange(before.get(name), after.get(name))
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    }


async def _read(
    conn: AsyncConnection[TupleRow], query: bytes, values: Any, *, prepare: bool | None = None
) -> list[Stored]:
    async with conn.cursor(binary=True) as cursor:
        await cursor.execute(query, values, prepare=prepare)
        return [Stored(*row) for row in await cursor.fetchall()]


class Cause(NamedTuple):
    """What led to an event: a request, an event, or an id that nothing here has."""

    kind: Kind
    id: str
    event: Stored | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The events before and after in the stream, the cause, and the first 100 effects."""

    previous: Stored | None
    following: Stored | None
    cause: Cause | None
    caused: Sequence[Stored]


@dataclass(frozen=True, slots=True)
class Node:
    """A request or an event with what it led to; `note` says why it stands where it does."""

    kind: Kind
    id: str
    entry: Entry | None = None
    at: datetime | None = None
    note: str | None = None
    children: list[Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Trace:
    """A conversation's events under their request; cut off after 1,000 events when `truncated`."""

    root: Node
    events: int
    truncated: bool


async def at_position(conn: AsyncConnection[TupleRow], position: int) -> Stored | None:
    """Return the event at a position; None where the log has none."""
    return next(iter(await _read(conn, READ_ONE, (position,))), None)


async def surroundings(conn: AsyncConnection[TupleRow], audit: Audit, entry: Entry) -> Surroundings:
    """Return what stands around an event in its stream, and in the order of cause and effect."""
    stored = entry.stored
    place = (stored.stream_id, stored.version)
    values = {"schema": audit.schema, "cause": _id_of(stored), "limit": MAX_EFFECTS}
    async with conn.transaction():
        await conn.execute(PLANNING)
        previous = next(iter(await _read(conn, BEFORE, place)), None)
        following = next(iter(await _read(conn, READ_STREAM, (*place, 1))), None)
        caused = await _read(conn, audit.sql(CAUSED), values, prepare=False)
    # An event that names itself as its cause is no effect of itself.
    effects = [effect for effect in caused if effect.position != stored.position]
    return Surroundings(previous, following, await _cause(conn, audit, entry), effects)


def _id_of(stored: Stored) -> str:
    return str(event_id(stored.stream_id, stored.version))


async def _cause(conn: AsyncConnection[TupleRow], audit: Audit, entry: Entry) -> Cause | None:
    """Return what led to an event: its id holds no position, so the conversation is searched."""
    cause, correlation = entry.causation_id, entry.correlation_id
    if cause is None:
        return None
    if cause == correlation or correlation is None:
        return Cause("request" if correlation else "unknown", cause)
    earlier = Search(correlation_id=correlation, before=entry.stored.position)
    for stored in (await find(conn, audit, earlier, MAX_TRACED)).events:
        if _id_of(stored) == cause:
            return Cause("event", cause, stored)
    return Cause("unknown", cause)


async def trace(
    conn: AsyncConnection[TupleRow],
    audit: Audit,
    correlation_id: str,
    persons: Pseudonyms | None = None,
    limit: int = MAX_TRACED,
) -> Trace | None:
    """Return the tree of a conversation's first events; None when there are none."""
    wanted = Search(correlation_id=correlation_id, newest_first=False)
    found = await find(conn, audit, wanted, limit)
    if not found.events:
        return None
    entries = await in_entries(found.events, persons)
    truncated = found.following is not None
    return Trace(tree(correlation_id, entries), len(entries), truncated)


def tree(correlation_id: str, entries: Sequence[Entry]) -> Node:
    """Return the events, given in order of position, under what caused them.

    A cause comes before its effect; what names no cause among the events before it hangs under the
    request, with a note, and so nothing can go in a circle.
    """
    known = [entry.recorded_at for entry in entries if entry.recorded_at is not None]
    root = Node("request", correlation_id, at=min(known, default=None))
    placed: dict[str, tuple[Node, int]] = {correlation_id: (root, 0)}
    for entry in entries:
        own, cause = _id_of(entry.stored), entry.causation_id
        parent, depth = placed.get(cause or "", (root, 0))
        note = None
        if cause is None:
            note = "it names no cause"
        elif cause not in placed:
            note = f"its cause {cause} is not before it in this trace"
        elif depth >= MAX_DEPTH:
            parent, depth = root, 0
            note = f"its cause {cause} is nested too deep to draw this below it"
        node = Node("event", own, entry, entry.recorded_at, note)
        parent.children.append(node)
        placed.setdefault(own, (node, depth + 1))
    return root

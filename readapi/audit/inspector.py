"""The audit's answers, for HTTP and for `backlot events`: their shapes, and how they are made."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Annotated, Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import Field
from pydantic.alias_generators import to_camel

from domain.model import ActorKind
from engine.inspection import streams
from engine.inspection.index import Audit, LogStats, Search, find, stats
from engine.inspection.streams import (
    Entry,
    Fold,
    Node,
    StreamStep,
    aggregate_of,
    in_entries,
    type_of,
)
from engine.log import Stored, event_id
from engine.payload_mode import PayloadMode, mask_actor, present
from infra.http.shapes import VIDEO_ID, Time, Wire
from infra.pseudonyms import Pseudonyms
from readapi.pages import Page, decode_cursor, encode_cursor

EVENT_ID = "c5a2b7e0-52d9-5b8e-9c3c-6e1f0a3d4b5c"


class AuditEvent(Wire):
    """A recorded event; `recordedAt`, `actor` and the ids are missing where they can't be read.

    `actorKind` is `user`, `anonymous`, `operator` or `system`; events of older releases have none.

    `payload` is what was recorded beside them, in the form that `payloadMode` says. An event that
    this version can't read has an `error` and, in mode `full`, its raw bytes in base64 as `state`.
    """

    position: Annotated[int, Field(examples=[1042])]
    id: Annotated[UUID, Field(examples=[EVENT_ID])]
    stream_id: Annotated[UUID, Field(examples=[VIDEO_ID])]
    version: Annotated[int, Field(examples=[1])]
    topic: Annotated[str, Field(examples=["comment.posted.v1"])]
    type: Annotated[str, Field(examples=["comment.posted"])]
    aggregate: Annotated[str, Field(examples=["comment"])]
    recorded_at: Time | None = None
    actor: Annotated[str | None, Field(examples=["alice"])] = None
    actor_kind: Annotated[ActorKind | None, Field(examples=["user"])] = None
    correlation_id: str | None = None
    causation_id: str | None = None
    payload: Annotated[
        dict[str, object] | None, Field(examples=[{"content": "¡Qué bonito!", "author": "alice"}])
    ] = None
    payload_mode: PayloadMode
    error: str | None = None
    state: str | None = None


class EventRef(Wire):
    """Another event, by its place."""

    position: int
    id: UUID
    topic: str


class CauseRef(Wire):
    """What led to an event: the request, an event, or an id that is not known here."""

    kind: streams.Kind
    id: str
    position: int | None = None
    topic: str | None = None


class AuditEventDetail(AuditEvent):
    """An event, its neighbours in its stream, its cause, and at most 100 of its effects."""

    previous: EventRef | None = None
    next: EventRef | None = None
    caused_by: CauseRef | None = None
    caused: list[EventRef]


class StreamEvent(AuditEvent):
    """An event of a stream with the fields of the aggregate that it changed.

    `changed` is missing in mode `none`, and from the first event on that can't be applied.
    """

    changed: Annotated[
        dict[str, dict[str, object]] | None,
        Field(examples=[{"title": {"from": "Rain", "to": "A walk in the rain"}}]),
    ] = None


class AggregateState(Wire):
    """An aggregate as it stood after an event; `error` says why it is not known beyond that."""

    aggregate: Annotated[str, Field(examples=["upload"])]
    id: UUID
    version: int
    created_on: Time | None = None
    modified_on: Time | None = None
    fields: Annotated[
        dict[str, object] | None, Field(examples=[{"title": "Rain", "status": "completed"}])
    ] = None
    payload_mode: PayloadMode
    error: str | None = None


class StreamHistory(Wire):
    """A page of a stream's events, oldest first, and the aggregate's state at the end asked for."""

    stream_id: UUID
    aggregate: str
    items: list[StreamEvent]
    state: AggregateState
    next_cursor: str | None = None


class TraceNode(Wire):
    """A request or event, and what it led to; other kinds may come.

    `note` tells why a node hangs under the request although that is not its cause.
    """

    kind: Annotated[str, Field(examples=["request", "event"])]
    id: str
    position: int | None = None
    topic: str | None = None
    stream_id: UUID | None = None
    version: int | None = None
    actor: str | None = None
    actor_kind: ActorKind | None = None
    at: Time | None = None
    note: str | None = None
    children: list[TraceNode]


class TraceTree(Wire):
    """A conversation; `truncated` when it has more than the 1,000 events that are shown."""

    correlation_id: str
    events: int
    truncated: bool
    root: TraceNode


class TopicCount(Wire):
    """How many events of one stored topic there are."""

    topic: str
    type: str
    aggregate: str
    events: int


class AggregateCount(Wire):
    """How many events the aggregates of one kind have."""

    aggregate: str
    events: int


class DayCount(Wire):
    """How many events were recorded on a day (UTC)."""

    day: date
    events: int


class AuditStats(Wire):
    """What the log holds up to `head`; up to `indexed` the audit's index counted it.

    Sizes are in bytes: the events' contents, the log's table and its indexes, and all that the
    audit keeps. `unreadable` events tell no time; `days` are the last 366 that have events.
    """

    head: int
    indexed: int
    events: int
    streams: int
    unreadable: int
    first_at: Time | None = None
    last_at: Time | None = None
    state_bytes: int
    table_bytes: int
    index_bytes: int
    audit_bytes: int
    topics: list[TopicCount]
    aggregates: list[AggregateCount]
    days: list[DayCount]


def as_event(entry: Entry, mode: PayloadMode) -> AuditEvent:
    """Return an event as the mode admits it."""
    return AuditEvent(**_event(entry, mode))


def as_detail(entry: Entry, around: streams.Surroundings, mode: PayloadMode) -> AuditEventDetail:
    """Return an event with what stands around it."""
    return AuditEventDetail(
        **_event(entry, mode),
        previous=_ref(around.previous),
        next=_ref(around.following),
        caused_by=_cause(around.cause),
        caused=[ref for ref in map(_ref, around.caused) if ref is not None],
    )


def as_step(step: StreamStep, mode: PayloadMode) -> StreamEvent:
    """Return an event of a stream with its changes."""
    changed = None
    if step.changes is not None and mode is not PayloadMode.NONE:
        changed = {
            to_camel(name): present({"from": change.before, "to": change.after}, mode) or {}
            for name, change in step.changes.items()
        }
    return StreamEvent(**_event(step.entry, mode), changed=changed)


def as_state(fold: Fold, mode: PayloadMode) -> AggregateState:
    """Return the aggregate as far as it was folded."""
    aggregate = fold.aggregate
    return AggregateState(
        aggregate=fold.kind,
        id=fold.stream_id,
        version=fold.version,
        created_on=fold.created_on,
        modified_on=aggregate.modified_on if aggregate else None,
        fields=present({to_camel(name): value for name, value in fold.fields.items()}, mode),
        payload_mode=mode,
        error=None if fold.error is None else _explain(fold.error, mode),
    )


def as_trace(correlation_id: str, trace: streams.Trace, mode: PayloadMode) -> TraceTree:
    """Return the tree of a conversation."""
    return TraceTree(
        correlation_id=correlation_id,
        events=trace.events,
        truncated=trace.truncated,
        root=_node(trace.root, mode),
    )


def as_stats(stats: LogStats) -> AuditStats:
    """Return the counts, the most frequent first and the newest day first."""
    aggregates: Counter[str] = Counter()
    for topic, events in stats.topics.items():
        aggregates[aggregate_of(topic)] += events
    counts = {
        "topics": [
            TopicCount(topic=topic, type=type_of(topic), aggregate=aggregate_of(topic), events=n)
            for topic, n in _ranked(stats.topics)
        ],
        "aggregates": [AggregateCount(aggregate=k, events=n) for k, n in _ranked(aggregates)],
        "days": [DayCount(day=day, events=n) for day, n in sorted(stats.days.items())[::-1]],
    }
    return AuditStats(**(vars(stats) | counts))


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _event(entry: Entry, mode: PayloadMode) -> dict[str, Any]:
    stored = entry.stored
    topic = stored.topic or ""
    fields = {
        "position": stored.position,
        "id": event_id(stored.stream_id, stored.version),
        "stream_id": stored.stream_id,
        "version": stored.version,
        "topic": topic,
        "type": type_of(topic),
        "aggregate": aggregate_of(topic),
        "recorded_at": entry.recorded_at,
        "actor": mask_actor(entry.actor, mode),
        "actor_kind": entry.actor_kind,
        "correlation_id": entry.correlation_id,
        "causation_id": entry.causation_id,
        "payload": None if entry.payload is None else present(entry.payload, mode),
        "payload_mode": mode,
    }
    if entry.error is not None:
        fields["error"] = _explain(entry.error, mode)
        if mode is PayloadMode.FULL:
            fields["state"] = b64encode(stored.state or b"").decode()
    return fields


def _explain(error: Exception, mode: PayloadMode) -> str:
    """Return what is wrong; the message may quote a value, so only mode `full` shows it."""
    if mode is PayloadMode.FULL:
        return str(error)
    return f"can't be read: {type(error.__cause__ or error).__name__}"


def _ref(stored: Stored | None) -> EventRef | None:
    if stored is None:
        return None
    own = event_id(stored.stream_id, stored.version)
    return EventRef(position=stored.position, id=own, topic=stored.topic or "")


def _cause(cause: streams.Cause | None) -> CauseRef | None:
    if cause is None:
        return None
    ref = _ref(cause.event)
    place: dict[str, Any] = {"position": ref.position, "topic": ref.topic} if ref else {}
    return CauseRef(kind=cause.kind, id=cause.id, **place)


def _node(node: Node, mode: PayloadMode) -> TraceNode:
    place: dict[str, Any] = {}
    if node.entry is not None:
        stored = node.entry.stored
        place = {
            "position": stored.position,
            "topic": stored.topic,
            "stream_id": stored.stream_id,
            "version": stored.version,
            "actor": mask_actor(node.entry.actor, mode),
            "actor_kind": node.entry.actor_kind,
        }
    children = [_node(child, mode) for child in node.children]
    return TraceNode(
        kind=node.kind, id=node.id, at=node.at, note=node.note, children=children, **place
    )


class NotRecorded(Exception):
    """The log holds nothing of what was asked for."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Up to where a stream is looked at: a version, a time (both included), or its end."""

    version: int | None = None
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Inspector:
    """The log as somebody may see it who is shown payloads in this mode.

    Only in mode `full` those whom it names have their names.
    """

    conn: AsyncConnection[TupleRow]
    audit: Audit
    mode: PayloadMode
    persons: Pseudonyms

    @property
    def _named(self) -> Pseudonyms | None:
        return self.persons if self.mode is PayloadMode.FULL else None

    async def shown(self, stored: Sequence[Stored]) -> list[AuditEvent]:
        """Return stored events as the mode admits them."""
        entries = await in_entries(stored, self._named)
        return [as_event(entry, self.mode) for entry in entries]

    async def events(
        self, search: Search, limit: int, cursor: str | None = None
    ) -> Page[AuditEvent]:
        """Return a page of the events that match; its actor is a pseudonym. Raise InvalidCursor."""
        kind = "newest events" if search.newest_first else "oldest events"
        if cursor is not None:
            place = decode_cursor(kind, cursor)
            if search.newest_first:
                search = replace(search, before=min(search.before, place))
            else:
                search = replace(search, after=max(search.after, place))
        found = await find(self.conn, self.audit, search, limit)
        items = await self.shown(found.events)
        following = None if found.following is None else encode_cursor(kind, found.following)
        return Page[AuditEvent](items=items, next_cursor=following)

    async def event(self, position: int) -> AuditEventDetail:
        """Return the event at a position; raise NotRecorded."""
        stored = await streams.at_position(self.conn, position)
        if stored is None:
            raise NotRecorded(f"There is no event at position {position}.")
        (entry,) = await in_entries((stored,), self._named)
        around = await streams.surroundings(self.conn, self.audit, entry)
        return as_detail(entry, around, self.mode)

    async def stream(
        self, stream_id: UUID, moment: Moment, limit: int, cursor: str | None = None
    ) -> StreamHistory:
        """Return a page of a stream, and its state then; raise NotRecorded and InvalidCursor."""
        first = 0 if cursor is None else decode_cursor("stream", cursor)
        items: list[StreamEvent] = []
        number, fold = 0, Fold(stream_id)
        async for step in self.steps(fold, moment):
            if first <= number < first + limit:
                items.append(as_step(step, self.mode))
            number += 1
        following = encode_cursor("stream", first + limit) if number > first + limit else None
        return StreamHistory(
            stream_id=stream_id,
            aggregate=fold.kind,
            items=items,
            state=as_state(fold, self.mode),
            next_cursor=following,
        )

    async def state(self, stream_id: UUID, moment: Moment) -> AggregateState:
        """Return the aggregate as it stood at a moment; raise NotRecorded."""
        fold = Fold(stream_id)
        async for _ in self.steps(fold, moment):
            pass
        return as_state(fold, self.mode)

    async def trace(self, correlation_id: str, limit: int = streams.MAX_TRACED) -> TraceTree:
        """Return the tree of a conversation's first events; raise NotRecorded."""
        found = await streams.trace(self.conn, self.audit, correlation_id, self._named, limit)
        if found is None:
            raise NotRecorded("No event has that correlation id.")
        return as_trace(correlation_id, found, self.mode)

    async def stats(self) -> AuditStats:
        """Return what the log holds."""
        return as_stats(await stats(self.conn, self.audit))

    async def steps(self, fold: Fold, moment: Moment) -> AsyncIterator[StreamStep]:
        """Yield each event of the fold's stream with what it changed, up to a moment.

        Raise NotRecorded at the end when there was no event, none so early, or fewer versions.
        """
        events, at = 0, moment
        found = streams.follow(
            self.conn, fold, at_version=at.version, at_time=at.time, persons=self._named
        )
        async for step in found:
            events += 1
            yield step
        if events == 0 and at.time is not None:
            raise NotRecorded(f"Stream {fold.stream_id} has no event up to that time.")
        if events == 0:
            raise NotRecorded(f"Stream {fold.stream_id} has no events.")
        if at.version is not None and at.time is None and at.version > events:
            raise NotRecorded(f"Stream {fold.stream_id} has {events} versions only.")

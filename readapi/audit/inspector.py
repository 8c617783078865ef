"""Answers the audit's questions, in one way for the HTTP API and for `backlot events`."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic.alias_generators import to_camel

from engine.inspection.causes import (
    Cause,
    Node,
    Surroundings,
    Trace,
    at_position,
    surroundings,
    trace,
)
from engine.inspection.index import Audit
from engine.inspection.search import LogStats, Search, arriving, find, head_of, stats
from engine.inspection.streams import (
    Entry,
    FieldChange,
    Fold,
    StreamStep,
    aggregate_of,
    follow,
    read_entry,
    type_of,
)
from engine.log import Stored, event_id
from engine.privacy import PayloadMode, mask_actor, present
from readapi.audit.shapes import (
    AggregateCount,
    AggregateState,
    AuditEvent,
    AuditEventDetail,
    AuditStats,
    CauseRef,
    DayCount,
    EventRef,
    StreamEvent,
    StreamHistory,
    TopicCount,
    TraceNode,
    TraceTree,
)
from readapi.paging import Page, decode_cursor, encode_cursor


def as_event(entry: Entry, mode: PayloadMode) -> AuditEvent:
    """An event as the mode admits it."""
    return AuditEvent(**_event(entry, mode))


def as_detail(entry: Entry, around: Surroundings, mode: PayloadMode) -> AuditEventDetail:
    """An event with what stands around it."""
    return AuditEventDetail(
        **_event(entry, mode),
        previous=_ref(around.previous),
        next=_ref(around.following),
        caused_by=_cause(around.cause),
        caused=[ref for ref in map(_ref, around.caused) if ref is not None],
    )


def as_step(step: StreamStep, mode: PayloadMode) -> StreamEvent:
    """An event of a stream with its changes."""
    changed = None if step.changes is None else _changed(step.changes, mode)
    return StreamEvent(**_event(step.entry, mode), changed=changed)


def as_state(fold: Fold, mode: PayloadMode) -> AggregateState:
    """The aggregate as far as it was folded."""
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


def as_trace(correlation_id: str, trace: Trace, mode: PayloadMode) -> TraceTree:
    """A conversation's tree."""
    return TraceTree(
        correlation_id=correlation_id,
        events=trace.events,
        truncated=trace.truncated,
        root=_node(trace.root, mode),
    )


def as_stats(stats: LogStats) -> AuditStats:
    """Counts, the most frequent first and the newest day first."""
    aggregates: Counter[str] = Counter()
    for topic, events in stats.topics.items():
        aggregates[aggregate_of(topic)] += events
    return AuditStats(
        head=stats.head,
        indexed=stats.indexed,
        events=stats.events,
        streams=stats.streams,
        unreadable=stats.unreadable,
        first_at=stats.first_at,
        last_at=stats.last_at,
        state_bytes=stats.state_bytes,
        table_bytes=stats.table_bytes,
        index_bytes=stats.index_bytes,
        audit_bytes=stats.audit_bytes,
        topics=[
            TopicCount(topic=topic, type=type_of(topic), aggregate=aggregate_of(topic), events=n)
            for topic, n in _ranked(stats.topics)
        ],
        aggregates=[AggregateCount(aggregate=k, events=n) for k, n in _ranked(aggregates)],
        days=[DayCount(day=day, events=n) for day, n in sorted(stats.days.items(), reverse=True)],
    )


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _event(entry: Entry, mode: PayloadMode) -> dict[str, Any]:
    stored, full = entry.stored, mode is PayloadMode.FULL
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
        "correlation_id": entry.correlation_id,
        "causation_id": entry.causation_id,
        "payload": None if entry.payload is None else present(entry.payload, mode),
        "payload_mode": mode,
    }
    if entry.error is not None:
        fields["error"] = _explain(entry.error, mode)
        fields["state"] = base64.b64encode(stored.state or b"").decode() if full else None
    return fields


def _explain(error: Exception, mode: PayloadMode) -> str:
    """What is wrong; the message itself may quote a value, so only mode `full` shows it."""
    if mode is PayloadMode.FULL:
        return str(error)
    return f"can't be read: {type(error.__cause__ or error).__name__}"


def _changed(
    changes: Mapping[str, FieldChange], mode: PayloadMode
) -> dict[str, dict[str, object]] | None:
    shown: dict[str, dict[str, object]] = {}
    for name, change in changes.items():
        values = present({"from": change.before, "to": change.after}, mode)
        if values is None:
            return None
        shown[to_camel(name)] = values
    return shown if mode is not PayloadMode.NONE else None


def _ref(stored: Stored | None) -> EventRef | None:
    if stored is None:
        return None
    own = event_id(stored.stream_id, stored.version)
    return EventRef(position=stored.position, id=own, topic=stored.topic or "")


def _cause(cause: Cause | None) -> CauseRef | None:
    if cause is None:
        return None
    ref = _ref(cause.event)
    return CauseRef(
        kind=cause.kind,
        id=cause.id,
        position=ref.position if ref else None,
        topic=ref.topic if ref else None,
    )


def _node(node: Node, mode: PayloadMode) -> TraceNode:
    stored = node.entry.stored if node.entry else None
    return TraceNode(
        kind=node.kind,
        id=node.id,
        position=stored.position if stored else None,
        topic=stored.topic if stored else None,
        stream_id=stored.stream_id if stored else None,
        version=stored.version if stored else None,
        actor=mask_actor(node.entry.actor, mode) if node.entry else None,
        at=node.at,
        note=node.note,
        children=[_node(child, mode) for child in node.children],
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
    """The log as somebody may see it who is shown payloads in this mode."""

    conn: AsyncConnection[TupleRow]
    audit: Audit
    mode: PayloadMode

    async def events(
        self, search: Search, limit: int, cursor: str | None = None
    ) -> Page[AuditEvent]:
        """A page of the events that match; raises InvalidCursor."""
        kind = "newest events" if search.newest_first else "oldest events"
        if cursor is not None:
            search = _beyond(search, decode_cursor(kind, cursor))
        found = await find(self.conn, self.audit, search, limit)
        items = [as_event(read_entry(stored), self.mode) for stored in found.events]
        following = None if found.following is None else encode_cursor(kind, found.following)
        return Page[AuditEvent](items=items, next_cursor=following)

    async def head(self) -> int:
        """The position of the newest event; 0 when there is none."""
        return await head_of(self.conn)

    async def arriving(
        self, search: Search, after: int, wake: asyncio.Event
    ) -> AsyncIterator[AuditEvent]:
        """The events after a position that match, each once, as they come; without an end.

        `wake` is set when something was recorded.
        """
        async for stored in arriving(self.conn, self.audit, search, after, wake):
            yield as_event(read_entry(stored), self.mode)

    async def event(self, position: int) -> AuditEventDetail:
        """The event at a position; raises NotRecorded."""
        stored = await at_position(self.conn, position)
        if stored is None:
            raise NotRecorded(f"There is no event at position {position}.")
        entry = read_entry(stored)
        around = await surroundings(self.conn, self.audit, entry)
        return as_detail(entry, around, self.mode)

    async def steps(self, fold: Fold, moment: Moment) -> AsyncIterator[StreamEvent]:
        """Each event of the fold's stream with what it changed, up to a moment."""
        async for step in self._follow(fold, moment):
            yield as_step(step, self.mode)

    async def stream(
        self, stream_id: UUID, moment: Moment, limit: int, cursor: str | None = None
    ) -> StreamHistory:
        """A page of a stream, and its state at the moment; raises NotRecorded, InvalidCursor."""
        kind = "stream"
        first = 0 if cursor is None else decode_cursor(kind, cursor)
        items: list[StreamEvent] = []
        number, fold = 0, Fold(stream_id)
        async for step in self._follow(fold, moment):
            if first <= number < first + limit:
                items.append(as_step(step, self.mode))
            number += 1
        self.require(fold, moment, number)
        following = encode_cursor(kind, first + limit) if number > first + limit else None
        return StreamHistory(
            stream_id=stream_id,
            aggregate=fold.kind,
            items=items,
            state=as_state(fold, self.mode),
            next_cursor=following,
        )

    async def state(self, stream_id: UUID, moment: Moment) -> AggregateState:
        """The aggregate as it stood at a moment; raises NotRecorded."""
        number, fold = 0, Fold(stream_id)
        async for _ in self._follow(fold, moment):
            number += 1
        self.require(fold, moment, number)
        return as_state(fold, self.mode)

    def told(self, fold: Fold) -> AggregateState:
        """A fold's aggregate, as far as it has come."""
        return as_state(fold, self.mode)

    async def trace(self, correlation_id: str) -> TraceTree:
        """The tree of a conversation; raises NotRecorded."""
        found = await trace(self.conn, self.audit, correlation_id)
        if found is None:
            raise NotRecorded("No event has that correlation id.")
        return as_trace(correlation_id, found, self.mode)

    async def stats(self) -> AuditStats:
        """What the log holds."""
        return as_stats(await stats(self.conn, self.audit))

    @staticmethod
    def require(fold: Fold, moment: Moment, events: int) -> None:
        """Raise NotRecorded when a stream has no event, none so early, or fewer versions."""
        if events == 0 and moment.time is not None:
            raise NotRecorded(f"Stream {fold.stream_id} has no event up to that time.")
        if events == 0:
            raise NotRecorded(f"Stream {fold.stream_id} has no events.")
        if moment.version is not None and moment.time is None and moment.version > events:
            raise NotRecorded(f"Stream {fold.stream_id} has {events} versions only.")

    def _follow(self, fold: Fold, moment: Moment) -> AsyncIterator[StreamStep]:
        return follow(self.conn, fold, at_version=moment.version, at_time=moment.time)


def _beyond(search: Search, position: int) -> Search:
    """The rest of a list after a position."""
    if search.newest_first:
        return replace(search, before=min(search.before, position))
    return replace(search, after=max(search.after, position))

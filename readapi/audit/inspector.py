"""Answers the audit's questions, in one way for the HTTP API and for `backlot events`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from infra.privacy import PayloadMode
from projections.audit.causes import at_position, surroundings, trace
from projections.audit.events import read_entry
from projections.audit.following import arriving, head_of
from projections.audit.index import Audit
from projections.audit.search import Search, find
from projections.audit.stats import stats
from projections.audit.streams import Fold, StreamStep, follow
from readapi.audit.present import as_detail, as_event, as_state, as_stats, as_step, as_trace
from readapi.audit.shapes import (
    AggregateState,
    AuditEvent,
    AuditEventDetail,
    AuditStats,
    StreamEvent,
    StreamHistory,
    TraceTree,
)
from readapi.paging import Page, decode_cursor, encode_cursor


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

"""Finds events by what is known of them, exactly: in the index, and in the log where that ends.

Every driving index yields positions in order, those of actors and types per topic, so that a page
costs the same however many events match. One statement sees index and log at the same moment.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import TupleRow

from engine.event_store import EVENTS
from engine.inspection.index import BLOCK_POSITIONS, TOPIC, Audit
from engine.log import END_OF_LOG, HEAD, Stored
from engine.subscription import woken

# Every page is read along an index. The planner must not think otherwise while a table is small,
# nor compile what takes a millisecond.
PLANNING = b"""
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
       set_config('jit', 'off', true), set_config('statement_timeout', '30s', true)
"""

INDEXED: LiteralString = """
WITH indexed AS (
    SELECT coalesce(max(position), 0) AS position
    FROM backlot_checkpoints WHERE kind = 'projection' AND subscription = %(schema)s)
"""
TOPIC_IS: LiteralString = (
    "ARRAY[topic, regexp_replace(topic, '\\.v[0-9]+$', ''), split_part(topic, '.', 1)] "
    "&& %(types)s::text[]"
)
AGGREGATE_IS: LiteralString = "split_part(topic, '.', 1) = %(aggregate)s"
SINCE_BLOCK: LiteralString = (
    "position > %(block)s * (SELECT min(block) FROM {schema}.blocks WHERE last_at >= %(since)s)"
)
UNTIL_BLOCK: LiteralString = (
    "position <= %(block)s * "
    "(SELECT max(block) + 1 FROM {schema}.blocks WHERE first_at < %(until)s)"
)
BY_POSITION: LiteralString = "SELECT position FROM {schema}.events WHERE "
BY_TOPIC: LiteralString = "SELECT e.position FROM (SELECT topic FROM {schema}.topics WHERE true"
OF_TOPIC: LiteralString = (
    ") AS t CROSS JOIN LATERAL (SELECT position FROM {schema}.events e WHERE e.topic = t.topic AND "
)
LOG: LiteralString = f"SELECT notification_id AS position FROM {EVENTS} AS b "
WITH_CONTENT: LiteralString = "LEFT JOIN LATERAL {schema}.read(b.state) AS f ON true "
NOT_INDEXED: LiteralString = "notification_id > (SELECT position FROM indexed) AND "
OF_STREAM: LiteralString = "originator_id = %(stream)s AND "
LOG_WITHIN: LiteralString = "notification_id > %(after)s AND notification_id < %(before)s"
WITHIN: LiteralString = "position > %(after)s AND position < %(before)s"
NEWEST: LiteralString = " ORDER BY position DESC LIMIT %(limit)s"
OLDEST: LiteralString = " ORDER BY position LIMIT %(limit)s"
ROWS: LiteralString = f"""
SELECT found.position, originator_id, originator_version, topic, state
FROM found LEFT JOIN {EVENTS} AS b ON notification_id = found.position
ORDER BY found.position"""

MAX_DAYS = 366

# All of it as of one moment.
SNAPSHOT = b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
SIZES = f"""
SELECT (SELECT coalesce(max(notification_id), 0) FROM {EVENTS}), s.position,
       pg_table_size('{EVENTS}'), pg_indexes_size('{EVENTS}'),
       (SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c
        WHERE c.relnamespace = s.subscription::regnamespace AND c.relkind = 'r')
FROM backlot_checkpoints s WHERE s.kind = 'projection' AND s.subscription = %s
""".encode()
TOPICS: LiteralString = "SELECT topic, events, streams, bytes, unreadable FROM {schema}.topics"
DAYS: LiteralString = "SELECT day, events FROM {schema}.days ORDER BY day DESC LIMIT %(days)s"
TIMES: LiteralString = "SELECT min(first_at), max(last_at) FROM {schema}.blocks"
TAIL: LiteralString = (
    "SELECT "
    + TOPIC
    + f""", (f.recorded_at AT TIME ZONE 'UTC')::date, count(*),
       count(*) FILTER (WHERE originator_version = 1),
       coalesce(sum(octet_length(state)), 0)::bigint,
       count(*) FILTER (WHERE f.recorded_at IS NULL), min(f.recorded_at), max(f.recorded_at)
FROM {EVENTS} AS b LEFT JOIN LATERAL {{schema}}.read(b.state) AS f ON true
WHERE notification_id > %(indexed)s AND notification_id <= %(head)s
GROUP BY 1, 2
"""
)

# What a lost notification costs.
POLL_SECONDS = 1.0
PAGE = 500


@dataclass(frozen=True, slots=True)
class Search:
    """Which events are wanted: all conditions that are given have to hold.

    `types` are topics, topics without version, or kinds of aggregates. `since` is included,
    `until`, `after` and `before` are not; the latter two are positions.
    """

    stream: UUID | None = None
    aggregate: str | None = None
    types: Sequence[str] = ()
    actor: str | None = None
    correlation_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    after: int = 0
    before: int = END_OF_LOG
    newest_first: bool = True


class EventPage(NamedTuple):
    """A page of events in order; `following` is the last position where more of them follow."""

    events: list[Stored]
    following: int | None


@dataclass(slots=True)
class LogStats:
    """What the log holds up to position `head`; sizes in bytes.

    `unreadable` events have no time. `days` are the last 366 (UTC) that have events.
    """

    head: int
    indexed: int
    table_bytes: int
    index_bytes: int
    audit_bytes: int
    state_bytes: int = 0
    events: int = 0
    streams: int = 0
    unreadable: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None
    topics: Counter[str] = field(default_factory=Counter)
    days: Counter[date] = field(default_factory=Counter)

    def add(self, topic: str, events: int, streams: int, size: int, unreadable: int) -> None:
        """Count events of a topic."""
        self.topics[topic] += events
        self.events += events
        self.streams += streams
        self.state_bytes += size
        self.unreadable += unreadable

    def widen(self, *times: datetime | None) -> None:
        """Have the first and the last time include these."""
        known = [time for time in (self.first_at, self.last_at, *times) if time is not None]
        self.first_at, self.last_at = min(known, default=None), max(known, default=None)


async def find(
    conn: AsyncConnection[TupleRow], audit: Audit, search: Search, limit: int
) -> EventPage:
    """Return the first `limit` events that match, newest or oldest first."""
    values = {
        "schema": audit.schema,
        "block": BLOCK_POSITIONS,
        "stream": search.stream,
        "aggregate": search.aggregate,
        "types": list(search.types),
        "actor": search.actor,
        "correlation_id": search.correlation_id,
        "since": search.since,
        "until": search.until,
        "after": search.after,
        "before": search.before,
        "limit": limit + 1,
    }
    async with conn.transaction(), conn.cursor(binary=True) as cursor:
        await cursor.execute(PLANNING)
        # Planned for these values each time: how rare they are decides which index is used.
        await cursor.execute(audit.sql(statement(search)), values, prepare=False)
        rows = await cursor.fetchall()
    shown = rows[:limit]
    # A position that is indexed and no longer in the log is for the verification to find.
    events = [Stored(*row) for row in shown if row[1] is not None]
    return EventPage(events, shown[-1][0] if len(rows) > limit else None)


def statement(search: Search) -> LiteralString:
    """Return the query of one page; its `limit` is one more than the page has."""
    order = NEWEST if search.newest_first else OLDEST
    found = _in_stream(search) if search.stream is not None else _indexed(search, order)
    rows = ROWS + (" DESC" if search.newest_first else "")
    return INDEXED + ", found AS (" + found + order + ")" + rows


def _indexed(search: Search, order: LiteralString) -> LiteralString:
    tail = LOG + _contents(search) + "WHERE " + NOT_INDEXED + _in_log(search)
    return (
        "SELECT position FROM (("
        + _in_index(search, order)
        + order
        + ") UNION ALL ("
        + tail
        + order
        + ")) AS merged"
    )


def _in_index(search: Search, order: LiteralString) -> LiteralString:
    wanted = WITHIN
    wanted += " AND recorded_at >= %(since)s AND " + SINCE_BLOCK if search.since else ""
    wanted += " AND recorded_at < %(until)s AND " + UNTIL_BLOCK if search.until else ""
    wanted += " AND actor = %(actor)s" if search.actor is not None else ""
    wanted += (
        " AND correlation_id = %(correlation_id)s" if search.correlation_id is not None else ""
    )
    topics = _topics(search)
    # A conversation is short, or at least its own: its index needs no topics to be in order.
    if not topics and (search.actor is None or search.correlation_id is not None):
        return BY_POSITION + wanted
    return BY_TOPIC + topics + OF_TOPIC + wanted + order + ") AS e"


def _in_stream(search: Search) -> LiteralString:
    return LOG + _contents(search) + "WHERE " + OF_STREAM + _in_log(search)


def _in_log(search: Search) -> LiteralString:
    wanted = LOG_WITHIN + _topics(search)
    wanted += " AND f.recorded_at >= %(since)s" if search.since else ""
    wanted += " AND f.recorded_at < %(until)s" if search.until else ""
    wanted += " AND f.actor = %(actor)s" if search.actor is not None else ""
    if search.correlation_id is not None:
        wanted += " AND f.correlation_id = %(correlation_id)s"
    return wanted


def _topics(search: Search) -> LiteralString:
    wanted: LiteralString = ""
    wanted += " AND " + TOPIC_IS if search.types else ""
    wanted += " AND " + AGGREGATE_IS if search.aggregate is not None else ""
    return wanted


def _contents(search: Search) -> LiteralString:
    """Return the join with an event's content, where a condition needs it."""
    asked = (search.actor, search.correlation_id, search.since, search.until)
    return WITH_CONTENT if any(value is not None for value in asked) else ""


async def stats(conn: AsyncConnection[TupleRow], audit: Audit) -> LogStats:
    """Count; takes as long as there are topics, days and events that are not indexed yet."""
    async with conn.transaction(), conn.cursor(binary=True) as cursor:
        await cursor.execute(SNAPSHOT)
        await cursor.execute(PLANNING)
        # First what fails where there is no index yet.
        topics = await _rows(cursor, audit.sql(TOPICS))
        result = LogStats(*(await _rows(cursor, SIZES, (audit.schema,)))[0])
        for topic in topics:
            result.add(*topic)
        for day, events in await _rows(cursor, audit.sql(DAYS), {"days": MAX_DAYS}):
            result.days[day] += events
        result.widen(*(await _rows(cursor, audit.sql(TIMES)))[0])
        beyond = {"indexed": result.indexed, "head": result.head}
        _add_tail(result, await _rows(cursor, audit.sql(TAIL), beyond))
    return result


def _add_tail(result: LogStats, rows: Iterable[TupleRow]) -> None:
    for topic, day, events, streams, size, unreadable, first_at, last_at in rows:
        result.add(topic, events, streams, size, unreadable)
        result.widen(first_at, last_at)
        if day is not None:
            result.days[day] += events


async def _rows(cursor: AsyncCursor[TupleRow], query: bytes, values: Any = None) -> list[TupleRow]:
    await cursor.execute(query, values)
    return await cursor.fetchall()


async def head_of(conn: AsyncConnection[TupleRow]) -> int:
    """Return the last position of the log; everything up to it is there, and stays as it is."""
    row = await (await conn.execute(HEAD)).fetchone()
    return int(row[0]) if row else 0


async def arriving(
    conn: AsyncConnection[TupleRow],
    audit: Audit,
    search: Search,
    after: int,
    wake: asyncio.Event,
) -> AsyncIterator[Stored]:
    """Yield the events after a position that match, as they come; it has no end.

    `wake` is set when something was recorded.
    """
    wanted = replace(search, newest_first=False)
    while True:
        head = await head_of(conn)
        while after < head:
            page = await find(conn, audit, replace(wanted, after=after, before=head + 1), PAGE)
            for stored in page.events:
                yield stored
            after = page.following or head
        await woken(wake, POLL_SECONDS)

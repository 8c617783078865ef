"""How much of what the log holds: counted by the index, and beyond it in the log itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import TupleRow

from infra.event_store import EVENTS
from projections.audit.index import TOPIC, Audit
from projections.audit.search import PLANNING

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


@dataclass(slots=True)
class LogStats:
    """What the log holds up to position `head`; sizes in bytes.

    `unreadable` events tell no time. `days` are the last 366 (UTC) that have events.
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


async def stats(conn: AsyncConnection[TupleRow], audit: Audit) -> LogStats:
    """Count; takes as long as there are topics, days and events that are not indexed yet."""
    async with conn.transaction(), conn.cursor(binary=True) as cursor:
        await cursor.execute(SNAPSHOT)
        await cursor.execute(PLANNING)
        result = LogStats(*(await _rows(cursor, SIZES, (audit.schema,)))[0])
        for topic in await _rows(cursor, audit.sql(TOPICS)):
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

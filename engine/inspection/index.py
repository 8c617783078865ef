"""The audit's index of the log, and what is found by it: exact searches, and what the log holds.

The index has when, what kind, who and why of every event, by its position. PostgreSQL makes it from
the stored bytes, so that no event costs this process anything. Contents are read from the log.

Every driving index yields positions in order, those of actors and types per topic, so that a page
costs the same however many events match. What is not indexed yet is found in the log itself; one
statement sees both at the same moment.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from typing import Any, ClassVar, LiteralString, NamedTuple
from uuid import UUID

from psycopg import (
    AsyncConnection,
    AsyncCursor,
    Connection,
    Cursor,
    DataError,
    OperationalError,
)
from psycopg.rows import TupleRow

from engine.connections import is_outage
from engine.event_store import EVENTS
from engine.log import END_OF_LOG, HEAD, Stored
from engine.projection import RangeProjection
from engine.subscription import woken

BLOCK_POSITIONS = 1_000
"""Positions 1 to 1,000 are block 0; a block knows between which times its events lie."""

# What is odd (no text, too long for an index, a time without an offset) counts as not there.
FIELDS: LiteralString = """
    CASE WHEN payload ->> 'timestamp' ~ '^[0-9]+-[0-9]+-[0-9]+T.*([+-][0-9]+:[0-9]+|Z)$'
          AND pg_input_is_valid(payload ->> 'timestamp', 'timestamptz')
          AND (payload ->> 'timestamp')::timestamptz BETWEEN '0001-01-02Z' AND '9999-12-30Z'
         THEN (payload ->> 'timestamp')::timestamptz END AS recorded_at"""
FIELDS += "".join(
    f""",
    CASE WHEN jsonb_typeof(payload -> '{name}') = 'string'
          AND octet_length(payload ->> '{name}') <= 1024
         THEN payload ->> '{name}' END AS {name}"""
    for name in ("actor", "correlation_id", "causation_id")
)
TOPIC: LiteralString = "CASE WHEN octet_length(topic) <= 256 THEN topic ELSE '' END"

# `read` takes whatever bytes are stored. A causation id is there where it is not the request's own,
# which the correlation id names. Each index ends with the position, in whose order pages are read.
TABLES: LiteralString = (
    """
CREATE TABLE {schema}.events (
    position bigint PRIMARY KEY,
    recorded_at timestamptz,
    topic text COLLATE "C" NOT NULL,
    actor text COLLATE "C",
    correlation_id text COLLATE "C",
    causation_id text COLLATE "C");
CREATE INDEX events_by_topic ON {schema}.events (topic, position);
CREATE INDEX events_by_actor ON {schema}.events (actor, topic, position);
CREATE INDEX events_by_correlation ON {schema}.events (correlation_id, position);
CREATE INDEX events_by_causation ON {schema}.events (causation_id, position)
    WHERE causation_id IS NOT NULL;
CREATE TABLE {schema}.topics (
    topic text COLLATE "C" PRIMARY KEY,
    events bigint NOT NULL,
    streams bigint NOT NULL,
    bytes bigint NOT NULL,
    unreadable bigint NOT NULL);
CREATE TABLE {schema}.days (day date PRIMARY KEY, events bigint NOT NULL);
CREATE TABLE {schema}.blocks (
    block bigint PRIMARY KEY,
    first_at timestamptz,
    last_at timestamptz);
CREATE FUNCTION {schema}.read(
    state bytea, OUT recorded_at timestamptz, OUT actor text, OUT correlation_id text,
    OUT causation_id text)
LANGUAGE plpgsql STABLE AS $body$
BEGIN
    SELECT f.* INTO recorded_at, actor, correlation_id, causation_id FROM (SELECT"""
    + FIELDS
    + """
    FROM (SELECT convert_from(state, 'UTF8')::jsonb AS payload OFFSET 0) AS e) AS f;
EXCEPTION WHEN OTHERS THEN
    NULL;
END
$body$
"""
)

STRETCH: LiteralString = f"""
    FROM {EVENTS}
    WHERE notification_id > %(after)s AND notification_id <= %(until)s"""
ROW: LiteralString = (
    "SELECT notification_id AS position, originator_version AS version, "
    f"octet_length(state) AS bytes, {TOPIC} AS topic, "
)
# Three times as fast, and raise for bytes that are no JSON.
READ_FAST: LiteralString = (
    f"SELECT position, version, bytes, topic, {FIELDS} "
    f"FROM ({ROW} convert_from(state, 'UTF8')::jsonb AS payload {STRETCH} OFFSET 0) AS e"
)
READ_ANY: LiteralString = (
    f"SELECT position, version, bytes, topic, f.* FROM ({ROW} state {STRETCH}) AS e "
    "LEFT JOIN LATERAL {schema}.read(e.state) AS f ON true"
)
BEGIN_ADD: LiteralString = "WITH e AS MATERIALIZED ("
END_ADD: LiteralString = """), topics AS (
    INSERT INTO {schema}.topics AS t (topic, events, streams, bytes, unreadable)
    SELECT topic, count(*), count(*) FILTER (WHERE version = 1), coalesce(sum(bytes), 0),
           count(*) FILTER (WHERE recorded_at IS NULL)
    FROM e GROUP BY topic
    ON CONFLICT (topic) DO UPDATE
    SET events = t.events + excluded.events, streams = t.streams + excluded.streams,
        bytes = t.bytes + excluded.bytes, unreadable = t.unreadable + excluded.unreadable),
days AS (
    INSERT INTO {schema}.days AS d (day, events)
    SELECT (recorded_at AT TIME ZONE 'UTC')::date, count(*)
    FROM e WHERE recorded_at IS NOT NULL GROUP BY 1
    ON CONFLICT (day) DO UPDATE SET events = d.events + excluded.events),
blocks AS (
    INSERT INTO {schema}.blocks AS b (block, first_at, last_at)
    SELECT (position - 1) / %(block)s, min(recorded_at), max(recorded_at)
    FROM e GROUP BY 1
    ON CONFLICT (block) DO UPDATE
    SET first_at = least(b.first_at, excluded.first_at),
        last_at = greatest(b.last_at, excluded.last_at))
INSERT INTO {schema}.events (position, recorded_at, topic, actor, correlation_id, causation_id)
SELECT position, recorded_at, topic, actor, correlation_id, nullif(causation_id, correlation_id)
FROM e ORDER BY position
"""


class Audit(RangeProjection):
    """Where in the log each kind of event, each actor's, and each conversation's events are."""

    name = "audit"
    version = 1
    tables: ClassVar[LiteralString] = TABLES
    # Nobody waits for it: what is not indexed yet is read from the log itself.
    gather_seconds = 1.0
    hurries = False

    def apply_range(self, after: int, until: int, cursor: Cursor[TupleRow]) -> None:
        stretch = {"after": after, "until": until, "block": BLOCK_POSITIONS}
        try:
            with cursor.connection.transaction():
                cursor.execute(self.sql(BEGIN_ADD + READ_FAST + END_ADD), stretch)
        except (DataError, OperationalError) as error:
            if is_outage(error):
                raise
            cursor.execute(self.sql(BEGIN_ADD + READ_ANY + END_ADD), stretch)

    def count(self, conn: Connection[TupleRow], topics: Sequence[str] | None) -> int:
        """Return how many events of these topics are indexed; without topics, of all."""
        ((found,),) = conn.execute(self.sql(COUNT), {"topics": topics}).fetchall()
        return int(found)


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
ABOUT_TOPIC: dict[str, LiteralString] = {
    "types": "ARRAY[topic, regexp_replace(topic, '\\.v[0-9]+$', ''), split_part(topic, '.', 1)] "
    "&& %(types)s::text[]",
    "aggregate": "split_part(topic, '.', 1) = %(aggregate)s",
}
ABOUT_CONTENT: dict[str, LiteralString] = {
    "since": "recorded_at >= %(since)s",
    "until": "recorded_at < %(until)s",
    "actor": "actor = %(actor)s",
    "correlation_id": "correlation_id = %(correlation_id)s",
}
ABOUT_BLOCK: dict[str, LiteralString] = {
    "since": "position > %(block)s * "
    "(SELECT min(block) FROM {schema}.blocks WHERE last_at >= %(since)s)",
    "until": "position <= %(block)s * "
    "(SELECT max(block) + 1 FROM {schema}.blocks WHERE first_at < %(until)s)",
}
BY_POSITION: LiteralString = "SELECT position FROM {schema}.events WHERE "
BY_TOPIC: LiteralString = "SELECT e.position FROM (SELECT topic FROM {schema}.topics WHERE true"
OF_TOPIC: LiteralString = (
    ") AS t CROSS JOIN LATERAL (SELECT position FROM {schema}.events e WHERE e.topic = t.topic AND "
)
WITHIN: LiteralString = "position > %(after)s AND position < %(before)s"
LOG: LiteralString = f"SELECT notification_id AS position FROM {EVENTS} AS b "
WITH_CONTENT: LiteralString = "LEFT JOIN LATERAL {schema}.read(b.state) AS f ON true "
LOG_WITHIN: LiteralString = "WHERE notification_id > %(after)s AND notification_id < %(before)s"
NOT_INDEXED: LiteralString = " AND notification_id > (SELECT position FROM indexed)"
OF_STREAM: LiteralString = " AND originator_id = %(stream)s"
NEWEST: LiteralString = " ORDER BY position DESC LIMIT %(limit)s"
OLDEST: LiteralString = " ORDER BY position LIMIT %(limit)s"
ROWS: LiteralString = f"""
SELECT found.position, originator_id, originator_version, topic, state
FROM found LEFT JOIN {EVENTS} AS b ON notification_id = found.position
ORDER BY found.position"""

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
COUNT: LiteralString = """
SELECT coalesce(sum(events), 0)::bigint FROM {schema}.topics
WHERE %(topics)s::text[] IS NULL OR topic = ANY (%(topics)s)
"""
DAYS: LiteralString = "SELECT day, events FROM {schema}.days ORDER BY day DESC LIMIT 366"
TIMES: LiteralString = "SELECT min(first_at), max(last_at) FROM {schema}.blocks"
# Columns as those of `TOPICS`, then the day and the times.
TAIL: LiteralString = (
    "SELECT "
    + TOPIC
    + f""", count(*), count(*) FILTER (WHERE originator_version = 1),
       coalesce(sum(octet_length(state)), 0)::bigint, count(*) FILTER (WHERE f.recorded_at IS NULL),
       (f.recorded_at AT TIME ZONE 'UTC')::date, min(f.recorded_at), max(f.recorded_at)
FROM {EVENTS} AS b LEFT JOIN LATERAL {{schema}}.read(b.state) AS f ON true
WHERE notification_id > %(indexed)s AND notification_id <= %(head)s
GROUP BY 1, 6
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


@dataclass(frozen=True)
class LogStats:
    """What the log holds up to position `head`; sizes in bytes.

    `unreadable` events have no time. `days` are the last 366 (UTC) that have events.
    """

    topics: Counter[str]
    days: Counter[date]
    head: int
    indexed: int
    table_bytes: int
    index_bytes: int
    audit_bytes: int
    events: int
    streams: int
    state_bytes: int
    unreadable: int
    first_at: datetime | None
    last_at: datetime | None


async def find(
    conn: AsyncConnection[TupleRow], audit: Audit, search: Search, limit: int
) -> EventPage:
    """Return the first `limit` events that match, newest or oldest first."""
    values = asdict(search) | {
        "types": list(search.types) or None,
        "schema": audit.schema,
        "block": BLOCK_POSITIONS,
        "limit": limit + 1,
    }
    async with conn.transaction(), conn.cursor(binary=True) as cursor:
        await cursor.execute(PLANNING)
        # Planned for these values each time: how rare they are decides which index is used.
        await cursor.execute(audit.sql(_statement(values)), values, prepare=False)
        rows = await cursor.fetchall()
    shown = rows[:limit]
    # A position that is indexed and no longer in the log is for the verification to find.
    events = [Stored(*row) for row in shown if row[1] is not None]
    return EventPage(events, shown[-1][0] if len(rows) > limit else None)


def _statement(values: Mapping[str, object]) -> LiteralString:
    """Return the query of one page, whose `limit` is one more than the page has."""
    order = NEWEST if values["newest_first"] else OLDEST
    topics, contents = _conditions(ABOUT_TOPIC, values), _conditions(ABOUT_CONTENT, values)
    log = LOG + (WITH_CONTENT if contents else "") + LOG_WITHIN + topics + contents
    if values["stream"] is not None:
        found = log + OF_STREAM + order
    else:
        wanted = WITHIN + contents + _conditions(ABOUT_BLOCK, values)
        indexed = BY_POSITION + wanted
        # A conversation is short, or at least its own: its index needs no topics to be in order.
        if topics or (values["actor"] is not None and values["correlation_id"] is None):
            indexed = BY_TOPIC + topics + OF_TOPIC + wanted + order + ") AS e"
        both = f"({indexed}{order}) UNION ALL ({log}{NOT_INDEXED}{order})"
        found = f"SELECT position FROM ({both}) AS merged{order}"
    rows = ROWS + (" DESC" if values["newest_first"] else "")
    return f"{INDEXED}, found AS ({found}){rows}"


def _conditions(about: dict[str, LiteralString], values: Mapping[str, object]) -> LiteralString:
    """Return those conditions for which there is a value."""
    return "".join(f" AND {sql}" for name, sql in about.items() if values[name] is not None)


async def stats(conn: AsyncConnection[TupleRow], audit: Audit) -> LogStats:
    """Count; takes as long as there are topics, days and events that are not indexed yet."""
    async with conn.transaction(), conn.cursor(binary=True) as cursor:
        await cursor.execute(SNAPSHOT)
        await cursor.execute(PLANNING)
        # First what fails where there is no index yet.
        counts = await _rows(cursor, audit.sql(TOPICS))
        (sizes,) = await _rows(cursor, SIZES, (audit.schema,))
        days = await _rows(cursor, audit.sql(DAYS))
        times = await _rows(cursor, audit.sql(TIMES))
        tail = await _rows(cursor, audit.sql(TAIL), {"indexed": sizes[1], "head": sizes[0]})
    topics: Counter[str] = Counter()
    by_day: Counter[date] = Counter(dict(days))
    for *count, day, first_at, last_at in tail:
        counts.append(tuple(count))
        times.append((first_at, last_at))
        if day is not None:
            by_day[day] += count[1]
    for topic, events, *_ in counts:
        topics[topic] += events
    totals = [sum(count[place] for count in counts) for place in range(1, 5)]
    known = [time for pair in times for time in pair if time is not None]
    first, last = min(known, default=None), max(known, default=None)
    return LogStats(topics, by_day, *[*sizes, *totals, first, last])


async def _rows(cursor: AsyncCursor[TupleRow], query: bytes, values: Any = None) -> list[TupleRow]:
    await cursor.execute(query, values)
    return await cursor.fetchall()


async def head_of(conn: AsyncConnection[TupleRow]) -> int:
    """Return the last position of the log; everything up to it is there, and stays as it is."""
    row = await (await conn.execute(HEAD)).fetchone()
    return int(row[0]) if row else 0


async def watch(
    conn: AsyncConnection[TupleRow], audit: Audit, search: Search, after: int, wake: asyncio.Event
) -> AsyncIterator[Stored]:
    """Yield the matching events after a position, as they come; each record sets `wake`."""
    wanted = replace(search, newest_first=False)
    while True:
        head = await head_of(conn)
        while after < head:
            page = await find(conn, audit, replace(wanted, after=after, before=head + 1), PAGE)
            for stored in page.events:
                yield stored
            after = page.following or head
        await woken(wake, POLL_SECONDS)

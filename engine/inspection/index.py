"""The audit's index of the log: when, what kind, who and why of every event, by its position.

PostgreSQL makes it from the stored bytes, so that no event costs this process anything. Contents
are not copied: they are read from the log.
"""

from __future__ import annotations

from typing import ClassVar, LiteralString

from psycopg import Cursor, DataError, OperationalError
from psycopg.rows import TupleRow

from engine.connections import is_outage
from engine.event_store import EVENTS
from engine.projection import RangeProjection

BLOCK_POSITIONS = 1_000
"""Positions 1 to 1,000 are block 0; a block knows between which times its events lie."""

# What is odd (no text, too long for an index, a time without an offset) counts as not there.
FIELDS: LiteralString = """
    CASE WHEN payload ->> 'timestamp' ~ '^[0-9]+-[0-9]+-[0-9]+T.*([+-][0-9]+:[0-9]+|Z)$'
          AND pg_input_is_valid(payload ->> 'timestamp', 'timestamptz')
          AND (payload ->> 'timestamp')::timestamptz BETWEEN '0001-01-02Z' AND '9999-12-30Z'
         THEN (payload ->> 'timestamp')::timestamptz END AS recorded_at,
    CASE WHEN jsonb_typeof(payload -> 'actor') = 'string'
          AND octet_length(payload ->> 'actor') <= 1024 THEN payload ->> 'actor' END AS actor,
    CASE WHEN jsonb_typeof(payload -> 'correlation_id') = 'string'
          AND octet_length(payload ->> 'correlation_id') <= 1024
         THEN payload ->> 'correlation_id' END AS correlation_id,
    CASE WHEN jsonb_typeof(payload -> 'causation_id') = 'string'
          AND octet_length(payload ->> 'causation_id') <= 1024
         THEN payload ->> 'causation_id' END AS causation_id
"""
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
# Three times as fast, and raise for bytes that are no JSON.
READ_FAST: LiteralString = (
    "SELECT position, version, bytes, topic, "
    + FIELDS
    + "FROM (SELECT notification_id AS position, originator_version AS version, "
    + "octet_length(state) AS bytes, "
    + TOPIC
    + " AS topic, convert_from(state, 'UTF8')::jsonb AS payload"
    + STRETCH
    + " OFFSET 0) AS e"
)
READ_ANY: LiteralString = (
    "SELECT position, version, bytes, topic, "
    "f.recorded_at, f.actor, f.correlation_id, f.causation_id "
    "FROM (SELECT notification_id AS position, originator_version AS version, "
    "octet_length(state) AS bytes, state, "
    + TOPIC
    + " AS topic"
    + STRETCH
    + ") AS e LEFT JOIN LATERAL {schema}.read(e.state) AS f ON true"
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
INSERT INTO {schema}.events (
    position, recorded_at, topic, actor, correlation_id, causation_id)
SELECT position, recorded_at, topic, actor, correlation_id,
       nullif(causation_id, correlation_id)
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

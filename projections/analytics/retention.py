"""How long single events are kept, and how far back counts may still change.

Rows stop changing before they go: a refresh of TimescaleDB's rollups over rows that are gone would
erase their sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from infra.advisory_locks import Lock, hold
from projections.analytics.schema import Shape, state

log = structlog.get_logger(__name__)

# Before rows go, what came late for them has so long to come into the rollups.
COUNTED, REFRESHED = timedelta(days=10), timedelta(days=5)

KEPT = b"SELECT days, floor FROM analytics.retention"
# What was kept for less time until now is gone, or may go at any moment.
KEEP = b"""
UPDATE analytics.retention
SET floor = greatest(floor, date_trunc('day', %b::timestamptz
                                - make_interval(days => least(days, %b::int)), 'UTC')),
    days = %b::int
RETURNING days, floor
"""

BATCH_ROWS = 10_000
OLD: Mapping[str, str] = {
    "sessions": "latest < %(floor)s",
    "video_viewers": "day < (%(floor)s::timestamptz AT TIME ZONE 'UTC')::date",
}
# Of the hypertable and of the continuous aggregate whole chunks are dropped, by the policies.
OLD_PLAIN: Mapping[str, str] = {
    "video_analytics": "event_type IN ('view', 'like', 'comment', 'watch_time', 'share') "
    'AND "timestamp" < %(floor)s',
    "video_hourly": "bucket < %(floor)s",
}
# A consumer may hold a session that goes on after all; neither waits for the other.
DELETE = """
DELETE FROM analytics.{table} WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM analytics.{table} WHERE {old} LIMIT %(batch)s FOR UPDATE SKIP LOCKED))
"""

# The refresh first, and the drop an hour later: one that has begun with an older window would erase
# the sums of what was dropped meanwhile.
REFRESH_WITHIN = b"""
SELECT alter_job(job_id, config => jsonb_set(config, '{start_offset}', to_jsonb(%b::text)))
FROM timescaledb_information.jobs
WHERE hypertable_schema = 'analytics' AND proc_name = 'policy_refresh_continuous_aggregate'
  AND (config->>'start_offset')::interval <> %b::interval
"""
DROP_AFTER = b"""
SELECT alter_job(job_id, config => jsonb_set(config, '{drop_after}', to_jsonb(%b::text)),
                 next_start => now() + interval '1 hour')
FROM timescaledb_information.jobs
WHERE hypertable_schema = 'analytics' AND proc_name = 'policy_retention'
  AND (config->>'drop_after')::interval <> %b::interval
"""


@dataclass(frozen=True, slots=True)
class Retention:
    """Rows go after `days`; those before `floor`, the start of a day (UTC), are gone for good."""

    days: int
    floor: datetime

    def going(self, now: datetime) -> datetime:
        """Return the time before which rows may go at any moment."""
        return max(self.floor, now - timedelta(days=self.days))

    def counted_since(self, now: datetime) -> datetime:
        """Return the time before which events come too late to be counted."""
        return self.going(now) + COUNTED

    def refreshed_since(self, now: datetime) -> datetime:
        """Return the time before which rollups stay as they are."""
        return self.going(now) + REFRESHED


def kept(conn: Connection[Any]) -> Retention:
    """Return what the database keeps now; raise psycopg.Error."""
    return _told(conn, KEPT)


def keep(conn: Connection[Any], days: int, now: datetime) -> Retention:
    """Keep rows for so many days from now on; raise psycopg.Error."""
    return _told(conn, KEEP, now, days, days)


def _told(conn: Connection[Any], query: bytes, *given: Any) -> Retention:
    row = conn.execute(query, given).fetchone()
    if row is None:
        raise LookupError("analytics.retention is empty: its one row was made with it")
    return Retention(row[0], row[1].astimezone(UTC))


def prune(conn: Connection[TupleRow], days: int, now: datetime) -> Mapping[str, int]:
    """Keep what happened in the last `days`; return how many rows went, by table.

    Do nothing where another process prunes, or where there are no tables yet. `conn` is in
    autocommit mode. Raise psycopg.Error.
    """
    gone: Counter[str] = Counter()
    with hold(conn, Lock.ANALYTICS_PRUNING, wait=False) as mine:
        found = state(conn) if mine else None
        if found is None:
            return gone
        kept = keep(conn, days, now)
        if found.shape is Shape.TIMESCALE:
            _tell_policies(conn, kept, now)
        tables = OLD if found.shape is Shape.TIMESCALE else {**OLD, **OLD_PLAIN}
        for table, old in tables.items():
            gone[table] = _delete(conn, table, old, kept.floor)
    return gone


def _tell_policies(conn: Connection[TupleRow], kept: Retention, now: datetime) -> None:
    within = f"{(now - kept.going(now) - REFRESHED).days} days"
    after = f"{kept.days} days"
    with conn.transaction():
        changed = conn.execute(REFRESH_WITHIN, (within, within)).rowcount
        changed += conn.execute(DROP_AFTER, (after, after)).rowcount
    if changed:
        log.info("analytics_policies_changed", refresh_within=within, drop_after=after)


def _delete(conn: Connection[TupleRow], table: str, old: str, floor: datetime) -> int:
    statement = DELETE.format(table=table, old=old).encode()
    gone, went = 0, BATCH_ROWS
    while went == BATCH_ROWS:
        went = conn.execute(statement, {"floor": floor, "batch": BATCH_ROWS}).rowcount
        gone += went
    return gone

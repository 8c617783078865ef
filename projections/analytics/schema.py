"""The tables of the analytics: made from SQL files, refreshed by TimescaleDB, pruned when old.

Each file beside this one is applied once, in order. `0002_rollups.plain.sql` and
`0002_rollups.timescale.sql` are one version in two shapes; a database keeps the shape that it began
with.

Rows stop changing before they go: a refresh of TimescaleDB's rollups over rows that are gone would
erase their sums.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import psycopg
import structlog
from psycopg import Connection
from psycopg.errors import DeadlockDetected, InsufficientPrivilege, LockNotAvailable, UndefinedTable

from engine import installation
from engine.installation import MigrationSet, UnknownMigration, migration_lock
from infra.advisory_locks import Lock, hold
from infra.errors import describe
from infra.metrics import counter
from projections.analytics.calendar import DAY, HOUR, start_of_day, start_of_hour

log = structlog.get_logger(__name__)

ANALYTICS = MigrationSet("analytics", Path(__file__).with_name("migrations"), "analytics")

SHAPES = b"""
CREATE SCHEMA IF NOT EXISTS analytics;
CREATE TABLE IF NOT EXISTS analytics.shape (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    shape text NOT NULL)
"""
# Looked at first: CREATE EXTENSION where it is not preloaded breaks the connection. The setting is
# the loader's own, which anybody may see, unlike shared_preload_libraries. Under the other licence
# continuous aggregates and compression are missing; which one it is may be known only once the
# extension is there.
USABLE = b"""
SELECT (EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
        OR EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')
       AND EXISTS (SELECT FROM pg_settings WHERE name = 'timescaledb.max_background_workers'))
   AND coalesce(current_setting('timescaledb.license', true), 'timescale') = 'timescale'
"""
EXTEND = b"CREATE EXTENSION IF NOT EXISTS timescaledb"
STATE = b"""
SELECT shape, (SELECT coalesce(max(version), 0) FROM analytics.migrations),
       (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb')
FROM analytics.shape
"""
UNUSED = "TimescaleDB is there and not used, see docs/analytics.md"

# What else refreshes or compresses the same hours, such as a policy, is waited for this long; then
# a policy's next run does it.
PATIENCE_SECONDS, FIRST_PAUSE_SECONDS = 10.0, 0.02
REFRESH = b"CALL refresh_continuous_aggregate(%b, %b::timestamptz, %b::timestamptz)"
REFRESH_AGAIN = b"""
CALL refresh_continuous_aggregate(%b, %b::timestamptz, %b::timestamptz, force => true)
"""
ANALYTICS_REFRESH_FAILURES = counter(
    "backlot_analytics_refresh_failures",
    "Times that late events could not be brought into TimescaleDB's rollups at once.",
)

# Before rows go, what came late for them has so long to come into the rollups.
COUNTED, REFRESHED = timedelta(days=10), timedelta(days=5)

RETENTION = b"SELECT days, floor FROM analytics.retention"
# What was kept for less time until now is gone, or may go at any moment.
CHANGE_RETENTION = b"""
UPDATE analytics.retention
SET floor = greatest(floor, date_trunc('day', %b::timestamptz
                                - make_interval(days => least(days, %b::int)), 'UTC')),
    days = %b::int
"""
BATCH_ROWS = 10_000
OLD: Mapping[str, str] = {
    "sessions": "latest < %(floor)s",
    "participants": "latest < %(floor)s",
    "viewers_hourly": "bucket < %(floor)s",
    "audience_hourly": "bucket < %(floor)s",
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


class Shape(StrEnum):
    """What the analytics stand on."""

    PLAIN = "plain"
    TIMESCALE = "timescale"


@dataclass(frozen=True, slots=True)
class SchemaState:
    """What a database has: its shape, its version, the extension's version where it is there.

    `unused` is whether plain tables stand on a server that could do better.
    """

    shape: Shape
    version: int
    extension: str | None
    unused: bool = False

    def __str__(self) -> str:
        what = "plain tables" if self.shape is Shape.PLAIN else f"TimescaleDB {self.extension}"
        text = f"{what}, schema version {self.version}"
        return f"{text}; {UNUSED}" if self.unused else text


def migrate(conn: Connection[Any]) -> SchemaState:
    """Bring the schema `analytics` up to date; many processes may do so at once, again and again.

    `conn` has to be in autocommit mode. Raise UnknownMigration where a newer or another release has
    been here, and psycopg.Error.
    """
    with migration_lock(conn):
        conn.execute(SHAPES)
        installation.migrate(conn, ANALYTICS, _shape(conn))
        found = state(conn)
    if found is None:
        raise UnknownMigration("The schema `analytics` was dropped while it was being made.")
    return found


def state(conn: Connection[Any]) -> SchemaState | None:
    """Return what is there now; None where nothing is."""
    try:
        row = conn.execute(STATE).fetchone()
    except UndefinedTable:
        return None
    if row is None:
        return None
    shape = Shape(row[0])
    return SchemaState(shape, row[1], row[2], shape is Shape.PLAIN and _is_usable(conn))


def _shape(conn: Connection[Any]) -> Shape:
    """Return the shape of this database, chosen when its analytics begin."""
    row = conn.execute(b"SELECT shape FROM analytics.shape").fetchone()
    if row is not None:
        return Shape(row[0])
    shape = Shape.TIMESCALE if _is_usable(conn) and _extend(conn) else Shape.PLAIN
    conn.execute(b"INSERT INTO analytics.shape (shape) VALUES (%b)", (shape,))
    log.info("analytics_shape", shape=str(shape))
    return shape


def _is_usable(conn: Connection[Any]) -> bool:
    """Return whether the server has TimescaleDB with all that the analytics want of it."""
    (usable,) = conn.execute(USABLE).fetchone() or (False,)
    return bool(usable)


def _extend(conn: Connection[Any]) -> bool:
    """Make the extension; return False where this role may not, or where it lacks the rest."""
    try:
        conn.execute(EXTEND)
    except InsufficientPrivilege as error:
        log.warning("timescaledb_refused", error=describe(error), using="plain tables")
        return False
    return _is_usable(conn)


def refresh(conn: Connection[Any], times: Iterable[datetime], now: datetime) -> None:
    """Bring what has changed at these times into TimescaleDB's rollups; not in a transaction.

    Below its watermark a continuous aggregate shows only what it has materialised, so the hours and
    days of late events are refreshed at once. The present hour and day lie above every watermark. A
    failure is logged, and left to the policies, which run within minutes.
    """
    hour = start_of_hour(now)
    late = [at for at in times if at < hour]
    if not late:
        return
    try:
        # Each of two refreshes of the same hours at once would refuse the other.
        with hold(conn, Lock.ANALYTICS_REFRESH):
            since = retention_of(conn).refreshed_since(now)
            _refresh_rollups(conn, [at for at in late if at >= since], start_of_day(hour))
    except psycopg.Error as error:
        ANALYTICS_REFRESH_FAILURES.inc()
        log.warning("analytics_refresh_failed", error=describe(error))


def refresh_day(conn: Connection[Any], since: datetime, now: datetime) -> None:
    """Refresh TimescaleDB's rollups of a day; not in a transaction. Raise psycopg.Error.

    The present hour and day need no refresh, and must have none: what comes for them later would
    stay hidden.
    """
    hour, end = start_of_hour(now), since + DAY
    with hold(conn, Lock.ANALYTICS_REFRESH):
        if since < hour:
            conn.execute(REFRESH_AGAIN, ("analytics.video_hourly", since, min(end, hour)))
        if end <= hour:
            conn.execute(REFRESH_AGAIN, ("analytics.video_daily", since, end))


def _refresh_rollups(conn: Connection[Any], late: list[datetime], today: datetime) -> None:
    if not late:
        return
    first, last = min(late), max(late)
    _refresh(conn, "video_hourly", start_of_hour(first), start_of_hour(last) + HOUR)
    if first < today:
        _refresh(conn, "video_daily", start_of_day(first), min(start_of_day(last) + DAY, today))


def _refresh(conn: Connection[Any], view: str, since: datetime, until: datetime) -> None:
    deadline, pause = time.monotonic() + PATIENCE_SECONDS, FIRST_PAUSE_SECONDS
    while True:
        try:
            conn.execute(REFRESH, (f"analytics.{view}", since, until))
        except (LockNotAvailable, DeadlockDetected):
            if time.monotonic() > deadline:
                raise
            time.sleep(pause)
            pause *= 2
        else:
            return


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


def retention_of(conn: Connection[Any]) -> Retention:
    """Return what the database keeps now; raise psycopg.Error."""
    row = conn.execute(RETENTION).fetchone()
    if row is None:
        raise LookupError("analytics.retention is empty: its one row was made with it")
    return Retention(row[0], row[1].astimezone(UTC))


def prune(conn: Connection[Any], days: int, now: datetime) -> Mapping[str, int]:
    """Keep what happened in the last `days`; return how many rows went, by table.

    Do nothing where another process prunes, or where there are no tables yet. `conn` is in
    autocommit mode. Raise psycopg.Error.
    """
    gone: Counter[str] = Counter()
    with hold(conn, Lock.ANALYTICS_PRUNING, wait=False) as mine:
        found = state(conn) if mine else None
        if found is None:
            return gone
        conn.execute(CHANGE_RETENTION, (now, days, days))
        retention = retention_of(conn)
        if found.shape is Shape.TIMESCALE:
            _change_policies(conn, retention, now)
        tables = OLD if found.shape is Shape.TIMESCALE else {**OLD, **OLD_PLAIN}
        for table, old in tables.items():
            gone[table] = _delete(conn, table, old, retention.floor)
    return gone


def _change_policies(conn: Connection[Any], retention: Retention, now: datetime) -> None:
    within = f"{(now - retention.going(now) - REFRESHED).days} days"
    after = f"{retention.days} days"
    with conn.transaction():
        changed = conn.execute(REFRESH_WITHIN, (within, within)).rowcount
        changed += conn.execute(DROP_AFTER, (after, after)).rowcount
    if changed:
        log.info("analytics_policies_changed", refresh_within=within, drop_after=after)


def _delete(conn: Connection[Any], table: str, old: str, floor: datetime) -> int:
    statement = DELETE.format(table=table, old=old).encode()
    gone, went = 0, BATCH_ROWS
    while went == BATCH_ROWS:
        went = conn.execute(statement, {"floor": floor, "batch": BATCH_ROWS}).rowcount
        gone += went
    return gone

"""Continuous aggregates and what comes late: below their watermark they show only what they have
materialised, so that those hours and days are refreshed at once; their policies do the rest."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import structlog
from psycopg import Connection
from psycopg.errors import DeadlockDetected, LockNotAvailable
from psycopg.rows import TupleRow

from infra.advisory_locks import Lock, lock, unlock
from infra.errors import describe
from infra.metrics import counter
from projections.analytics.retention import kept

log = structlog.get_logger(__name__)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)

# What else refreshes or compresses the same hours, such as a policy, is waited for this long; then
# a policy's next run does it.
PATIENCE_SECONDS, FIRST_PAUSE_SECONDS = 10.0, 0.02

REFRESH = b"CALL refresh_continuous_aggregate(%b, %b::timestamptz, %b::timestamptz)"

ANALYTICS_REFRESH_FAILURES = counter(
    "backlot_analytics_refresh_failures",
    "Times that late events could not be brought into TimescaleDB's rollups at once.",
)


def refresh(conn: Connection[TupleRow], times: Iterable[datetime], now: datetime) -> None:
    """Bring what has changed at these times into the rollups; not in a transaction.

    The present hour and day lie above every watermark and are seen without it. A failure is told
    and left to the policies, which come by within minutes.
    """
    hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    late = [at.astimezone(UTC) for at in times if at < hour]
    if not late:
        return
    try:
        with _alone(conn):
            since = kept(conn).refreshed_since(now)
            _bring_in(conn, [at for at in late if at >= since], hour)
    except psycopg.Error as error:
        ANALYTICS_REFRESH_FAILURES.inc()
        log.warning("analytics_refresh_failed", error=describe(error))


def _bring_in(conn: Connection[TupleRow], late: list[datetime], hour: datetime) -> None:
    if not late:
        return
    first, last = min(late), max(late)
    _refresh(conn, "video_hourly", first, last, HOUR)
    if first < hour.replace(hour=0):
        _refresh(conn, "video_daily", first, min(last, hour.replace(hour=0) - HOUR), DAY)


@contextmanager
def _alone(conn: Connection[TupleRow]) -> Iterator[None]:
    """Of the keepers: each of two refreshes of the same hours at once would refuse the other."""
    lock(conn, Lock.ANALYTICS_REFRESH)
    try:
        yield
    finally:
        if not conn.closed:
            unlock(conn, Lock.ANALYTICS_REFRESH)


def _refresh(
    conn: Connection[TupleRow], view: str, first: datetime, last: datetime, bucket: timedelta
) -> None:
    since, until = (_start(at, bucket) for at in (first, last))
    given = (f"analytics.{view}", since, until + bucket)
    deadline, pause = time.monotonic() + PATIENCE_SECONDS, FIRST_PAUSE_SECONDS
    while True:
        try:
            conn.execute(REFRESH, given)
        except (LockNotAvailable, DeadlockDetected):
            if time.monotonic() > deadline:
                raise
            time.sleep(pause)
            pause *= 2
        else:
            return


def _start(at: datetime, bucket: timedelta) -> datetime:
    """Of the bucket of a time, in UTC."""
    hour = at.replace(minute=0, second=0, microsecond=0)
    return hour.replace(hour=0) if bucket == DAY else hour

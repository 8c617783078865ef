"""Refreshes TimescaleDB's continuous aggregates for events that come late.

Below its watermark an aggregate shows only what it has materialised, so the hours and days of late
events are refreshed at once. The policies of the aggregates do the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime, timedelta

import psycopg
import structlog
from psycopg import Connection
from psycopg.errors import DeadlockDetected, LockNotAvailable
from psycopg.rows import TupleRow

from infra.advisory_locks import Lock, hold
from infra.errors import describe
from infra.metrics import counter
from projections.analytics.retention import kept
from projections.analytics.windows import DAY, HOUR, start_of_day, start_of_hour

log = structlog.get_logger(__name__)

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

    The present hour and day lie above every watermark and need no refresh. A failure is logged, and
    left to the policies, which run within minutes.
    """
    hour = start_of_hour(now)
    late = [at for at in times if at < hour]
    if not late:
        return
    try:
        # Each of two refreshes of the same hours at once would refuse the other.
        with hold(conn, Lock.ANALYTICS_REFRESH):
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
    today = start_of_day(hour)
    if first < today:
        _refresh(conn, "video_daily", first, min(last, today - HOUR), DAY)


def _refresh(
    conn: Connection[TupleRow], view: str, first: datetime, last: datetime, bucket: timedelta
) -> None:
    start = start_of_day if bucket == DAY else start_of_hour
    given = (f"analytics.{view}", start(first), start(last) + bucket)
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

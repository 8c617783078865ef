"""Continuous aggregates and what comes late: below their watermark they show only what they have
materialised, so that those hours and days are refreshed at once; their policies do the rest."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import psycopg
import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from infra import metrics
from projections.poison import describe

log = structlog.get_logger(__name__)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
# As in the policies. Older raw rows may be gone, and refreshing erases what was counted of them.
OLDEST = timedelta(days=720)

REFRESH = b"CALL refresh_continuous_aggregate(%b, %b::timestamptz, %b::timestamptz)"


def refresh(conn: Connection[TupleRow], times: Iterable[datetime], now: datetime) -> None:
    """Bring what has changed at these times into the rollups; not in a transaction.

    The present hour and day lie above every watermark and are seen without it. A failure is told
    and left to the policies, which come by within minutes.
    """
    hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    late = [at.astimezone(UTC) for at in times if now - OLDEST < at < hour]
    if not late:
        return
    first, last = min(late), max(late)
    try:
        _refresh(conn, "video_hourly", first, last, HOUR)
        if first < hour.replace(hour=0):
            _refresh(conn, "video_daily", first, min(last, hour.replace(hour=0) - HOUR), DAY)
    except psycopg.Error as error:
        metrics.ANALYTICS_REFRESH_FAILURES.inc()
        log.warning("analytics_refresh_failed", error=describe(error))


def _refresh(
    conn: Connection[TupleRow], view: str, first: datetime, last: datetime, bucket: timedelta
) -> None:
    since, until = (_start(at, bucket) for at in (first, last))
    conn.execute(REFRESH, (f"analytics.{view}", since, until + bucket))


def _start(at: datetime, bucket: timedelta) -> datetime:
    """Of the bucket of a time, in UTC."""
    hour = at.replace(minute=0, second=0, microsecond=0)
    return hour.replace(hour=0) if bucket == DAY else hour

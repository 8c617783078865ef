"""From which day to which one there is anything to compare."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta

from psycopg import Connection
from psycopg.rows import TupleRow

from projections.analytics.migrating import Shape
from projections.analytics.retention import kept
from projections.analytics.rules import AHEAD

DAY = timedelta(days=1)

ROWS = {
    # Per type, since that is how they are indexed.
    Shape.PLAIN: b"""
SELECT (SELECT min("timestamp") FROM analytics.video_analytics WHERE event_type = kind),
       (SELECT max("timestamp") FROM analytics.video_analytics WHERE event_type = kind)
FROM unnest(ARRAY['view', 'like', 'comment', 'watch_time', 'share']) AS kind
""",
    # By the chunks: to look into all of them takes a lock on each.
    Shape.TIMESCALE: b"""
SELECT range_start, range_end FROM timescaledb_information.chunks
WHERE hypertable_schema = 'analytics' AND hypertable_name = 'video_analytics'
""",
}
SPAN = b"""
SELECT greatest(min(low), %(floor)s), least(max(high), %(ceiling)s) FROM (
    SELECT min("timestamp"), max("timestamp") FROM told_rows
    UNION ALL SELECT min(bucket), max(bucket) FROM analytics.video_daily
    UNION ALL SELECT min(bucket), max(bucket) FROM analytics.video_hourly
    UNION ALL (ROWS)) AS seen(low, high)
"""


def days(
    conn: Connection[TupleRow], shape: Shape, viewed: Collection[date], now: datetime
) -> list[datetime]:
    """Every day (UTC) that can be compared: of older ones rows may be gone, or came too late.

    `viewed` are days with viewers.
    """
    floor = _start(kept(conn).counted_since(now)) + DAY
    ceiling = _start(now + AHEAD)
    query = SPAN.replace(b"ROWS", ROWS[shape])
    low, high = conn.execute(query, {"floor": floor, "ceiling": ceiling}).fetchone() or (None, None)
    known = [at for at in (low, high) if at is not None]
    known += [min(max(_midnight(day), floor), ceiling) for day in viewed]
    if not known:
        return []
    first, last = _start(min(known)), _start(max(known))
    return [first + DAY * number for number in range((last - first).days + 1)]


def _start(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)

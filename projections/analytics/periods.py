"""What happened in a period: by the days or hours of a time zone, of one video or of many.

Rollups are by the hour (UTC). So a day of a zone is a sum of hours, of 23 or 25 where clocks are
changed; what a zone such as India's cuts off an hour is counted from the events of that hour. Both
are kept for ANALYTICS_RETENTION_DAYS. Days in UTC have sums of their own, which are kept for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from math import fsum
from typing import NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from infra.postgres.connection import column
from projections.analytics.calendar import (
    DAY,
    HOUR,
    start_of_day,
    start_of_hour,
    start_of_next_day,
)
from projections.analytics.schema import RETENTION, Retention

MOST_POINTS = 4_000
"""A series has so many points at most: ten years of days, or five months of hours."""
MOST_VIEWS = 500_000
"""Viewers of a period are counted from its views; where these are more, they are not told."""
MOST_CHANNELS = 50
MOST_VIDEOS = 20_000
"""Of an owner with more videos, the sums are those of the newest."""

FIGURES = "views, likes, comments, shares, watch_seconds"
IN_PERIOD = "video_id = ANY (%(videos)b::uuid[]) AND {at} >= %(since)b AND {at} < %(until)b"
DAYS = f"""
SELECT bucket AS at, {FIGURES} FROM analytics.video_daily WHERE {IN_PERIOD.format(at="bucket")}
"""
# As the rollups count: `projections/analytics/migrations`.
HOURS = f"""
SELECT bucket AS at, {FIGURES} FROM analytics.video_hourly
WHERE {IN_PERIOD.format(at="bucket")} AND bucket <> ALL (%(cut)b::timestamptz[])
UNION ALL
SELECT "timestamp",
       (event_type = 'view' AND (metadata->>'counts')::boolean)::int,
       CASE event_type WHEN 'like' THEN (metadata->>'delta')::bigint ELSE 0 END,
       CASE event_type WHEN 'comment' THEN (metadata->>'delta')::bigint ELSE 0 END,
       (event_type = 'share')::int,
       CASE event_type WHEN 'watch_time' THEN (metadata->>'seconds')::double precision ELSE 0 END
FROM unnest(%(cut)b::timestamptz[]) AS hour
JOIN analytics.video_analytics ON "timestamp" >= hour AND "timestamp" < hour + interval '1 hour'
WHERE {IN_PERIOD.format(at='"timestamp"')}
"""
SUMS = """
SELECT width_bucket(at, %(bounds)b::timestamptz[]) - 1 AS place, sum(views)::bigint,
       sum(likes)::bigint, sum(comments)::bigint, sum(shares)::bigint, sum(watch_seconds) / 60
FROM ({happened}) AS happened GROUP BY 1
"""
SUMS_OF_DAYS, SUMS_OF_HOURS = (SUMS.format(happened=each).encode() for each in (DAYS, HOURS))
# The row without a place is about the whole period. Whoever is nobody is a session.
VIEWERS = f"""
WITH viewed AS MATERIALIZED (
    SELECT width_bucket("timestamp", %(bounds)b::timestamptz[]) - 1 AS place,
           coalesce(user_id, 'session:' || (metadata->>'session')) AS viewer
    FROM analytics.video_analytics
    WHERE event_type = 'view' AND {IN_PERIOD.format(at='"timestamp"')}
    LIMIT {MOST_VIEWS} + 1)
SELECT place, count(DISTINCT viewer), count(*) FROM viewed GROUP BY GROUPING SETS ((place), ())
""".encode()
CHANNELS = f"""
SELECT metadata->>'channel', count(*), sum(count(*)) OVER ()::bigint
FROM analytics.video_analytics
WHERE event_type = 'share' AND {IN_PERIOD.format(at='"timestamp"')}
GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {MOST_CHANNELS}
""".encode()
OWNED = f"""
SELECT video_id, completed_at FROM analytics.videos
WHERE owner = %(owner)b AND completed_at IS NOT NULL AND NOT removed
      AND (listed OR %(unlisted)b::boolean)
ORDER BY completed_at DESC LIMIT {MOST_VIDEOS}
""".encode()
SNAPSHOT = b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


class UnfitPeriod(ValueError):
    """There is no such period, or it can't be told exactly; `field` is the parameter to change."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"`{field}`: {text}")
        self.field = field


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def zone_of(name: str) -> ZoneInfo:
    """Return a time zone by its name in the IANA's database; raise UnfitPeriod for another name."""
    if name not in _zones():
        raise UnfitPeriod("tz", "no time zone has that name; one is `Europe/Berlin`.")
    return ZoneInfo(name)


@dataclass(frozen=True, slots=True)
class Period:
    """From a time (`since`) until before another one, in buckets that begin at `starts`.

    Of the first bucket a part may lie before the period. All times are in UTC.
    """

    since: datetime
    until: datetime
    starts: tuple[datetime, ...]
    zone: ZoneInfo
    by_days: bool

    @property
    def bounds(self) -> list[datetime]:
        """Where the buckets begin within the period, and where the last one ends."""
        return [self.since, *self.starts[1:], self.until]

    @property
    def cut(self) -> list[datetime]:
        """The hours (UTC) of which a part is in one bucket, and a part in another or in none."""
        return sorted({start_of_hour(at) for at in self.bounds if start_of_hour(at) != at})

    @property
    def in_whole_days(self) -> bool:
        """Whether it begins and goes on by days in UTC, of which the sums are kept for good."""
        return all(start_of_day(at) == at for at in self.bounds[:-1]) and self.by_days

    def day_of(self, at: datetime) -> date | None:
        """Return the day of the zone that a bucket is; None where buckets are hours."""
        return at.astimezone(self.zone).date() if self.by_days else None


def last_hours(hours: int, zone: ZoneInfo, now: datetime, *, by_days: bool) -> Period:
    """Return the period of so many hours before the present one, and that."""
    since = start_of_hour(now) - hours * HOUR
    until = start_of_hour(now) + HOUR
    if not by_days:
        return _by_hours(since, until, zone)
    first, last = (at.astimezone(zone).date() for at in (since, until - timedelta(microseconds=1)))
    return Period(since, until, tuple(_midnights(first, last, zone)), zone, True)


def whole_days(
    first: date, last: date | None, zone: ZoneInfo, now: datetime, *, by_days: bool
) -> Period:
    """Return the period from the first until the last day, or today, in a zone.

    Raise UnfitPeriod.
    """
    today = now.astimezone(zone).date()
    last = min(last or today, today)
    if first > today:
        raise UnfitPeriod("from", "it lies ahead.")
    if first > last:
        raise UnfitPeriod("to", "it lies before `from`.")
    days = (last - first).days + 1
    if days * (1 if by_days else 25) > MOST_POINTS:
        most = MOST_POINTS if by_days else MOST_POINTS // 25
        raise UnfitPeriod("from", f"at most {most} days at once by {'day' if by_days else 'hour'}.")
    since, end = _midnight(first, zone), _midnight(last + DAY, zone)
    until = min(end, start_of_hour(now) + HOUR)
    if not by_days:
        return _by_hours(since, until, zone)
    return Period(since, until, tuple(_midnights(first, last, zone)), zone, True)


def _by_hours(since: datetime, until: datetime, zone: ZoneInfo) -> Period:
    if start_of_hour(since) != since:
        raise UnfitPeriod("bucket", "hours of this zone are no hours of UTC; ask for `bucket=day`.")
    hours = -((since - until) // HOUR)
    return Period(since, until, tuple(since + n * HOUR for n in range(hours)), zone, False)


def _midnights(first: date, last: date, zone: ZoneInfo) -> Iterable[datetime]:
    """Yield where each day begins; one that a zone has left out is none."""
    before = None
    for n in range((last - first).days + 1):
        at = _midnight(first + n * DAY, zone)
        if at != before:
            yield at
        before = at


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    """Return when a day begins: where clocks skip midnight, at the next time that there is."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


class Counts(NamedTuple):
    """What happened in the bucket that begins `at`; likes and comments are net of those undone."""

    at: datetime
    views: int = 0
    likes: int = 0
    comments: int = 0
    shares: int = 0
    watch_minutes: float = 0.0
    unique_viewers: int | None = None


@dataclass(frozen=True, slots=True)
class PeriodStats:
    """`totals.at` is where the period begins; the series has all buckets."""

    totals: Counts
    series: Sequence[Counts]


class SharesBy(NamedTuple):
    """How many shares said this channel; None: they said none."""

    channel: str | None
    shares: int


async def begin_snapshot(conn: AsyncConnection[TupleRow]) -> None:
    """Have all statements of a transaction that just began see the same moment."""
    await conn.execute(SNAPSHOT)


async def videos_of(
    conn: AsyncConnection[TupleRow], owner: str, *, unlisted: bool
) -> dict[UUID, datetime]:
    """Return an owner's videos, each with when it was completed; the public ones or all."""
    cursor = await conn.execute(OWNED, {"owner": owner, "unlisted": unlisted})
    return {video: at.astimezone(UTC) async for video, at in cursor}


async def kept_since(conn: AsyncConnection[TupleRow], now: datetime) -> datetime:
    """Return the time since which hours and single events are there, and stay for now."""
    ((days, floor),) = await (await conn.execute(RETENTION)).fetchall()
    return start_of_next_day(Retention(days, floor.astimezone(UTC)).going(now))


async def read_period(
    conn: AsyncConnection[TupleRow],
    videos: Sequence[UUID],
    period: Period,
    now: datetime,
    *,
    viewers: bool,
) -> PeriodStats:
    """Return what happened around these videos; with unique viewers where these can be told.

    Run it in a snapshot. Raise UnfitPeriod where it begins before what is kept.
    """
    kept = await kept_since(conn, now)
    if not period.in_whole_days:
        require_kept(period, kept)
    given = {
        "videos": column(list(videos)) if videos else "{}",
        "since": period.since,
        "until": period.until,
        "bounds": column(period.bounds),
        "cut": column(period.cut) if period.cut else "{}",
    }
    found = [Counts(at) for at in period.starts]
    query = SUMS_OF_DAYS if period.in_whole_days else SUMS_OF_HOURS
    for place, *counts in await (await conn.execute(query, given)).fetchall():
        found[place] = Counts(period.starts[place], *counts)
    totals = Counts(
        period.since,
        sum(each.views for each in found),
        sum(each.likes for each in found),
        sum(each.comments for each in found),
        sum(each.shares for each in found),
        fsum(each.watch_minutes for each in found),
    )
    if not (viewers and period.by_days):
        return PeriodStats(totals, found)
    return await _with_viewers(conn, PeriodStats(totals, found), given, kept)


async def _with_viewers(
    conn: AsyncConnection[TupleRow], stats: PeriodStats, given: dict[str, object], kept: datetime
) -> PeriodStats:
    """Return the same with unique viewers, but of days whose views are not all there."""
    rows = await (await conn.execute(VIEWERS, given)).fetchall()
    viewed = {place: viewers for place, viewers, _ in rows}
    if any(place is None and views > MOST_VIEWS for place, _, views in rows):
        return stats
    series = [
        each if each.at < kept else each._replace(unique_viewers=viewed.get(place, 0))
        for place, each in enumerate(stats.series)
    ]
    totals = stats.totals
    if totals.at >= kept:
        totals = totals._replace(unique_viewers=viewed.get(None, 0))
    return PeriodStats(totals, series)


def require_kept(period: Period, kept: datetime) -> None:
    """Raise UnfitPeriod where single hours of a period may be gone."""
    if period.since < kept:
        raise UnfitPeriod(
            "from",
            f"what is not by days in UTC is kept since {kept:%Y-%m-%dT%H:%M:%SZ}; begin later.",
        )


async def read_channels(
    conn: AsyncConnection[TupleRow], video_id: UUID, since: datetime, until: datetime
) -> tuple[list[SharesBy], int]:
    """Return how many shares said which channel, most first, and how many there are in all."""
    given = {"videos": column([video_id]), "since": since, "until": until}
    rows = await (await conn.execute(CHANNELS, given)).fetchall()
    return [SharesBy(channel, shares) for channel, shares, _ in rows], rows[0][2] if rows else 0

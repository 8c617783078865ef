"""The stats of a video from the rollups: totals, and a gapless series that adds up to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from enum import StrEnum
from math import fsum
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from infra.postgres.connection import fetch_as
from projections.analytics.calendar import DAY, start_of_day, start_of_hour, start_of_next_day

SERIES = """
WITH counted AS (
    SELECT date_trunc(%(unit)s, bucket, 'UTC') AS at, sum(views)::bigint AS views,
           sum(likes)::bigint AS likes, sum(comments)::bigint AS comments,
           sum(shares)::bigint AS shares, sum(watch_seconds) / 60 AS watch_minutes
    FROM ({happened}) AS happened
    GROUP BY 1)
SELECT at, coalesce(views, 0) AS views, coalesce(likes, 0) AS likes,
       coalesce(comments, 0) AS comments, coalesce(shares, 0) AS shares,
       coalesce(watch_minutes, 0) AS watch_minutes
FROM generate_series(%(first)s::timestamptz, %(now)s::timestamptz, %(step)s::interval) AS laid (at)
LEFT JOIN counted USING (at)
ORDER BY at
"""
BY_HOURS = """
SELECT bucket, views, likes, comments, shares, watch_seconds FROM analytics.video_hourly
WHERE video_id = %(video)s AND bucket >= %(since)s
"""
# Only what the range's beginning has cut off a day is taken by the hour.
BY_DAYS = f"""
{BY_HOURS} AND bucket < %(whole_day)s
UNION ALL
SELECT bucket, views, likes, comments, shares, watch_seconds FROM analytics.video_daily
WHERE video_id = %(video)s AND bucket >= %(whole_day)s
"""
# Viewers are kept by whole days (UTC). Where the range begins within one, its events are read.
# Within a day each viewer is there once; at all, they are hashed rather than sorted.
VIEWERS = """
WITH viewed AS MATERIALIZED (
    SELECT day, viewer FROM analytics.video_viewers
    WHERE video_id = %(video)s AND day >= (%(whole_day)s::timestamptz AT TIME ZONE 'UTC')::date
      AND day <= (%(now)s::timestamptz AT TIME ZONE 'UTC')::date
    UNION ALL
    SELECT DISTINCT (%(since)s::timestamptz AT TIME ZONE 'UTC')::date,
           coalesce(user_id, 'session:' || (metadata->>'session'))
    FROM analytics.video_analytics
    WHERE video_id = %(video)s AND event_type = 'view'
      AND "timestamp" >= %(since)s AND "timestamp" < %(whole_day)s)
SELECT day, count(*) FROM viewed GROUP BY day
UNION ALL
SELECT NULL, count(*) FROM (SELECT viewer FROM viewed GROUP BY viewer) AS viewers
"""
# Who viewed before this is not kept any more.
FLOOR = b"SELECT floor FROM analytics.retention"
EARLIEST = b"SELECT min(bucket) FROM analytics.video_daily WHERE video_id = %s AND bucket <= %s"


class Range(StrEnum):
    """How far back the stats go."""

    DAY = "24h"
    WEEK = "7d"
    MONTH = "30d"
    ALL = "all"


class Bucket(StrEnum):
    """How long one point of the series is."""

    HOUR = "hour"
    DAY = "day"


LENGTHS = {Range.DAY: DAY, Range.WEEK: 7 * DAY, Range.MONTH: 30 * DAY}
# Not a day: where the session's time zone has summer time, some have 23 hours or 25.
STEPS = {Bucket.HOUR: "1 hour", Bucket.DAY: "24 hours"}


class TooManyPoints(ValueError):
    """The range is without a bound, and the buckets are too small for that."""

    def __init__(self) -> None:
        super().__init__("`bucket`: hours are given for 24h, 7d and 30d; ask for `bucket=day`.")


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened in the bucket that begins `at`; likes and comments are net of those undone."""

    at: datetime
    views: int
    likes: int
    comments: int
    shares: int
    watch_minutes: float
    unique_viewers: int | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """`totals.at` is where the range begins; buckets of an hour don't tell unique viewers."""

    totals: Counts
    series: Sequence[Counts]


async def stats_of(
    conn: AsyncConnection[TupleRow],
    video_id: UUID,
    range_: Range,
    bucket: Bucket,
    *,
    began: datetime,
    now: datetime,
) -> Stats:
    """Return the stats of a video that exists since `began`; only the first hour may be cut.

    Raise TooManyPoints for hours of all times.
    """
    if range_ is Range.ALL and bucket is Bucket.HOUR:
        raise TooManyPoints
    since = await _since(conn, video_id, range_, began, now)
    given = {
        "video": video_id,
        "since": since,
        "whole_day": start_of_next_day(since),
        "first": start_of_day(since) if bucket is Bucket.DAY else since,
        "now": now,
        "unit": bucket.value,
        "step": STEPS[bucket],
    }
    query = SERIES.format(happened=BY_DAYS if bucket is Bucket.DAY else BY_HOURS)
    found = await fetch_as(conn, Counts, query.encode(), given)
    series = [replace(each, at=each.at.astimezone(UTC)) for each in found]
    # By day; all of them under None.
    viewers: dict[date | None, int] = dict(await (await conn.execute(VIEWERS, given)).fetchall())
    if bucket is Bucket.DAY:
        ((floor,),) = await (await conn.execute(FLOOR)).fetchall()
        series = [
            replace(each, unique_viewers=viewers.get(each.at.date(), 0))
            if each.at >= floor
            else each
            for each in series
        ]
    totals = Counts(
        at=since,
        views=sum(each.views for each in series),
        likes=sum(each.likes for each in series),
        comments=sum(each.comments for each in series),
        shares=sum(each.shares for each in series),
        watch_minutes=fsum(each.watch_minutes for each in series),
        unique_viewers=viewers.get(None, 0),
    )
    return Stats(totals, series)


async def _since(
    conn: AsyncConnection[TupleRow], video_id: UUID, range_: Range, began: datetime, now: datetime
) -> datetime:
    if range_ is not Range.ALL:
        return start_of_hour(now) - LENGTHS[range_]
    cursor = await conn.execute(EARLIEST, (video_id, now))
    row = await cursor.fetchone()
    # Clocks differ: something may have happened before the video began.
    return start_of_day(min(row[0], began) if row and row[0] else min(began, now))

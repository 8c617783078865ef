"""The sums of each video in a window: from the rollups, or from settled sums.

Both give the same columns; `recent_` is the part that counts as recent, `minutes` were watched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import exp, log
from typing import Any, LiteralString
from uuid import UUID

from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from infra.advisory_locks import Lock, try_lock_in_transaction
from projections.analytics.windows import HOUR, Window, edges_of, start_of_hour
from projections.trending.formula import BASE, LISTED, RECENT_HOUR, Formula, narrowed

# Whole days come from the daily rollup; what the window's two ends cut off, from the hourly one.
FROM_ROLLUPS: LiteralString = """
SELECT video_id,
       sum(trending_views)::float8 AS views,
       sum(likes)::float8 AS likes,
       sum(comments)::float8 AS comments,
       sum(trending_watch_seconds) / 60 AS minutes,
       coalesce(sum(trending_views) FILTER (WHERE recent), 0)::float8 AS recent_views,
       coalesce(sum(likes) FILTER (WHERE recent), 0)::float8 AS recent_likes,
       coalesce(sum(comments) FILTER (WHERE recent), 0)::float8 AS recent_comments,
       coalesce(sum(trending_watch_seconds) FILTER (WHERE recent), 0) / 60 AS recent_minutes
FROM (
    SELECT video_id, trending_views, likes, comments, trending_watch_seconds,
           bucket >= %(recent)s AS recent
    FROM analytics.video_hourly
    WHERE bucket >= %(last_day)s AND bucket < %(until)s
    UNION ALL
    SELECT video_id, trending_views, likes, comments, trending_watch_seconds,
           bucket >= %(recent)s
    FROM analytics.video_hourly
    WHERE bucket >= %(since)s AND bucket < %(first_day)s
    UNION ALL
    SELECT video_id, trending_views, likes, comments, trending_watch_seconds, false
    FROM analytics.video_daily
    WHERE bucket >= %(first_day)s AND bucket < %(last_day)s
) AS happened
GROUP BY video_id
"""

OF_VIDEOS: LiteralString = " AND video_id = ANY (%(videos)s)"
# A row for each video, and the few hours that are not settled: all of them are recent. Of all
# videos, or of some.
FROM_SETTLED: LiteralString = """
SELECT video_id,
       coalesce(settled.views, 0) + coalesce(newest.views, 0) AS views,
       coalesce(settled.likes, 0) + coalesce(newest.likes, 0) AS likes,
       coalesce(settled.comments, 0) + coalesce(newest.comments, 0) AS comments,
       coalesce(settled.minutes, 0) + coalesce(newest.minutes, 0) AS minutes,
       coalesce(recent_views, 0) + coalesce(newest.views, 0) AS recent_views,
       coalesce(recent_likes, 0) + coalesce(newest.likes, 0) AS recent_likes,
       coalesce(recent_comments, 0) + coalesce(newest.comments, 0) AS recent_comments,
       coalesce(recent_minutes, 0) + coalesce(newest.minutes, 0) AS recent_minutes
FROM (
    SELECT video_id, views, likes, comments, minutes,
           recent_views, recent_likes, recent_comments, recent_minutes
    FROM analytics.trending_sums WHERE time_range = %(time_range)s{of_videos}
) AS settled
FULL JOIN (
    SELECT video_id, sum(trending_views)::float8 AS views, sum(likes)::float8 AS likes,
           sum(comments)::float8 AS comments, sum(trending_watch_seconds) / 60 AS minutes
    FROM analytics.video_hourly
    WHERE bucket >= %(settled_until)s AND bucket < %(until)s{of_videos}
    GROUP BY video_id
) AS newest USING (video_id)
"""

# The logarithm of what the settled sums score at any time, but for what is the same for all. A
# video that is not completed yet may be of any age.
SORT_KEY: LiteralString = f"""
CASE WHEN {BASE} > 0 THEN coalesce(
    ln({BASE}) + ln(2::float8) * extract(epoch FROM completed_at)::float8 / 3600
        / greatest(%(half_life_hours)s::float8, 1), 'infinity') END
"""
# With a shorter half-life than this, keys are too large to be exact.
SHORTEST_HALF_LIFE_HOURS = 1.0

LEADING: LiteralString = """
SELECT first.video_id, sort_key
FROM (SELECT video_id, sort_key FROM analytics.trending_sums
      WHERE time_range = %(time_range)s AND sort_key IS NOT NULL
      ORDER BY sort_key DESC LIMIT %(looked_at)s) AS first
JOIN analytics.videos AS video USING (video_id)
WHERE {listed} ORDER BY sort_key DESC LIMIT %(leaders)s
"""
NEXT = b"""
SELECT sort_key FROM analytics.trending_sums
WHERE time_range = %(time_range)s AND sort_key IS NOT NULL
ORDER BY sort_key DESC OFFSET %(looked_at)s LIMIT 1
"""
# Of a few hours: to get so much in all of them, a video has to get its share in one.
RISING = f"""
SELECT DISTINCT video_id FROM analytics.video_hourly
WHERE bucket >= %(settled_until)s AND bucket < %(until)s AND {RECENT_HOUR} >= %(share)s
LIMIT %(most)s
""".encode()

# For each place in the ranking. More leaders are further above the rest, so that fewer rise.
LEADERS = 5
LOOKED_AT = 50
MOST_RISING = 1000
# Above what sums and keys lose in their last digits, and the scores' six decimals.
RELATIVE, ABSOLUTE = 1e-9, 2e-6

# Only what changed is written: within an hour that is little.
SETTLE = f"""
WITH fresh AS MATERIALIZED (
    SELECT sums.*, {SORT_KEY} AS sort_key
    FROM ({FROM_ROLLUPS}) AS sums LEFT JOIN analytics.videos USING (video_id)
), gone AS (
    DELETE FROM analytics.trending_sums AS kept
    WHERE time_range = %(time_range)s
      AND NOT EXISTS (SELECT FROM fresh WHERE fresh.video_id = kept.video_id))
INSERT INTO analytics.trending_sums AS kept
SELECT %(time_range)s, fresh.* FROM fresh
ON CONFLICT (time_range, video_id) DO UPDATE
SET views = excluded.views, likes = excluded.likes, comments = excluded.comments,
    minutes = excluded.minutes, recent_views = excluded.recent_views,
    recent_likes = excluded.recent_likes, recent_comments = excluded.recent_comments,
    recent_minutes = excluded.recent_minutes, sort_key = excluded.sort_key
WHERE kept IS DISTINCT FROM excluded
""".encode()
TELL = b"""
INSERT INTO analytics.trending_settled (time_range, hour, until, recent_hours, formula)
VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (time_range) DO UPDATE
SET hour = excluded.hour, until = excluded.until, recent_hours = excluded.recent_hours,
    formula = excluded.formula
"""
SETTLED = b"""
SELECT hour, until, formula FROM analytics.trending_settled
WHERE time_range = %s AND recent_hours = %s
"""
# How late most events are at most; an hour is settled once it has ended so long ago.
LATE = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Leaders:
    """The first by what was settled; all others that can be listed have `rest` at most."""

    videos: list[UUID]
    rest: float


async def leading(
    conn: AsyncConnection[TupleRow], limit: int, given: dict[str, Any], half_life_hours: float
) -> Leaders:
    """Return a few times `limit` videos; `given` has `time_range`, `now` and `narrowed`'s."""
    listed = LISTED + narrowed(given)
    given = {**given, "leaders": LEADERS * limit, "looked_at": LOOKED_AT * limit}
    cursor = await conn.execute(LEADING.format(listed=listed).encode(), given)
    rows = await cursor.fetchall()
    last = rows[-1] if len(rows) == LEADERS * limit else None
    if last is None:
        last = await (await conn.execute(NEXT, given)).fetchone()
    decay = log(2) * given["now"].timestamp() / 3600 / half_life_hours
    # Of a key without a bound it has none either.
    rest = exp(min(max(last[-1] - decay, -690), 690)) if last else 0.0
    return Leaders([video_id for video_id, _ in rows], rest)


async def rising(
    conn: AsyncConnection[TupleRow], rest: float, last_score: float, given: dict[str, Any]
) -> list[UUID] | None:
    """Return the videos whose gain since the settling may lift `rest` to `last_score`.

    None where that can be too many to be looked up one by one. `given` has the formula's weights,
    and the hours that were not settled, from `settled_until` to `until`.
    """
    missing = last_score * (1 - RELATIVE) - rest * (1 + RELATIVE) - ABSOLUTE
    if missing <= 0:
        return None
    share = missing * (1 - RELATIVE) * (HOUR / (given["until"] - given["settled_until"]))
    cursor = await conn.execute(RISING, {**given, "share": share, "most": MOST_RISING + 1})
    rows = await cursor.fetchall()
    return [video_id for (video_id,) in rows] if len(rows) <= MOST_RISING else None


@dataclass(frozen=True, slots=True)
class Settled:
    """Sums of a window; what happened since `until` is not in them.

    `keyed` where their order is that of the formula asked for.
    """

    until: datetime
    keyed: bool


def settle(conn: Connection[TupleRow], window: Window, *, formula: Formula, now: datetime) -> bool:
    """Settle one window as it is now; return False where another process settles."""
    hour, until = start_of_hour(now), start_of_hour(now - LATE)
    edges = replace(edges_of(window, now, formula.recent_hours), until=until)
    given = {"time_range": window.value, **formula.weights(), **edges.parameters()}
    told = (window.value, hour, until, formula.recent_hours, Jsonb(formula.weights()))
    with conn.transaction():
        mine = try_lock_in_transaction(conn, Lock.TRENDING_SETTLEMENT)
        if mine:
            conn.execute(SETTLE, given)
            conn.execute(TELL, told)
    return bool(mine)


async def settled(
    conn: AsyncConnection[TupleRow], window: Window, *, formula: Formula, now: datetime
) -> Settled | None:
    """Return the usable sums: of this hour, or of the last while this one is being settled.

    To be used in a transaction that sees one state of the database.
    """
    cursor = await conn.execute(SETTLED, (window.value, formula.recent_hours))
    row = await cursor.fetchone()
    if row is None or not row[0] <= now < row[0] + 2 * HOUR:
        return None
    return Settled(row[1], keyed=row[2] == formula.weights())

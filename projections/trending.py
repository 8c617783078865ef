"""Which videos trend, from settled sums: a ranking costs the same however much has happened.

    score = base · max(floor, 2^(-age / half-life)) = base - agePenalty
    base = views + likes + comments + watchMinutes + recencyBoost

Each addend is a sum over the window times its weight. `recencyBoost` counts the recent part of it
again, boost - 1 times, so that what happened recently weighs `boost` times as much.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from math import exp, log
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb
from pydantic import TypeAdapter
from redis.asyncio import Redis

from infra.advisory_locks import Lock, try_lock_in_transaction
from infra.cache import (
    ANY_VALUE,
    CachedValue,
    Generations,
    Lifetimes,
    OptionalRedis,
    ReadThroughCache,
    Requirement,
)
from infra.http.shapes import Position
from infra.metrics import counter
from infra.postgres.connection import fetch_as
from infra.settings.features import TrendingSettings
from projections.analytics.calendar import DAY, HOUR, start_of_day, start_of_hour, start_of_next_day
from projections.analytics.videos import listed

POINTS = (
    "(%(view_weight)s::float8 * {views} + %(like_weight)s::float8 * {likes}"
    " + %(comment_weight)s::float8 * {comments} + %(watch_minute_weight)s::float8 * {minutes})"
)
COUNTS = ("views", "likes", "comments", "minutes")
BOOST = "(%(recent_boost)s::float8 - 1) * " + POINTS.format(
    **{name: f"recent_{name}" for name in COUNTS}
)
BASE = POINTS.format(**{name: name for name in COUNTS}) + " + " + BOOST
# Of one row of the hourly rollup, all of which is recent.
RECENT_HOUR = "%(recent_boost)s::float8 * " + POINTS.format(
    **{name: f"trending_{name}" for name in COUNTS[:-1]}, minutes="(trending_watch_seconds / 60)"
)

# The sums of each video in a window: from the rollups, or from settled sums. Both queries give the
# same columns; `recent_` is the part that counts as recent, `minutes` were watched.
#
# Whole days come from the daily rollup; what the window's two ends cut off, from the hourly one.
FROM_ROLLUPS = """
SELECT video_id,
       sum(trending_views)::float8 AS views,
       sum(trending_likes)::float8 AS likes,
       sum(trending_comments)::float8 AS comments,
       sum(trending_watch_seconds) / 60 AS minutes,
       coalesce(sum(trending_views) FILTER (WHERE recent), 0)::float8 AS recent_views,
       coalesce(sum(trending_likes) FILTER (WHERE recent), 0)::float8 AS recent_likes,
       coalesce(sum(trending_comments) FILTER (WHERE recent), 0)::float8 AS recent_comments,
       coalesce(sum(trending_watch_seconds) FILTER (WHERE recent), 0) / 60 AS recent_minutes
FROM (
    SELECT video_id, trending_views, trending_likes, trending_comments, trending_watch_seconds,
           bucket >= %(recent)s AS recent
    FROM analytics.video_hourly
    WHERE bucket >= %(last_day)s AND bucket < %(until)s
    UNION ALL
    SELECT video_id, trending_views, trending_likes, trending_comments, trending_watch_seconds,
           bucket >= %(recent)s
    FROM analytics.video_hourly
    WHERE bucket >= %(since)s AND bucket < %(first_day)s
    UNION ALL
    SELECT video_id, trending_views, trending_likes, trending_comments, trending_watch_seconds,
           false
    FROM analytics.video_daily WHERE bucket >= %(first_day)s AND bucket < %(last_day)s
) AS happened
GROUP BY video_id
"""
SUMS = [f"{part}{name}" for part in ("", "recent_") for name in COUNTS]
ADDED = ", ".join(
    f"coalesce(settled.{part}{name}, 0) + coalesce(newest.{name}, 0) AS {part}{name}"
    for part in ("", "recent_")
    for name in COUNTS
)
# A row for each video, and the few hours that are not settled: all of them are recent. Of all
# videos, or of some.
FROM_SETTLED = f"""
SELECT video_id, {ADDED}
FROM (
    SELECT video_id, {", ".join(SUMS)}
    FROM analytics.trending_sums WHERE time_range = %(time_range)s{{of_videos}}
) AS settled
FULL JOIN (
    SELECT video_id, sum(trending_views)::float8 AS views, sum(trending_likes)::float8 AS likes,
           sum(trending_comments)::float8 AS comments, sum(trending_watch_seconds) / 60 AS minutes
    FROM analytics.video_hourly
    WHERE bucket >= %(settled_until)s AND bucket < %(until)s{{of_videos}}
    GROUP BY video_id
) AS newest USING (video_id)
"""
OF_VIDEOS = " AND video_id = ANY (%(videos)s)"
LISTED = listed("video")
IN_CATEGORY = " AND video.category = %(category)s"
NONE_OF = " AND video.video_id <> ALL (%(without)s)"

# Rounded where it orders: sums of fractions differ in their last digits from plan to plan.
# Above 2^-1000, because power() refuses what is too small for it.
RANKED = f"""
WITH sums AS ({{sums}}), scored AS (
    SELECT video_id, score, points.views, points.likes, points.comments, watch_minutes,
           recency_boost, age_penalty
    FROM sums
    JOIN analytics.videos AS video USING (video_id)
    CROSS JOIN LATERAL (
        SELECT %(view_weight)s::float8 * sums.views AS views,
               %(like_weight)s::float8 * sums.likes AS likes,
               %(comment_weight)s::float8 * sums.comments AS comments,
               %(watch_minute_weight)s::float8 * minutes AS watch_minutes,
               {BOOST} AS recency_boost
    ) AS points
    CROSS JOIN LATERAL (
        SELECT points.views + points.likes + points.comments + watch_minutes + recency_boost
                   AS base,
               greatest(extract(epoch FROM %(now)s::timestamptz - video.completed_at), 0)::float8
                   / 3600 AS age_hours
    ) AS whole
    CROSS JOIN LATERAL (
        SELECT base * (1 - greatest(
                   %(age_floor)s::float8,
                   power(2::float8, greatest(-age_hours / %(half_life_hours)s::float8, -1000))))
                   AS age_penalty
    ) AS penalty
    CROSS JOIN LATERAL (SELECT base - age_penalty AS score) AS result
    WHERE base > 0 AND {{listed}})
SELECT row_number() OVER (ORDER BY round(score * 1e6) DESC, views DESC, video_id) AS rank, top.*
FROM (SELECT * FROM scored
      ORDER BY round(score * 1e6) DESC, views DESC, video_id LIMIT %(limit)s) AS top
ORDER BY rank
"""

# Settled sums score the larger of two values: what decays, and the floor's share of the base. The
# order by either does not change with time. The key of the first is its logarithm, but for what is
# the same for all; a video that is not completed yet may be of any age. That of the second is the
# base itself.
DECAYING, FLOORED = "sort_key", "base"
SORT_KEYS = f"""
CASE WHEN {BASE} > 0 THEN coalesce(
    ln({BASE}) + ln(2::float8) * extract(epoch FROM completed_at)::float8 / 3600
        / greatest(%(half_life_hours)s::float8, 1), 'infinity') END AS {DECAYING},
CASE WHEN {BASE} > 0 THEN {BASE} END AS {FLOORED}
"""
# With a shorter half-life than this, keys are too large to be exact.
SHORTEST_HALF_LIFE_HOURS = 1.0

LEADING = """
SELECT first.video_id, {key}
FROM (SELECT video_id, {key} FROM analytics.trending_sums
      WHERE time_range = %(time_range)s AND {key} IS NOT NULL
      ORDER BY {key} DESC LIMIT %(looked_at)s) AS first
JOIN analytics.videos AS video USING (video_id)
WHERE {listed} ORDER BY {key} DESC LIMIT %(leaders)s
"""
NEXT = """
SELECT {key} FROM analytics.trending_sums
WHERE time_range = %(time_range)s AND {key} IS NOT NULL
ORDER BY {key} DESC OFFSET %(looked_at)s LIMIT 1
"""
# Of a few hours: to get so much in all of them, a video has to get its share in one.
RISING = f"""
SELECT DISTINCT video_id FROM analytics.video_hourly
WHERE bucket >= %(settled_until)s AND bucket < %(until)s AND {RECENT_HOUR} >= %(share)s
LIMIT %(most)s
""".encode()

# For each place in the ranking, by either key. More leaders are further above the rest, so that
# fewer rise.
LEADERS = 5
LOOKED_AT = 50
MOST_RISING = 1000
# Above what sums and keys lose in their last digits, and the scores' six decimals.
RELATIVE, ABSOLUTE = 1e-9, 2e-6

# Only what changed is written: within an hour that is little.
SETTLE = f"""
WITH fresh AS MATERIALIZED (
    SELECT sums.*, {SORT_KEYS}
    FROM ({FROM_ROLLUPS}) AS sums LEFT JOIN analytics.videos USING (video_id)
), gone AS (
    DELETE FROM analytics.trending_sums AS kept
    WHERE time_range = %(time_range)s
      AND NOT EXISTS (SELECT FROM fresh WHERE fresh.video_id = kept.video_id))
INSERT INTO analytics.trending_sums AS kept
SELECT %(time_range)s, fresh.* FROM fresh
ON CONFLICT (time_range, video_id) DO UPDATE
SET {", ".join(f"{name} = excluded.{name}" for name in [*SUMS, DECAYING, FLOORED])}
WHERE kept IS DISTINCT FROM excluded
""".encode()
NOTE_SETTLED = b"""
INSERT INTO analytics.trending_settled (time_range, hour, until, recent_hours, formula)
VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (time_range) DO UPDATE
SET hour = excluded.hour, until = excluded.until, recent_hours = excluded.recent_hours,
    formula = excluded.formula
"""
# Of this hour, or of the last one while this one is being settled; and how much of its points a
# video of a week keeps on this site: news is over within hours, and films are watched for years.
SETTLED = b"""
SELECT until, formula, coalesce((SELECT share FROM analytics.attention WHERE age <= 604800
                                 ORDER BY age DESC LIMIT 1), 0.1)::float8
FROM (VALUES (1)) AS one LEFT JOIN analytics.trending_settled
  ON time_range = %(time_range)s AND recent_hours = %(recent_hours)s
     AND hour <= %(now)s AND hour > %(now)s - interval '2 hours'
"""
# How late most events are at most; an hour is settled once it has ended so long ago.
LATE = timedelta(minutes=10)

ONE_STATE = b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


class Window(StrEnum):
    """How far back trending looks."""

    WEEK = "7d"
    MONTH = "30d"
    ALL = "all"


LENGTHS = {Window.WEEK: 7 * DAY, Window.MONTH: 30 * DAY}
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Formula:
    """Points of a view, like, comment and watched minute; boost, decay, and what that leaves."""

    view_weight: float = 1.0
    like_weight: float = 5.0
    comment_weight: float = 3.0
    watch_minute_weight: float = 0.1
    recent_hours: int = 6
    recent_boost: float = 2.0
    half_life_hours: float = 24.0
    age_floor: float | None = 0.1  # None: as the site tells

    @classmethod
    def from_settings(cls, settings: TrendingSettings) -> Formula:
        """Return the formula of the settings, which have the same names."""
        return cls(**settings.model_dump(include={field.name for field in fields(cls)}))

    def weights(self) -> Mapping[str, float]:
        """Return the formula's parameters of the queries."""
        return {name: each for name, each in asdict(self).items() if name != "recent_hours"}

    def parameters(self, window: Window, now: datetime) -> dict[str, Any]:
        """Return the parameters of a query about the window that ends `now`.

        The hours into which the bounds of the window fall count whole. Whole days lie between
        `first_day` and `last_day`; the hours before and after, from `since` and up to `until`, are
        taken one by one. What is in the hours from `recent` on counts as recent, which is at most
        the window.
        """
        hour = start_of_hour(now)
        since = hour - LENGTHS[window] if window in LENGTHS else BEGINNING
        recent = max(hour - self.recent_hours * HOUR, since)
        first_day = start_of_next_day(since)
        return {
            **self.weights(),
            "time_range": window.value,
            "since": since,
            "first_day": first_day,
            "last_day": max(start_of_day(recent), first_day),
            "recent": recent,
            "until": hour + HOUR,
        }


@dataclass(frozen=True, slots=True)
class Ranked:
    """A video's place and why: the points of each part; all but `age_penalty` are added."""

    rank: int
    video_id: UUID
    score: float
    views: float
    likes: float
    comments: float
    watch_minutes: float
    recency_boost: float
    age_penalty: float


class Trending:
    """The ranking by one formula."""

    def __init__(self, formula: Formula) -> None:
        self.formula = formula

    async def rank(
        self,
        conn: AsyncConnection[TupleRow],
        window: Window,
        *,
        limit: int,
        now: datetime,
        category: str | None = None,
        without: Collection[UUID] = (),
    ) -> list[Ranked]:
        """Return the first `limit` videos at the time `now`, of a category if given, but `without`.

        Equal scores are ordered by views, then by id. A video without points is not listed, nor is
        one that was removed or is not public.
        """
        given = self.formula.parameters(window, now)
        given |= {"recent_hours": self.formula.recent_hours, "now": now, "limit": limit}
        given |= {"category": category, "without": list(without)}
        async with conn.transaction():
            await conn.execute(ONE_STATE)
            cursor = await conn.execute(SETTLED, given)
            ((given["settled_until"], weights, floor),) = await cursor.fetchall()
            given["age_floor"] = floor if given["age_floor"] is None else given["age_floor"]
            if weights is None:
                return await _rank(conn, FROM_ROLLUPS, given)
            half_life = self.formula.half_life_hours
            exact = half_life >= SHORTEST_HALF_LIFE_HOURS and weights == self.formula.weights()
            if exact and (ranked := await _rank_leaders(conn, given)) is not None:
                return ranked
            return await _rank(conn, FROM_SETTLED.format(of_videos=""), given)


async def _rank(
    conn: AsyncConnection[TupleRow], sums: str, given: Mapping[str, Any]
) -> list[Ranked]:
    query = RANKED.format(sums=sums, listed=_listing_condition(given))
    return await fetch_as(conn, Ranked, query.encode(), given)


async def _rank_videos(
    conn: AsyncConnection[TupleRow], videos: Sequence[UUID], given: Mapping[str, Any]
) -> list[Ranked]:
    sums = FROM_SETTLED.format(of_videos=OF_VIDEOS)
    return await _rank(conn, sums, {**given, "videos": videos})


def _listing_condition(given: Mapping[str, Any]) -> str:
    """Return the condition of the videos that can be listed."""
    in_category = IN_CATEGORY if given["category"] is not None else ""
    return LISTED + in_category + (NONE_OF if given["without"] else "")


async def _rank_leaders(
    conn: AsyncConnection[TupleRow], given: Mapping[str, Any]
) -> list[Ranked] | None:
    """Rank only the few videos that can be listed; return None where those can be many."""
    leaders, rest = await _leaders(conn, given)
    ranked = await _rank_videos(conn, leaders, given)
    last_score = ranked[-1].score if len(ranked) == given["limit"] else 0.0
    rising = await _rising_videos(conn, rest, last_score, given)
    if rising is None:
        return None
    if set(rising) <= set(leaders):
        return ranked
    return await _rank_videos(conn, [*leaders, *rising], given)


async def _leaders(
    conn: AsyncConnection[TupleRow], given: Mapping[str, Any]
) -> tuple[list[UUID], float]:
    """Return the first by the settled sums, and the score that all other videos have at most."""
    decaying, last_key = await _first_by(conn, DECAYING, given)
    floored, last_base = await _first_by(conn, FLOORED, given)
    decay = log(2) * given["now"].timestamp() / 3600 / given["half_life_hours"]
    # Of a key without a bound it has none either.
    rest = exp(min(max(last_key - decay, -690), 690)) if last_key is not None else 0.0
    return [*{*decaying, *floored}], max(rest, given["age_floor"] * (last_base or 0.0))


async def _first_by(
    conn: AsyncConnection[TupleRow], key: str, given: Mapping[str, Any]
) -> tuple[list[UUID], float | None]:
    """Return the first by this key, and what it is at most for all others; None without others."""
    limit = given["limit"]
    given = {**given, "leaders": LEADERS * limit, "looked_at": LOOKED_AT * limit}
    query = LEADING.format(key=key, listed=_listing_condition(given))
    rows = await (await conn.execute(query.encode(), given)).fetchall()
    last = rows[-1] if len(rows) == LEADERS * limit else None
    if last is None:
        last = await (await conn.execute(NEXT.format(key=key).encode(), given)).fetchone()
    return [video_id for video_id, _ in rows], last[-1] if last else None


async def _rising_videos(
    conn: AsyncConnection[TupleRow], rest: float, last_score: float, given: Mapping[str, Any]
) -> list[UUID] | None:
    """Return the videos whose gain since the settling may lift `rest` to `last_score`.

    Return None where that can be too many to be looked up one by one.
    """
    missing = last_score * (1 - RELATIVE) - rest * (1 + RELATIVE) - ABSOLUTE
    if missing <= 0:
        return None
    share = missing * (1 - RELATIVE) * (HOUR / (given["until"] - given["settled_until"]))
    cursor = await conn.execute(RISING, {**given, "share": share, "most": MOST_RISING + 1})
    rows = await cursor.fetchall()
    return [video_id for (video_id,) in rows] if len(rows) <= MOST_RISING else None


def settle(conn: Connection[TupleRow], window: Window, *, formula: Formula, now: datetime) -> bool:
    """Settle one window as it is now; return False where another process settles."""
    until = start_of_hour(now - LATE)
    given = formula.parameters(window, now) | {"until": until}
    weights = Jsonb(formula.weights())
    with conn.transaction():
        mine = try_lock_in_transaction(conn, Lock.TRENDING_SETTLEMENT)
        if mine:
            conn.execute(SETTLE, given)
            noted = (window.value, start_of_hour(now), until, formula.recent_hours, weights)
            conn.execute(NOTE_SETTLED, noted)
    return bool(mine)


PREFIX = "trending:"
# Holds another value each time that something new was counted.
GENERATION = "trending:generation"

Ranking = CachedValue[tuple[Ranked, ...]]

TRENDING_LOOKUPS = counter(
    "backlot_trending_lookups",
    "Rankings that were asked for: from the cache, made, or shared with whoever had it made.",
    ("outcome",),
)
TRENDING_CACHE_FAILURES = counter(
    "backlot_trending_cache_failures",
    "Times that Redis did not answer for the cache of rankings, or held what can't be read.",
)


def key_of(window: Window, limit: int, category: str | None) -> str:
    """Return the key of a ranking in Redis."""
    return f"{PREFIX}{window}:{limit}" + ("" if category is None else f":{category}")


class TrendingInvalidation:
    """Tells all processes that something new was counted; to be used from one event loop."""

    def __init__(self, redis: Redis) -> None:
        optional = OptionalRedis(redis, "trending_cache", TRENDING_CACHE_FAILURES)
        self._generations = Generations(optional)

    async def touch(self) -> None:
        """Begin a generation of rankings, after each commit; never raise RedisError.

        A ranking older than TRENDING_INVALIDATE_SECONDS is then computed anew when it is wanted.
        """
        await self._generations.renew([GENERATION])


class TrendingCache:
    """Rankings of one process and its peers, cached in Redis; to be used from one event loop."""

    def __init__(
        self,
        redis: Redis,
        lifetimes: Lifetimes,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cache: ReadThroughCache[tuple[Ranked, ...]] = ReadThroughCache(
            OptionalRedis(redis, "trending_cache", TRENDING_CACHE_FAILURES),
            TypeAdapter(Ranking),
            lambda _: lifetimes,
            lookups=TRENDING_LOOKUPS,
            unreadable=TRENDING_CACHE_FAILURES,
            clock=clock,
        )

    async def get(
        self,
        window: Window,
        limit: int,
        category: str | None,
        compute: Callable[[datetime], Awaitable[tuple[Ranked, ...]]],
        wanted: Requirement = ANY_VALUE,
        includes: Callable[[], Position] = Position,
    ) -> tuple[Ranking, bool]:
        """Return a ranking, and whether it was cached; else `compute` makes it as of a given time.

        Then `includes` tells what is in it. Concurrent callers share one computation, and its
        failure. Never raises RedisError.
        """
        key = key_of(window, limit, category)
        return await self._cache.get(key, GENERATION, compute, wanted, includes)

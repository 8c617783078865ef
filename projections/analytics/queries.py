"""The queries of the analytics: stats and rankings, over a pool of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from math import fsum
from typing import NamedTuple
from uuid import UUID

import structlog
from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg.errors import UndefinedTable
from psycopg.rows import TupleRow
from redis.asyncio import Redis

from domain.upload import Upload
from engine.checkpoints import WHATEVER_THERE_IS, Freshness, Pool, ReadModelBehind, Waiting
from engine.event_store import EVENTS
from engine.log import topics_of
from infra.batcher import BatchLoader
from infra.cache import CachedValue, Lifetimes, Requirement
from infra.http.shapes import BEGINNING, Position
from infra.metrics import counter
from infra.postgres.connection import Limits, column, make_pool
from infra.settings.features import TrendingSettings
from projections.analytics.calendar import DAY, HOUR, start_of_day, start_of_hour, start_of_next_day
from projections.analytics.periods import Counts
from projections.analytics.viewers import FLOOR
from projections.catalog import Catalog
from projections.feedback.reports import CONSUMER as FEEDBACK_CONSUMER
from projections.trending import Formula, Ranked, Ranking, Trending, TrendingCache, Window

log = structlog.get_logger(__name__)

COUNTS_CONSUMER, VIDEOS_CONSUMER = "analytics", "analytics_videos"
ENGAGED_CONSUMER = "recommendations"
# With Kafka the checkpoints of a consumer are offsets. Beside them it keeps, under these sources,
# the position of the log and of the telemetry up to which it has everything.
BY_KAFKA = {"events": "kafka:events", "telemetry": "kafka:telemetry"}

REACHED = b"""
SELECT subscription,
       coalesce(max(position) FILTER (WHERE source IN ('events', 'kafka:events')), 0),
       coalesce(max(position) FILTER (WHERE source IN ('telemetry', 'kafka:telemetry')), 0),
       NULL::int, true
FROM backlot_checkpoints WHERE kind = 'consumer' GROUP BY subscription
"""
# The edition, and the position of the log up to which its changes are in it. Another edition begins
# whenever a video may be listed otherwise than before.
LISTING = b"""
SELECT edition, (
    SELECT position FROM backlot_checkpoints
    WHERE kind = 'consumer' AND subscription = 'analytics_videos' AND source = 'events')
FROM analytics.listing
"""
# The last change that the listing or the catalog lacks, or 0. Bounded: where the analytics are
# further behind, a ranking can't wait for them.
CHANGED = f"""
SELECT coalesce(max(position), 0) FROM (
    SELECT notification_id AS position, topic FROM {EVENTS}
    WHERE notification_id > least(
        %s, (SELECT position FROM backlot_checkpoints
             WHERE kind = 'projection' AND subscription = %s))
    ORDER BY notification_id LIMIT 10000) AS newest
WHERE topic = ANY (%s)
""".encode()
# An upload that was just completed has nothing to be ranked by.
CHANGES = [
    topic
    for event in (Upload.DetailsChanged, Upload.VisibilityChanged, Upload.Removed)
    for topic in topics_of(event)
]

# What one consumer has taken in. Its offsets add up to another number whenever it counts something:
# those of Kafka move before it is known which position of the log that is.
COUNTED_UP_TO = f"""
SELECT coalesce(max(position) FILTER (WHERE source IN ('events', 'kafka:events')), 0) AS events,
       coalesce(max(position) FILTER (WHERE source IN ('telemetry', 'kafka:telemetry')), 0)
           AS telemetry,
       sum(position)::bigint AS offsets
FROM backlot_checkpoints WHERE kind = 'consumer' AND subscription = '{COUNTS_CONSUMER}'
"""
HOURS = """
SELECT video_id, bucket, views, likes, comments, shares, watch_seconds FROM analytics.video_hourly
WHERE video_id = ANY (%(videos)b::uuid[]) AND bucket >= %(since)b AND bucket <= %(now)b
"""
# Only what the range's beginning has cut off a day is taken by the hour.
DAYS = f"""
{HOURS} AND bucket < %(whole_day)b
UNION ALL
SELECT video_id, bucket, views, likes, comments, shares, watch_seconds FROM analytics.video_daily
WHERE video_id = ANY (%(videos)b::uuid[]) AND bucket >= %(whole_day)b AND bucket <= %(now)b
"""
# One statement sees one moment: how far the consumer is, and what it has counted by then. Whose
# last view was when: see `projections/analytics/viewers.py`. What lies before the floor is not kept
# any more.
STATS = f"""
SELECT at.*, shown.*
FROM (SELECT up_to.*, {FLOOR} FROM ({COUNTED_UP_TO}) AS up_to) AS at
LEFT JOIN (
    SELECT video_id, date_trunc(%(unit)b, bucket, 'UTC') AS at, sum(views)::bigint,
           sum(likes)::bigint, sum(comments)::bigint, sum(shares)::bigint, sum(watch_seconds) / 60,
           sum(viewers)::bigint, sum(latest)::bigint, bool_or(happened)
    FROM (
        SELECT *, 0 AS viewers, 0 AS latest, true AS happened FROM ({{happened}}) AS happened
        UNION ALL
        SELECT video_id, bucket, 0, 0, 0, 0, 0, viewers, latest, false
        FROM analytics.viewers_hourly
        WHERE video_id = ANY (%(videos)b::uuid[])
              AND bucket >= greatest(%(since)b::timestamptz, {FLOOR})) AS counted
    GROUP BY 1, 2) AS shown ON true
ORDER BY shown.video_id, shown.at
"""
BY_BUCKET = {
    bucket: STATS.format(happened=happened).encode()
    for bucket, happened in (("hour", HOURS), ("day", DAYS))
}
MOST_AT_ONCE = 16
"""The stats of so many videos are read with one statement at most."""

# How long a ranking waits for the analytics to learn what was just removed or moved.
LISTING_SECONDS = 1.0

TRENDING_BEHIND_CATALOG = counter(
    "backlot_trending_behind_catalog",
    "Rankings made without a removal or a change that the analytics did not know in time.",
)


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
LONG_AGO = datetime(1, 1, 2, tzinfo=UTC)
# In UTC, where each day has as many hours.
STEPS = {Bucket.HOUR: HOUR, Bucket.DAY: DAY}


class TooManyPoints(ValueError):
    """The range is without a bound, and the buckets are too small for that."""

    def __init__(self) -> None:
        super().__init__("`bucket`: hours are given for 24h, 7d and 30d; ask for `bucket=day`.")


class Reached(NamedTuple):
    """How far a consumer is; while its `offsets` are the same, it has counted nothing.

    None where it has never begun.
    """

    position: Position
    offsets: int | None


def _followed(consumer: str, position: Position) -> Position:
    """Return what a consumer has to take in of a position: some follow one of the orders alone."""
    if consumer == VIDEOS_CONSUMER:
        return Position(events=position.events)
    if consumer == FEEDBACK_CONSUMER:
        return Position(telemetry=position.telemetry)
    return position


async def _reached(conn: AsyncConnection[TupleRow], consumer: str) -> Position:
    """Return how far a consumer is; first: what it counts while one reads is in it, or not."""
    found = await (await conn.execute(REACHED)).fetchall()
    return next((Position(*at) for name, *at, _, _ in found if name == consumer), BEGINNING)


@dataclass(frozen=True, slots=True)
class Stats:
    """`totals.at` is where the range begins; `counted` are the buckets in which anything happened.

    The buckets lie from `first` until `now`. Those of days that begin at `told_from` or later tell
    unique viewers; hours don't.
    """

    totals: Counts
    counted: Sequence[Counts]
    first: datetime
    now: datetime
    step: timedelta
    told_from: datetime | None

    @property
    def buckets(self) -> int:
        """How many buckets there are, with those in which nothing happened."""
        return (self.now - self.first) // self.step + 1

    @property
    def untold(self) -> int:
        """How many of these, the first, don't tell unique viewers."""
        if self.told_from is None:
            return self.buckets
        return min(max(0, -((self.first - self.told_from) // self.step)), self.buckets)


async def read_stats(
    conn: AsyncConnection[TupleRow],
    began: Mapping[UUID, datetime],
    range_: Range,
    bucket: Bucket,
    now: datetime,
) -> tuple[dict[UUID, Stats], Reached]:
    """Return the stats of videos, each of which exists since it began, and what is counted by now.

    Only the first hour of a range may be cut. Raise TooManyPoints for hours of all times.
    """
    if range_ is Range.ALL and bucket is Bucket.HOUR:
        raise TooManyPoints
    since = LONG_AGO if range_ is Range.ALL else start_of_hour(now) - LENGTHS[range_]
    given = {
        "videos": column(list(began)),
        "since": since,
        "whole_day": start_of_next_day(since),
        "now": now,
        "unit": bucket.value,
    }
    async with conn.cursor(binary=True) as cursor:
        await cursor.execute(BY_BUCKET[bucket], given, prepare=True)
        rows = await cursor.fetchall()
    events, telemetry, offsets, floor = rows[0][:4]
    counted: dict[UUID, list[TupleRow]] = {video: [] for video in began}
    for row in rows:
        if row[4] is not None:
            counted[row[4]].append(row[5:])
    told_from = floor.astimezone(UTC) if bucket is Bucket.DAY else None
    stats = {
        video: _stats(found, range_, bucket, since, min(began[video], now), now, told_from)
        for video, found in counted.items()
    }
    return stats, Reached(Position(events, telemetry), offsets)


def _stats(
    rows: Sequence[TupleRow],
    range_: Range,
    bucket: Bucket,
    since: datetime,
    began: datetime,
    now: datetime,
    told_from: datetime | None,
) -> Stats:
    """Return the stats of a video from its buckets: their counts, their viewers and how many of
    these came in no later one, and whether anything happened."""
    if range_ is Range.ALL:
        # Clocks differ: something may have happened before the video began.
        first = next((at for at, *_, happened in rows if happened), began)
        since = start_of_day(min(first, began))
        rows = [row for row in rows if row[0] >= since]
    counted = [
        Counts._make(
            (at.astimezone(UTC), *counts, viewers if told_from and at >= told_from else None)
        )
        for at, *counts, viewers, _, _ in rows
        if at <= now
    ]
    totals = Counts(
        since,
        sum(each.views for each in counted),
        sum(each.likes for each in counted),
        sum(each.comments for each in counted),
        sum(each.shares for each in counted),
        fsum(each.watch_minutes for each in counted),
        sum(row[7] for row in rows),
    )
    first = start_of_day(since) if bucket is Bucket.DAY else since
    return Stats(totals, counted, first, now, STEPS[bucket], told_from)


class AnalyticsUnavailable(Exception):
    """The database of the analytics does not answer."""


class AnalyticsQueries:
    """Stats and trending; to be used from one event loop."""

    def __init__(
        self, pool: Pool, log_pool: Pool, trending: Trending, cache: TrendingCache
    ) -> None:
        """`pool` leads to the analytics, `log_pool` to the event log and the catalog."""
        self.pool = pool
        self._log_pool = log_pool
        self._models = Waiting(log_pool)
        self._consumers = Waiting(pool, query=REACHED, log_pool=log_pool)
        self._trending, self.formula = trending, trending.formula
        self._cache = cache
        self._reached: BatchLoader[None, Reached] = BatchLoader(self._read_reached)
        self._stats = {
            (range_, bucket): BatchLoader(partial(self._read_stats, range_, bucket), MOST_AT_ONCE)
            for range_ in Range
            for bucket in Bucket
        }
        # The last change of the listing that was waited for in vain: nobody waits for it again.
        self._given_up = 0

    @classmethod
    async def open(
        cls, settings: TrendingSettings, url: str, redis: Redis, log_pool: Pool, limits: Limits
    ) -> AnalyticsQueries:
        """Connect to the analytics at `url`; rankings are cached in `redis`."""
        # A pool of its own: a ranking takes far longer than a look at a video.
        pool = make_pool(url, max_size=4, limits=limits)
        await pool.open()
        lifetimes = Lifetimes(
            timedelta(seconds=settings.cache_ttl_seconds),
            timedelta(seconds=settings.invalidate_seconds),
        )
        trending = Trending(Formula.from_settings(settings))
        return cls(pool, log_pool, trending, TrendingCache(redis, lifetimes))

    async def aclose(self) -> None:
        """Close the connections."""
        await self.pool.close()

    async def wait(self, fresh: Freshness, *names: str) -> None:
        """Return when these consumers have taken in what an answer has to include.

        Raise ReadModelBehind and AnalyticsUnavailable.
        """
        if not any(fresh.position):
            return
        wanted = {name: _followed(name, fresh.position) for name in names}
        async with _outage_as_unavailable():
            await self._consumers.until(wanted, fresh.seconds_left)

    @asynccontextmanager
    async def reading(
        self, fresh: Freshness, *names: str
    ) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """Yield a connection, once these consumers have taken in what an answer has to include.

        The answer is told to be as far as they are. Raise ReadModelBehind and AnalyticsUnavailable.
        """
        await self.wait(fresh, *names)
        async with self._connection() as conn:
            for name in names:
                at = await _reached(conn, name)
                # Nothing that it doesn't follow is missing.
                missing = fresh.position.events if name == FEEDBACK_CONSUMER else 0
                fresh.tell(Position(max(at.events, missing), at.telemetry))
            yield conn

    async def ranking(
        self,
        window: Window,
        limit: int,
        category: str | None,
        *,
        fresh: Freshness = WHATEVER_THERE_IS,
        without: Collection[UUID] = (),
    ) -> tuple[Ranking, bool]:
        """Return a ranking, and whether it was cached; one without some videos never is.

        Raise ReadModelBehind and AnalyticsUnavailable.
        """

        reached = BEGINNING

        async def make(now: datetime) -> tuple[Ranked, ...]:
            nonlocal reached
            await self.wait(fresh, COUNTS_CONSUMER, VIDEOS_CONSUMER)
            async with self._connection() as conn:
                reached = await _reached(conn, COUNTS_CONSUMER)
                ranked = await self._trending.rank(
                    conn, window, limit=limit, now=now, category=category, without=without
                )
                return tuple(ranked)

        if without:
            now = datetime.now(UTC)
            return CachedValue(await make(now), now, None, includes=reached), False
        wanted = Requirement(await self._edition(fresh), fresh.position)
        return await self._cache.get(window, limit, category, make, wanted, lambda: reached)

    async def rank_by(self, formula: Formula, window: Window, limit: int) -> list[Ranked]:
        """Return a ranking by another formula, made now and kept nowhere.

        Raise AnalyticsUnavailable.
        """
        trending, now = Trending(formula), datetime.now(UTC)
        async with self._connection() as conn:
            return await trending.rank(conn, window, limit=limit, now=now)

    async def settle(self, fresh: Freshness, position: Position) -> None:
        """Wait for what a caller has done; go on without what does not come in time.

        Nobody waits for a consumer that has never begun. Raise AnalyticsUnavailable.
        """
        reached = await self.reached()
        if reached.offsets is None or reached.position.covers(position):
            return
        async with _outage_as_unavailable():
            await self._consumers.settle({COUNTS_CONSUMER: position}, fresh.seconds_left)

    async def reached(self) -> Reached:
        """Return how far the counts are now; raise AnalyticsUnavailable."""
        async with _outage_as_unavailable():
            return await self._reached.ask(None)

    async def stats(
        self, video_id: UUID, range_: Range, bucket: Bucket, began: datetime
    ) -> tuple[Stats, Reached]:
        """Return the stats of a video that exists since it began, and what they include.

        Raise AnalyticsUnavailable, and TooManyPoints for hours of all times.
        """
        async with _outage_as_unavailable():
            return await self._stats[range_, bucket].ask((video_id, began))

    async def _read_reached(self, keys: Sequence[None]) -> dict[None, Reached]:
        async with self.pool.connection() as conn, conn.cursor(binary=True) as cursor:
            await cursor.execute(COUNTED_UP_TO.encode(), prepare=True)
            ((events, telemetry, offsets),) = await cursor.fetchall()
        return {None: Reached(Position(events, telemetry), offsets)}

    async def _read_stats(
        self, range_: Range, bucket: Bucket, asked: Sequence[tuple[UUID, datetime]]
    ) -> dict[tuple[UUID, datetime], tuple[Stats, Reached]]:
        async with self.pool.connection() as conn:
            found, reached = await read_stats(conn, dict(asked), range_, bucket, datetime.now(UTC))
        return {each: (found[each[0]], reached) for each in asked}

    async def _edition(self, fresh: Freshness) -> int | None:
        """Return the edition of the listing with all that the catalog took out or moved.

        Return None while the analytics don't answer: a cached ranking is better than none.
        """
        try:
            edition, position = await self._listing()
            if position is not None and await self._follow_catalog(position, fresh):
                edition, _ = await self._listing()
        except AnalyticsUnavailable:
            return None
        return edition

    async def _listing(self) -> tuple[int | None, int | None]:
        """Return the row of LISTING; nothing where no consumer has ever begun."""
        async with self._connection() as conn:
            try:
                cursor = await conn.execute(LISTING)
            except UndefinedTable:
                return None, None
            return await cursor.fetchone() or (None, None)

    async def _follow_catalog(self, position: int, fresh: Freshness) -> bool:
        """Wait until the listing knows the catalog's changes; return whether there were any.

        `position` is that of the listing.
        """
        async with _outage_as_unavailable(), self._log_pool.connection() as conn:
            cursor = await conn.execute(CHANGED, (position, Catalog.name, CHANGES))
            ((changed,),) = await cursor.fetchall()
        if changed <= self._given_up:
            return False
        seconds = min(LISTING_SECONDS, fresh.seconds_left) if fresh.is_asked else LISTING_SECONDS
        try:
            async with _outage_as_unavailable():
                await self._models.until({Catalog.name: Position(changed)}, seconds)
                await self._consumers.until({VIDEOS_CONSUMER: Position(changed)}, seconds)
        except ReadModelBehind as behind:
            self._given_up = changed
            TRENDING_BEHIND_CATALOG.inc()
            log.warning("ranking_behind_catalog", position=changed, reached=behind.positions)
        return True

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection[TupleRow]]:
        async with _outage_as_unavailable(), self.pool.connection() as conn:
            yield conn


@asynccontextmanager
async def _outage_as_unavailable() -> AsyncIterator[None]:
    """Raise AnalyticsUnavailable where a database does not answer."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise AnalyticsUnavailable(str(error)) from error

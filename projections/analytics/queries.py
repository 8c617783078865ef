"""The queries of the analytics: stats and rankings, over a pool of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog
from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg.errors import UndefinedTable
from psycopg.rows import TupleRow
from redis.asyncio import Redis

from domain.upload import Upload
from engine.codec import topics_of
from engine.event_store import EVENTS
from engine.freshness import WHATEVER_THERE_IS, Freshness, Pool, ReadModelBehind, Waiting
from infra.cache import Cached, Lifetimes, Requirement
from infra.metrics import counter
from infra.position import Position
from infra.postgres.connection import Limits
from infra.postgres.pool import make_pool
from infra.settings.features import TrendingSettings
from projections.analytics.stats import Bucket, Range, Stats, stats_of
from projections.catalog import Catalog
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
       NULL::int
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
CHANGES = [*topics_of(Upload.DetailsChanged), *topics_of(Upload.Removed)]

# How long a ranking waits for the analytics to learn what was just removed or moved.
LISTING_SECONDS = 1.0

TRENDING_BEHIND_CATALOG = counter(
    "backlot_trending_behind_catalog",
    "Rankings made without a removal or a new category that the analytics did not know in time.",
)


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
        self._trending = trending
        self._cache = cache
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
        if not fresh.is_asked:
            return
        wanted = dict.fromkeys(names, fresh.position)
        if VIDEOS_CONSUMER in wanted:
            # It follows the event log alone.
            wanted[VIDEOS_CONSUMER] = Position(fresh.position.events)
        async with _outage_as_unavailable():
            await self._consumers.until(wanted, fresh.seconds_left)

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

        async def make(now: datetime) -> list[Ranked]:
            await self.wait(fresh, COUNTS_CONSUMER, VIDEOS_CONSUMER)
            async with self._connection() as conn:
                return await self._trending.rank(
                    conn, window, limit=limit, now=now, category=category, without=without
                )

        if without:
            now = datetime.now(UTC)
            return Cached(tuple(await make(now)), now, None), False
        wanted = Requirement(await self._edition(fresh), fresh.position)
        return await self._cache.get(window, limit, category, make, wanted)

    async def stats(
        self, video_id: UUID, range_: Range, bucket: Bucket, *, began: datetime, fresh: Freshness
    ) -> Stats:
        """Return the stats of a video that exists since `began`.

        Raise ReadModelBehind, AnalyticsUnavailable, and TooManyPoints for hours of all times.
        """
        await self.wait(fresh, COUNTS_CONSUMER, VIDEOS_CONSUMER)
        now = datetime.now(UTC)
        async with self._connection() as conn:
            return await stats_of(conn, video_id, range_, bucket, began=began, now=now)

    async def _edition(self, fresh: Freshness) -> int | None:
        """Return the edition of the listing with all removals and moves of the catalog.

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

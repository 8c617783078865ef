"""The queries of the analytics: stats and rankings, over a pool of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID

import structlog
from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg.rows import TupleRow
from redis.asyncio import Redis

from engine.freshness import WHATEVER_THERE_IS, Freshness, Pool, ReadModelBehind, Waiting
from infra.cache import CachedValue, Requirement
from infra.http.shapes import Position
from infra.metrics import counter
from infra.postgres.connection import Limits, make_pool
from infra.settings.features import TrendingSettings
from projections.analytics.arrival import COUNTS_CONSUMER, REACHED, VIDEOS_CONSUMER
from projections.analytics.stats import Bucket, Range, Stats, stats_of
from projections.analytics.windows import Window
from projections.catalog import Catalog
from projections.trending.cache import Ranking, TrendingCache, lifetimes_from
from projections.trending.formula import Formula
from projections.trending.ranking import Listing, Ranked, Trending, changed_after, listing

log = structlog.get_logger(__name__)

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
        cache = TrendingCache(redis, lifetimes_from(settings))
        return cls(pool, log_pool, Trending(Formula.from_settings(settings)), cache)

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
        async with _reached():
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
            return CachedValue(tuple(await make(now)), now, None), False
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
            found = await self._listing()
            if found is not None and await self._follow_catalog(found, fresh):
                found = await self._listing()
        except AnalyticsUnavailable:
            return None
        return None if found is None else found.edition

    async def _listing(self) -> Listing | None:
        async with self._connection() as conn:
            return await listing(conn)

    async def _follow_catalog(self, found: Listing, fresh: Freshness) -> bool:
        """Wait until the listing knows the catalog's changes; return whether there were any."""
        if found.position is None:
            return False
        async with _reached(), self._log_pool.connection() as conn:
            changed = await changed_after(conn, found.position)
        if changed <= self._given_up:
            return False
        seconds = min(LISTING_SECONDS, fresh.seconds_left) if fresh.is_asked else LISTING_SECONDS
        try:
            async with _reached():
                await self._models.until({Catalog.name: Position(changed)}, seconds)
                await self._consumers.until({VIDEOS_CONSUMER: Position(changed)}, seconds)
        except ReadModelBehind as behind:
            self._given_up = changed
            TRENDING_BEHIND_CATALOG.inc()
            log.warning("ranking_behind_catalog", position=changed, reached=behind.positions)
        return True

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection[TupleRow]]:
        async with _reached(), self.pool.connection() as conn:
            yield conn


@asynccontextmanager
async def _reached() -> AsyncIterator[None]:
    """Raise AnalyticsUnavailable where a database does not answer."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise AnalyticsUnavailable(str(error)) from error

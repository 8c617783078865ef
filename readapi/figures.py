"""What the routes of the analytics stand on: connections of their own, and kept rankings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID

from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg.rows import TupleRow
from redis.asyncio import Redis

from infra.connecting import Limits
from infra.settings import Settings
from projections.analytics.formula import Formula
from projections.analytics.stats import Bucket, Range, Stats, stats_of
from projections.analytics.trending import Ranked, Trending
from projections.analytics.trending_cache import Ranking, TrendingCache, lifetimes_from
from projections.analytics.windows import Window
from projections.waiting import Pool
from readapi.pool import make_pool


class AnalyticsUnavailable(Exception):
    """The database of the analytics does not answer."""


class AnalyticsQueries:
    """Stats and trending, where the analytics are kept; to be used from one event loop."""

    def __init__(self, pool: Pool, trending: Trending, cache: TrendingCache) -> None:
        self.pool = pool
        self._trending = trending
        self._cache = cache

    @classmethod
    async def open(cls, settings: Settings, url: str, redis: Redis) -> AnalyticsQueries:
        """With connections to the analytics at `url` and rankings kept in `redis`."""
        # A pool of its own: a ranking takes far longer than a look at a video.
        pool = make_pool(url, max_size=4, limits=Limits.from_settings(settings))
        await pool.open()
        cache = TrendingCache(redis, lifetimes_from(settings))
        return cls(pool, Trending(Formula.from_settings(settings)), cache)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.pool.close()

    async def ranking(
        self, window: Window, limit: int, category: str | None
    ) -> tuple[Ranking, bool]:
        """Who trends, and whether that was kept; raises AnalyticsUnavailable."""

        async def make(now: datetime) -> list[Ranked]:
            async with self._connection() as conn:
                return await self._trending.rank(
                    conn, window, limit=limit, now=now, category=category
                )

        return await self._cache.get(window, limit, category, make)

    async def stats(
        self, video_id: UUID, range_: Range, bucket: Bucket, *, began: datetime
    ) -> Stats:
        """How a video did that there is since `began`.

        Raises AnalyticsUnavailable, and TooManyPoints for hours of all times.
        """
        now = datetime.now(UTC)
        async with self._connection() as conn:
            return await stats_of(conn, video_id, range_, bucket, began=began, now=now)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection[TupleRow]]:
        try:
            async with self.pool.connection() as conn:
                yield conn
        except (OperationalError, InterfaceError) as error:
            raise AnalyticsUnavailable(str(error)) from error

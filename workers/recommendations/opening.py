"""Opens what tasks make recommendations with: connections of their own, on their event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from redis.asyncio import Redis

from infra.connecting import Limits
from infra.settings import Settings
from projections.catalog import Catalog
from projections.likes import Likes
from projections.recommendations.cache import RecommendationCache
from readapi.figures import AnalyticsQueries
from readapi.pool import make_pool
from readapi.recommending import open_recommendations


@asynccontextmanager
async def open_preparing(
    settings: Settings, database_url: str, redis: Redis
) -> AsyncIterator[RecommendationCache | None]:
    """Recommendations as the query API makes them; None where none are made in advance."""
    if not settings.recommendations.precompute_seconds:
        yield None
        return
    async with AsyncExitStack() as stack:
        limits = Limits.from_settings(settings.database)
        pool = make_pool(database_url, max_size=4, limits=limits)
        await pool.open()
        stack.push_async_callback(pool.close)
        url = settings.analytics.url(database_url)
        analytics = await AnalyticsQueries.open(settings.trending, url, redis, pool, limits)
        stack.push_async_callback(analytics.aclose)
        made = open_recommendations(
            settings.recommendations,
            settings.llm,
            redis,
            pool,
            analytics,
            likes=Likes(),
            catalog=Catalog(),
        )
        stack.push_async_callback(made.aclose)
        yield made

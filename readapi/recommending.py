"""Puts the recommendations together from the settings, for whoever answers or prepares them."""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from infra.settings.adapters import LanguageModelSettings
from infra.settings.features import RecommendationSettings
from projections import consumers
from projections.analytics.trending import Ranked
from projections.analytics.windows import Window
from projections.catalog import Catalog
from projections.likes import Likes
from projections.recommendations.cache import RecommendationCache
from projections.recommendations.ranker import make_ranker
from projections.recommendations.recommender import MOST, Recommender
from projections.recommendations.weighing import Weighing
from projections.waiting import Freshness, Pool
from readapi.figures import AnalyticsQueries, AnalyticsUnavailable


def open_recommendations(
    settings: RecommendationSettings,
    llm: LanguageModelSettings,
    redis: Redis,
    pool: Pool,
    analytics: AnalyticsQueries,
    *,
    likes: Likes,
    catalog: Catalog,
) -> RecommendationCache:
    """Recommendations from these connections; to be closed before them. Raises SettingsError."""

    async def trend(fresh: Freshness) -> Sequence[Ranked]:
        try:
            await analytics.wait(fresh, consumers.ENGAGED, consumers.COUNTS, consumers.VIDEOS)
            ranking, _ = await analytics.ranking(Window.WEEK, MOST, None, fresh=fresh)
        except AnalyticsUnavailable:
            return ()
        return ranking.value

    recommender = Recommender(
        pool,
        analytics.pool,
        likes=likes,
        catalog=catalog,
        trend=trend,
        ranker=make_ranker(settings, llm, redis),
        seconds=settings.timeout_seconds,
        weighing=Weighing.from_settings(settings),
    )
    return RecommendationCache(redis, recommender, settings)

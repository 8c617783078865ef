"""A user's recommendations are cached in Redis for an hour, until the user engages with more."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import timedelta

from pydantic import TypeAdapter
from redis.asyncio import Redis

from engine.freshness import WHATEVER_THERE_IS, Freshness, Pool
from infra.cache import Cached, Generations, Lifetimes, ReadThroughCache, Requirement
from infra.metrics import counter
from infra.redis import OptionalRedis
from infra.settings.adapters import LanguageModelSettings
from infra.settings.features import RecommendationSettings
from projections.analytics.queries import (
    COUNTS_CONSUMER,
    ENGAGED_CONSUMER,
    VIDEOS_CONSUMER,
    AnalyticsQueries,
    AnalyticsUnavailable,
)
from projections.catalog import Catalog
from projections.likes import Likes
from projections.recommendations.model import RankedRecommendations, Weighing
from projections.recommendations.ranker import make_ranker
from projections.recommendations.recommender import MOST, Recommender
from projections.trending import Ranked, Window

PREFIX = "user:recommendations:"
ENGAGED_PREFIX = "recommendations:engaged:"
"""Before a user's id: a key that holds another value each time the user engages with something."""
# How long an answer is cached that lacks what failed.
LACKING_SECONDS = 30

FORM: TypeAdapter[Cached[RankedRecommendations]] = TypeAdapter(Cached[RankedRecommendations])

RECOMMENDATION_LOOKUPS = counter(
    "backlot_recommendation_lookups",
    "Recommendations that were asked for: from the cache, made, or shared with their maker.",
    ("outcome",),
)
RECOMMENDATION_CACHE_FAILURES = counter(
    "backlot_recommendation_cache_failures",
    "Times that Redis did not answer for their cache, or held what can't be read.",
)


class RecommendationInvalidation:
    """Tells all processes whose profile has changed; to be used from one event loop."""

    def __init__(self, redis: Redis, settings: RecommendationSettings) -> None:
        # Forgotten after whatever was computed before it.
        lifetime = timedelta(seconds=2 * settings.cache_ttl_seconds)
        self._generations = Generations(_optional(redis), lifetime)

    async def touch(self, users: Collection[str]) -> None:
        """Begin a generation of these users' recommendations; to be called after each commit.

        Recommendations older than RECOMMENDATIONS_INVALIDATE_SECONDS are then computed anew when
        they are asked for: a user who goes from video to video has that done now and then only.
        One round trip; never raises RedisError.
        """
        await self._generations.renew([ENGAGED_PREFIX + user for user in users])


class RecommendationCache:
    """Recommendations of one process and its peers; to be used from one event loop."""

    def __init__(
        self, redis: Redis, recommender: Recommender, settings: RecommendationSettings
    ) -> None:
        self._recommender = recommender
        self._whole = Lifetimes(
            timedelta(seconds=settings.cache_ttl_seconds),
            timedelta(seconds=settings.invalidate_seconds),
        )
        lacking = min(self._whole.longest, timedelta(seconds=LACKING_SECONDS))
        self._lacking = Lifetimes(lacking, min(lacking, self._whole.outdated))
        self._cache: ReadThroughCache[RankedRecommendations] = ReadThroughCache(
            _optional(redis),
            FORM,
            lambda made: self._whole if made.whole else self._lacking,
            lookups=RECOMMENDATION_LOOKUPS,
            unreadable=RECOMMENDATION_CACHE_FAILURES,
        )

    async def get(
        self, user_id: str, fresh: Freshness = WHATEVER_THERE_IS
    ) -> tuple[RankedRecommendations, bool]:
        """Return a user's recommendations, and whether they were cached.

        Concurrent callers share one computation. Some videos may be seen or removed by now: that
        is for `display` to tell. Where there are few, the newest videos follow, as they are now.
        Raise ReadModelBehind, and never RedisError.
        """
        made, cached = await self._cache.get(
            PREFIX + user_id,
            ENGAGED_PREFIX + user_id,
            lambda _: self._recommender.recommend(user_id, fresh),
            Requirement(position=fresh.position),
        )
        items = made.value.items
        if len(items) < MOST:
            known = {each.video_id for each in items}
            newest = await self._recommender.newest(user_id)
            items = (*items, *(each for each in newest if each.video_id not in known))
        return replace(made.value, items=items), cached

    async def aclose(self) -> None:
        """Give up what is being computed with a language model."""
        await self._recommender.aclose()


def _optional(redis: Redis) -> OptionalRedis:
    return OptionalRedis(redis, "recommendation_cache", RECOMMENDATION_CACHE_FAILURES)


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
    """Recommendations from these connections; to be closed before them. Raise SettingsError."""

    async def trend(fresh: Freshness) -> Sequence[Ranked]:
        try:
            await analytics.wait(fresh, ENGAGED_CONSUMER, COUNTS_CONSUMER, VIDEOS_CONSUMER)
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

"""A user's recommendations are kept in Redis for an hour, until the user likes or watches more."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta

from pydantic import TypeAdapter
from redis.asyncio import Redis

from infra.metrics import counter
from infra.patient import PatientRedis
from infra.settings.features import RecommendationSettings
from projections.kept import Kept, Lifetimes, Made, Needs, renew
from projections.recommendations.model import Recommendations
from projections.recommendations.recommender import MOST, Recommender
from projections.waiting import WHATEVER_THERE_IS, Freshness

PREFIX = "user:recommendations:"
ENGAGED_PREFIX = "recommendations:engaged:"
"""Another value each time that the user has engaged with something."""
# How long an answer is kept that lacks what failed.
LACKING_SECONDS = 30

FORM: TypeAdapter[Made[Recommendations]] = TypeAdapter(Made[Recommendations])

RECOMMENDATION_LOOKUPS = counter(
    "backlot_recommendation_lookups",
    "Recommendations that were asked for: from the cache, made, or shared with their maker.",
    ("outcome",),
)
RECOMMENDATION_CACHE_FAILURES = counter(
    "backlot_recommendation_cache_failures",
    "Times that Redis did not answer for their cache, or held what can't be read.",
)


class Invalidation:
    """Tells all processes whose profile has changed; to be used from one event loop."""

    def __init__(self, redis: Redis, settings: RecommendationSettings) -> None:
        self._redis = _patient(redis)
        # Forgotten after whatever was made before it.
        self._lifetime = timedelta(seconds=2 * settings.cache_ttl_seconds)

    async def touch(self, users: Collection[str]) -> None:
        """Call it after each commit. One round trip; never raises RedisError.

        Recommendations older than RECOMMENDATIONS_INVALIDATE_SECONDS are then made anew when they
        are asked for: somebody who goes from video to video has them made now and then only.
        """
        await renew(self._redis, [ENGAGED_PREFIX + user for user in users], self._lifetime)


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
        lacking = min(self._whole.kept, timedelta(seconds=LACKING_SECONDS))
        self._lacking = Lifetimes(lacking, min(lacking, self._whole.unsettled))
        self._kept: Kept[Recommendations] = Kept(
            _patient(redis),
            FORM,
            lambda made: self._whole if made.whole else self._lacking,
            lookups=RECOMMENDATION_LOOKUPS,
            unreadable=RECOMMENDATION_CACHE_FAILURES,
        )

    async def get(
        self, user_id: str, fresh: Freshness = WHATEVER_THERE_IS
    ) -> tuple[Recommendations, bool]:
        """A user's recommendations, and whether they were kept; made once for all who ask.

        Some may be seen or removed by now: that is for `display` to tell. Where there are few, what
        is newest follows, as it is now. Raises ReadModelBehind, and never RedisError.
        """
        made, cached = await self._kept.get(
            PREFIX + user_id,
            ENGAGED_PREFIX + user_id,
            lambda _: self._recommender.recommend(user_id, fresh),
            Needs(position=fresh.position),
        )
        items = made.value.items
        if len(items) < MOST:
            known = {each.video_id for each in items}
            newest = await self._recommender.newest(user_id)
            items = (*items, *(each for each in newest if each.video_id not in known))
        return replace(made.value, items=items), cached

    async def aclose(self) -> None:
        """Give up what is being made with a language model."""
        await self._recommender.aclose()


def _patient(redis: Redis) -> PatientRedis:
    return PatientRedis(redis, "recommendation_cache", RECOMMENDATION_CACHE_FAILURES)

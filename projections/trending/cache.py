"""Rankings are cached in Redis for a few minutes, and computed once for all who ask meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from pydantic import TypeAdapter
from redis.asyncio import Redis

from infra.cache import (
    ANY_VALUE,
    CachedValue,
    Generations,
    Lifetimes,
    ReadThroughCache,
    Requirement,
)
from infra.metrics import counter
from infra.redis import OptionalRedis
from infra.settings.features import TrendingSettings
from projections.analytics.windows import Window
from projections.trending.ranking import Ranked

PREFIX = "trending:"
GENERATION = "trending:generation"
"""Holds another value each time that something new was counted."""

Ranking = CachedValue[tuple[Ranked, ...]]
FORM: TypeAdapter[Ranking] = TypeAdapter(Ranking)
Compute = Callable[[datetime], Awaitable[list[Ranked]]]

TRENDING_LOOKUPS = counter(
    "backlot_trending_lookups",
    "Rankings that were asked for: from the cache, made, or shared with whoever had it made.",
    ("outcome",),
)
TRENDING_CACHE_FAILURES = counter(
    "backlot_trending_cache_failures",
    "Times that Redis did not answer for the cache of rankings, or held what can't be read.",
)


def lifetimes_from(settings: TrendingSettings) -> Lifetimes:
    """Return how long rankings are cached."""
    return Lifetimes(
        timedelta(seconds=settings.cache_ttl_seconds),
        timedelta(seconds=settings.invalidate_seconds),
    )


def key_of(window: Window, limit: int, category: str | None) -> str:
    """Return the key of a ranking in Redis."""
    whole = f"{PREFIX}{window}:{limit}"
    return whole if category is None else f"{whole}:{category}"


class TrendingInvalidation:
    """Tells all processes that something new was counted; to be used from one event loop."""

    def __init__(self, redis: Redis) -> None:
        self._generations = Generations(_optional(redis))

    async def touch(self) -> None:
        """Begin a generation of rankings; to be called after each commit.

        A ranking older than TRENDING_INVALIDATE_SECONDS is then computed anew when it is asked
        for. Never raises RedisError.
        """
        await self._generations.renew([GENERATION])


class TrendingCache:
    """Rankings of one process and its peers; to be used from one event loop."""

    def __init__(
        self,
        redis: Redis,
        lifetimes: Lifetimes,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cache: ReadThroughCache[tuple[Ranked, ...]] = ReadThroughCache(
            _optional(redis),
            FORM,
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
        compute: Compute,
        wanted: Requirement = ANY_VALUE,
    ) -> tuple[Ranking, bool]:
        """Return a ranking, and whether it was cached; else `compute` makes it as of a given time.

        Concurrent callers share one computation and its failure. Never raises RedisError.
        """

        async def ranked(now: datetime) -> tuple[Ranked, ...]:
            return tuple(await compute(now))

        return await self._cache.get(key_of(window, limit, category), GENERATION, ranked, wanted)


def _optional(redis: Redis) -> OptionalRedis:
    return OptionalRedis(redis, "trending_cache", TRENDING_CACHE_FAILURES)

"""Rankings are kept in Redis for a few minutes, and made once for all who ask meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from pydantic import TypeAdapter
from redis.asyncio import Redis

from infra.metrics import counter
from infra.patient import PatientRedis
from infra.settings.features import TrendingSettings
from projections.analytics.trending import Ranked
from projections.analytics.windows import Window
from projections.kept import ANYTHING, Kept, Lifetimes, Made, Needs, renew

PREFIX = "trending:"
GENERATION = "trending:generation"
"""Another value each time that something new was counted."""

Ranking = Made[tuple[Ranked, ...]]
FORM: TypeAdapter[Ranking] = TypeAdapter(Ranking)
Make = Callable[[datetime], Awaitable[list[Ranked]]]

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
    """How long rankings are kept."""
    return Lifetimes(
        timedelta(seconds=settings.cache_ttl_seconds),
        timedelta(seconds=settings.invalidate_seconds),
    )


def key_of(window: Window, limit: int, category: str | None) -> str:
    """Where a ranking lies."""
    whole = f"{PREFIX}{window}:{limit}"
    return whole if category is None else f"{whole}:{category}"


class Invalidation:
    """Tells all processes that something new was counted; to be used from one event loop."""

    def __init__(self, redis: Redis) -> None:
        self._redis = _patient(redis)

    async def touch(self) -> None:
        """Call it after each commit. One command; never raises RedisError.

        A ranking older than TRENDING_INVALIDATE_SECONDS is then made anew when it is asked for.
        """
        await renew(self._redis, [GENERATION], None)


class TrendingCache:
    """Rankings of one process and its peers; to be used from one event loop."""

    def __init__(
        self,
        redis: Redis,
        lifetimes: Lifetimes,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kept: Kept[tuple[Ranked, ...]] = Kept(
            _patient(redis),
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
        make: Make,
        needs: Needs = ANYTHING,
    ) -> tuple[Ranking, bool]:
        """A ranking, and whether it was kept; else `make` makes it, of the time that it is given.

        Who asks while it is being made gets the same, and the same failure. Never raises
        RedisError.
        """

        async def made(now: datetime) -> tuple[Ranked, ...]:
            return tuple(await make(now))

        return await self._kept.get(key_of(window, limit, category), GENERATION, made, needs)


def _patient(redis: Redis) -> PatientRedis:
    return PatientRedis(redis, "trending_cache", TRENDING_CACHE_FAILURES)

"""Rankings are kept in Redis for a few minutes, and made once for all who ask meanwhile.

What is kept here saves work and nothing else: without Redis, every ranking is made.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import structlog
from pydantic import TypeAdapter, ValidationError
from redis import RedisError
from redis.asyncio import Redis

from infra import metrics
from infra.flights import Flights
from infra.settings_analytics import AnalyticsSettings
from projections.analytics.trending import Ranked
from projections.analytics.windows import Window

log = structlog.get_logger(__name__)

R = TypeVar("R")

PREFIX = "trending:"
GENERATION = "trending:generation"
"""Another value each time that something new was counted."""
# A Redis that hangs takes a second of each question: it is left alone for so long.
AWAY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Ranking:
    """Who trended at `generated_at`; `generation` is what had been counted by then, if known."""

    items: tuple[Ranked, ...]
    generated_at: datetime
    generation: str | None


FORM = TypeAdapter(Ranking)
Make = Callable[[datetime], Awaitable[list[Ranked]]]


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long a ranking is kept, and how long at least although something new was counted."""

    kept: timedelta
    unsettled: timedelta

    @classmethod
    def from_settings(cls, settings: AnalyticsSettings) -> Lifetimes:
        return cls(
            timedelta(seconds=settings.trending_cache_ttl_seconds),
            timedelta(seconds=settings.trending_invalidate_seconds),
        )


def key_of(window: Window, limit: int, category: str | None) -> str:
    """Where a ranking lies."""
    whole = f"{PREFIX}{window}:{limit}"
    return whole if category is None else f"{whole}:{category}"


class Invalidation:
    """Tells all processes that something new was counted; to be used from one event loop."""

    def __init__(self, redis: Redis) -> None:
        self._redis = _Patient(redis)

    async def touch(self) -> None:
        """Call it after each commit. One command; never raises RedisError.

        A ranking older than TRENDING_INVALIDATE_SECONDS is then made anew when it is asked for.
        """
        token = secrets.token_hex(8)
        await self._redis.ask(lambda redis: redis.set(GENERATION, token))


class TrendingCache:
    """Rankings of one process and its peers; to be used from one event loop."""

    def __init__(
        self,
        redis: Redis,
        lifetimes: Lifetimes,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._redis = _Patient(redis)
        self._lifetimes = lifetimes
        self._clock = clock
        self._flights: Flights[tuple[Ranking, bool]] = Flights()

    async def get(
        self, window: Window, limit: int, category: str | None, make: Make
    ) -> tuple[Ranking, bool]:
        """A ranking, and whether it was kept; else `make` makes it, of the time that it is given.

        Who asks while it is being made gets the same, and the same failure. Never raises
        RedisError.
        """
        key = key_of(window, limit, category)
        found, shared = await self._flights.join(key, lambda: self._find_or_make(key, make))
        outcome = "shared" if shared else "cache" if found[1] else "made"
        metrics.TRENDING_LOOKUPS.labels(outcome).inc()
        return found

    async def _find_or_make(self, key: str, make: Make) -> tuple[Ranking, bool]:
        # Read before it is made: what is counted meanwhile may be in it or not.
        generation, kept = await self._look(key)
        now = self._clock()
        if kept is not None and self._holds(kept, generation, now):
            return kept, True
        ranking = Ranking(tuple(await make(now)), now, generation)
        value = FORM.dump_json(ranking)
        await self._redis.ask(lambda redis: redis.set(key, value, px=self._lifetimes.kept))
        return ranking, False

    def _holds(self, kept: Ranking, generation: str | None, now: datetime) -> bool:
        age = now - kept.generated_at
        if kept.generation == generation:
            return age < self._lifetimes.kept
        return age < self._lifetimes.unsettled

    async def _look(self, key: str) -> tuple[str | None, Ranking | None]:
        async def look(redis: Redis) -> list[bytes | None]:
            # Not MGET: the two keys need not be in one slot of a cluster.
            async with redis.pipeline(transaction=False) as pipe:
                _ = pipe.get(GENERATION)
                _ = pipe.get(key)
                found: list[bytes | None] = await pipe.execute()
                return found

        generation, value = await self._redis.ask(look) or (None, None)
        return generation.decode() if generation else None, _read(key, value)


class _Patient:
    """A Redis that may be away: then it is left alone for a while, and every answer is None."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._silent = False
        self._left_alone_until = 0.0

    async def ask(self, question: Callable[[Redis], Awaitable[R]]) -> R | None:
        if time.monotonic() < self._left_alone_until:
            return None
        try:
            answer = await question(self._redis)
        except (RedisError, OSError) as error:
            self._failed(error)
            return None
        if self._silent:
            self._silent = False
            log.info("trending_cache_back")
        return answer

    def _failed(self, error: Exception) -> None:
        metrics.TRENDING_CACHE_FAILURES.inc()
        self._left_alone_until = time.monotonic() + AWAY_SECONDS
        if not self._silent:
            self._silent = True
            log.warning("trending_cache_away", error=f"{type(error).__name__}: {error}")


def _read(key: str, value: bytes | None) -> Ranking | None:
    if value is None:
        return None
    try:
        return FORM.validate_json(value)
    except ValidationError:
        metrics.TRENDING_CACHE_FAILURES.inc()
        log.warning("trending_cache_unreadable", key=key)
        return None

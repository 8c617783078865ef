"""Answers that cost much are kept in Redis, and made once for all who ask meanwhile.

What is kept here saves work and nothing else: without Redis, every answer is made.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

import structlog
from prometheus_client import Counter
from pydantic import TypeAdapter, ValidationError
from redis.asyncio import Redis

from infra.flights import Flights
from infra.patient import PatientRedis
from infra.position import BEGINNING, Position

log = structlog.get_logger(__name__)

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Made(Generic[V]):
    """What was made at a time; `generation` is what there was to make it of by then, if known.

    What was recorded up to `includes` is in it.
    """

    value: V
    at: datetime
    generation: str | None
    edition: int | None = None
    includes: Position = BEGINNING

    def meets(self, needs: Needs) -> bool:
        """Whether it can be the answer, if it is not too old."""
        same = needs.edition is None or needs.edition == self.edition
        return same and self.includes.covers(needs.position)


@dataclass(frozen=True, slots=True)
class Needs:
    """What an answer must be, however new it is: of an edition if one is given, and include a
    position."""

    edition: int | None = None
    position: Position = BEGINNING


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long an answer is kept, and how long at least although there is something new."""

    kept: timedelta
    unsettled: timedelta


ANYTHING = Needs()


class Kept(Generic[V]):
    """Answers of one kind, for this process and its peers; to be used from one event loop."""

    def __init__(
        self,
        redis: PatientRedis,
        form: TypeAdapter[Made[V]],
        lifetimes: Callable[[V], Lifetimes],
        *,
        lookups: Counter,
        unreadable: Counter,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`lookups` counts outcomes (cache, made, shared), `unreadable` what can't be read."""
        self._redis = redis
        self._form = form
        self._lifetimes = lifetimes
        self._lookups = lookups
        self._unreadable = unreadable
        self._clock = clock
        self._flights: Flights[tuple[Made[V], bool]] = Flights()

    async def get(
        self,
        key: str,
        generation_key: str,
        make: Callable[[datetime], Awaitable[V]],
        needs: Needs = ANYTHING,
    ) -> tuple[Made[V], bool]:
        """An answer, and whether it was kept; else `make` makes it, of the time that it is given.

        One of an older generation than the one at `generation_key` holds for a while only. Who asks
        while it is being made gets the same, and the same failure. Never raises RedisError.
        """

        async def find_or_make() -> tuple[Made[V], bool]:
            return await self._find_or_make(key, generation_key, make, needs)

        found, shared = await self._flights.join(f"{key} {needs}", find_or_make)
        self._lookups.labels("shared" if shared else "cache" if found[1] else "made").inc()
        return found

    async def _find_or_make(
        self,
        key: str,
        generation_key: str,
        make: Callable[[datetime], Awaitable[V]],
        needs: Needs,
    ) -> tuple[Made[V], bool]:
        # Read before it is made: what comes meanwhile may be in it or not.
        generation, kept = await self._look(key, generation_key)
        now = self._clock()
        if kept is not None and kept.meets(needs) and self._holds(kept, generation, now):
            return kept, True
        made = Made(await make(now), now, generation, needs.edition, needs.position)
        lifetime = self._lifetimes(made.value).kept
        value = self._form.dump_json(made)
        await self._redis.ask(lambda redis: redis.set(key, value, px=lifetime))
        return made, False

    def _holds(self, kept: Made[V], generation: str | None, now: datetime) -> bool:
        lifetimes, age = self._lifetimes(kept.value), now - kept.at
        return age < (lifetimes.kept if kept.generation == generation else lifetimes.unsettled)

    async def _look(self, key: str, generation_key: str) -> tuple[str | None, Made[V] | None]:
        async def look(redis: Redis) -> list[bytes | None]:
            # Not MGET: the two keys need not be in one slot of a cluster.
            async with redis.pipeline(transaction=False) as pipe:
                _ = pipe.get(generation_key)
                _ = pipe.get(key)
                found: list[bytes | None] = await pipe.execute()
                return found

        generation, value = await self._redis.ask(look) or (None, None)
        return generation.decode() if generation else None, self._read(key, value)

    def _read(self, key: str, value: bytes | None) -> Made[V] | None:
        if value is None:
            return None
        try:
            return self._form.validate_json(value)
        except ValidationError:
            self._unreadable.inc()
            log.warning("kept_unreadable", key=key.rpartition(":")[0])
            return None


async def renew(redis: PatientRedis, keys: Iterable[str], lifetime: timedelta | None) -> None:
    """Begin new generations: what was made of the ones before is soon made anew.

    They are forgotten after `lifetime`, which is longer than anything is kept. Never raises
    RedisError.
    """

    async def set_all(redis: Redis) -> None:
        async with redis.pipeline(transaction=False) as pipe:
            for key in keys:
                _ = pipe.set(key, secrets.token_hex(8), px=lifetime)
            await pipe.execute()

    await redis.ask(set_all)

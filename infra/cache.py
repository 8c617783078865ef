"""A read-through cache in Redis whose misses are computed once for all callers.

What is cached here saves work and nothing else: without Redis, every value is computed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, NamedTuple, TypeVar

import orjson
import structlog
from prometheus_client import Counter
from pydantic import TypeAdapter, ValidationError
from redis import RedisError
from redis.asyncio import Redis

from infra.batcher import Batches
from infra.circuit_breaker import CircuitBreaker, CircuitState
from infra.http.shapes import BEGINNING, Position

log = structlog.get_logger(__name__)

# A Redis that hangs takes a second of each question: after a failure it is left alone for so long.
AWAY_SECONDS = 5.0
# Of Redis; a value may have 100 KB.
KEYS_AT_ONCE, VALUES_AT_ONCE = 1_000, 50

Key = bytes | str
KeyPair = tuple[str, str]
"""Of a generation, and of a value."""
Looked = tuple[bytes | None, bytes | None]
# What a cached value ends with: when it was computed, of which generation, and what it includes.
TIME_FIELD = b',"at":'
ENDING_BYTES = 300

R = TypeVar("R")
T = TypeVar("T")
V = TypeVar("V")


class FlightResult(NamedTuple, Generic[T]):
    """A result, and whether another caller had it computed."""

    result: T
    shared: bool


class SingleFlight(Generic[T]):
    """Work by key, which is done once for all who ask for it meanwhile; for one event loop."""

    def __init__(self) -> None:
        self._flights: dict[str, asyncio.Future[FlightResult[T] | None]] = {}

    async def join(self, key: str, work: Callable[[], Awaitable[T]]) -> FlightResult[T]:
        """Return the result of `work`, or of the call under way for this key.

        Its failure is shared too: callers that all tried again at once would only repeat it. When
        the caller that does the work is cancelled, one of the others begins anew.
        """
        while (flight := self._flights.get(key)) is not None:
            # Shielded: a caller that goes away must not take the others' result along.
            result = await asyncio.shield(flight)
            if result is not None:
                return result
        return await self._lead(key, work)

    async def _lead(self, key: str, work: Callable[[], Awaitable[T]]) -> FlightResult[T]:
        flight: asyncio.Future[FlightResult[T] | None] = asyncio.get_running_loop().create_future()
        self._flights[key] = flight
        try:
            result = await work()
        except Exception as error:
            flight.set_exception(error)
            # It is raised here anyway; asyncio must not complain when nobody else waits for it.
            flight.exception()
            raise
        else:
            flight.set_result(FlightResult(result, shared=True))
            return FlightResult(result, shared=False)
        finally:
            del self._flights[key]
            if not flight.done():
                flight.set_result(None)


class RedisAway(RedisError):
    """Redis failed a moment ago, and is not asked."""


class OptionalRedis:
    """A Redis that callers can do without: while it is away, each question has no answer.

    To be used from one event loop.
    """

    def __init__(self, redis: Redis, name: str, failures: Counter) -> None:
        """`failures` are counted; `<name>_away` and `<name>_back` are logged, once each."""
        self._redis = redis
        self._failures = failures
        self._breaker = _RedisBreaker(name)

    @property
    def away(self) -> bool:
        """Whether Redis failed a moment ago, and is not asked."""
        return self._breaker.seconds_left > 0

    async def ask(self, question: Callable[[Redis], Awaitable[R]]) -> R | None:
        """Return the answer, None while Redis is away. Never raises RedisError."""
        try:
            with self._breaker.attempt():
                return await question(self._redis)
        except RedisAway:
            return None
        except (RedisError, OSError):
            self._failures.inc()
            return None

    def failed(self, error: Exception) -> None:
        """Leave Redis alone for a while, because of a failure that was seen elsewhere."""
        self._failures.inc()
        self._breaker.fail(error)


class _RedisBreaker(CircuitBreaker):
    service = "redis"

    def __init__(self, name: str) -> None:
        super().__init__(AWAY_SECONDS)
        self._away, self._back = f"{name}_away", f"{name}_back"

    def refusal(self, retry_after: float | None) -> Exception:
        return RedisAway("Redis failed a moment ago")

    def blames(self, error: BaseException) -> bool | None:
        return True if isinstance(error, (RedisError, OSError)) else None

    def changed(self, before: CircuitState, error: BaseException | None) -> None:
        if before is CircuitState.CLOSED:
            log.warning(self._away, error=f"{type(error).__name__}: {error}")
        elif self.state is CircuitState.CLOSED:
            log.info(self._back)


def quick_json(value: object) -> bytes:
    """Return JSON of dataclasses and named tuples, in a third of the time that pydantic takes.

    Only for types whose JSON pydantic does not form otherwise. Raise orjson.JSONEncodeError.
    """
    return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z)


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    raise TypeError


class RedisValues(Generic[V]):
    """Values of one type in a Redis that may be away: then there are none. No RedisError leaves."""

    def __init__(
        self,
        redis: OptionalRedis,
        form: TypeAdapter[V],
        *,
        unreadable: Counter,
        event: str,
        dump: Callable[[V], bytes] | None = None,
    ) -> None:
        """`unreadable` counts values that can't be read; `event` is what is logged of each.

        `dump` makes JSON that `form` can read.
        """
        self.redis = redis
        self._form = form
        self._dump = dump or form.dump_json
        self._unreadable = unreadable
        self._event = event
        self._stores: Batches[tuple[str, bytes, timedelta], None] = Batches(self._store_all)

    async def load(self, key: str) -> V | None:
        """Return the value at the key, None where there is none that can be read."""

        async def get(redis: Redis) -> bytes | None:
            # Clients here answer bytes; redis-py types both kinds.
            found: bytes | None = await redis.get(key)  # type: ignore[assignment]
            return found

        return self.parse(key, await self.redis.ask(get))

    async def store(self, key: str, value: V, lifetime: timedelta) -> None:
        """Put the value at the key, or do nothing while Redis is away."""
        await self._stores.ask((key, self._dump(value), lifetime))

    async def _store_all(self, wanted: Sequence[tuple[str, bytes, timedelta]]) -> Sequence[None]:
        async def set_all(redis: Redis) -> None:
            async with redis.pipeline(transaction=False) as pipe:
                for key, text, lifetime in wanted:
                    _ = pipe.set(key, text, px=lifetime)
                await pipe.execute()

        await self.redis.ask(set_all)
        return [None] * len(wanted)

    def parse(self, key: str, text: bytes | None) -> V | None:
        """Return the value that was read from the key, None where it can't be understood."""
        if text is None:
            return None
        try:
            return self._form.validate_json(text)
        except ValidationError:
            self._unreadable.inc()
            # What stands behind the last colon may be a person's id.
            log.warning(self._event, key=key.rpartition(":")[0])
            return None


async def drop_values(redis: Redis, prefix: str, texts: Collection[str] | None = None) -> int:
    """Drop the values at keys with a prefix, or those that have one of these strings of JSON.

    It goes through all keys, a page at a time, and with `texts` reads each value of that prefix.
    Return how many are dropped. Raise RedisError.
    """
    wanted = None if texts is None else {text.encode() for text in texts}
    cursor, dropped = None, 0
    while cursor != 0:
        cursor, keys = await redis.scan(cursor or 0, match=f"{prefix}*", count=KEYS_AT_ONCE)
        for start in range(0, len(keys), VALUES_AT_ONCE):
            some = keys[start : start + VALUES_AT_ONCE]
            found = some if wanted is None else await _with_one_of(redis, some, wanted)
            dropped += await redis.unlink(*found) if found else 0
    return dropped


async def _with_one_of(redis: Redis, keys: Sequence[Key], wanted: set[bytes]) -> list[Key]:
    async with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            _ = pipe.get(key)
        values = await pipe.execute()
    # Split, not searched: a user may have had thousands of videos.
    return [
        key
        for key, value in zip(keys, values, strict=True)
        if value is not None and not wanted.isdisjoint(value.split(b'"'))
    ]


@dataclass(frozen=True, slots=True)
class CachedValue(Generic[V]):
    """A value, when it was computed, and of what.

    `generation` is what the key of the generation held before the computation, if that is known.
    The value includes what was recorded up to `includes`.
    """

    value: V
    at: datetime
    generation: str | None
    edition: int | None = None
    includes: Position = BEGINNING

    def meets(self, wanted: Requirement) -> bool:
        """Return whether this can be the answer, as long as it is not too old."""
        same = wanted.edition is None or wanted.edition == self.edition
        return same and self.includes.covers(wanted.position)


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a caller asks of a value beside its age: an edition, if given, and a position."""

    edition: int | None = None
    position: Position = BEGINNING


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long a value holds, and for how long once another generation has begun."""

    longest: timedelta
    outdated: timedelta


ANY_VALUE = Requirement()


class ReadThroughCache(Generic[V]):
    """Values of one kind, for this process and its peers; to be used from one event loop."""

    def __init__(
        self,
        redis: OptionalRedis,
        form: TypeAdapter[CachedValue[V]],
        lifetimes: Callable[[V], Lifetimes],
        *,
        lookups: Counter,
        unreadable: Counter,
        dump: Callable[[CachedValue[V]], bytes] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`lookups` counts outcomes (cache, made, shared), `unreadable` what can't be read.

        `dump` is as in `RedisValues`.
        """
        self._values = RedisValues(
            redis, form, unreadable=unreadable, event="kept_unreadable", dump=dump
        )
        self._lifetimes = lifetimes
        self._lookups = lookups
        self._clock = clock
        self._flights: SingleFlight[tuple[CachedValue[V], bool]] = SingleFlight()
        self._looks: Batches[KeyPair, Looked] = Batches(self._look_all)
        self._checks: Batches[KeyPair, Looked] = Batches(self._check_all)

    async def get(
        self,
        key: str,
        generation_key: str,
        compute: Callable[[datetime], Awaitable[V]],
        wanted: Requirement = ANY_VALUE,
        includes: Callable[[], Position] = Position,
    ) -> tuple[CachedValue[V], bool]:
        """Return a value, and whether it was cached; else `compute` makes it as of a given time.

        Then `includes` tells what is in it beside what was wanted. A value of another generation
        than that at `generation_key` holds for a while only. Concurrent callers share one
        computation and its failure. Never raises RedisError.
        """

        async def read_through() -> tuple[CachedValue[V], bool]:
            # The generation is read first: a change during the computation may be in it or not.
            generation, cached = await self._look(key, generation_key)
            now = self._clock()
            if cached is not None and cached.meets(wanted) and self._holds(cached, generation, now):
                return cached, True
            value = await compute(now)
            surely = Position(*map(max, wanted.position, includes()))
            made = CachedValue(value, now, generation, wanted.edition, surely)
            await self._values.store(key, made, self._lifetimes(made.value).longest)
            return made, False

        found, shared = await self._flights.join(f"{key} {wanted}", read_through)
        self._lookups.labels("shared" if shared else "cache" if found[1] else "made").inc()
        return found

    def _holds(self, cached: CachedValue[V], generation: str | None, now: datetime) -> bool:
        lifetimes, age = self._lifetimes(cached.value), now - cached.at
        current = cached.generation == generation
        return age < (lifetimes.longest if current else lifetimes.outdated)

    async def holds(self, key: str, generation_key: str, found: CachedValue[V]) -> bool:
        """Return whether a value that `get` gave is what it would give still, without reading it.

        It is not once it was made anew or dropped, by whomever, nor while Redis is away.
        """
        generation, ending = await self._checks.ask((generation_key, key))
        if ending is None or _at(ending) != found.at:
            return False
        return self._holds(found, generation.decode() if generation else None, self._clock())

    async def _look(
        self, key: str, generation_key: str
    ) -> tuple[str | None, CachedValue[V] | None]:
        generation, value = await self._looks.ask((generation_key, key))
        return generation.decode() if generation else None, self._values.parse(key, value)

    async def _look_all(self, wanted: Sequence[KeyPair]) -> Sequence[Looked]:
        async def look(redis: Redis) -> list[bytes | None]:
            # Not MGET: the keys need not be in one slot of a cluster.
            async with redis.pipeline(transaction=False) as pipe:
                for generation_key, key in wanted:
                    _ = pipe.get(generation_key)
                    _ = pipe.get(key)
                found: list[bytes | None] = await pipe.execute()
                return found

        return _in_pairs(await self._values.redis.ask(look), len(wanted))

    async def _check_all(self, wanted: Sequence[KeyPair]) -> Sequence[Looked]:
        async def check(redis: Redis) -> list[bytes | None]:
            async with redis.pipeline(transaction=False) as pipe:
                for generation_key, key in wanted:
                    _ = pipe.get(generation_key)
                    _ = pipe.getrange(key, -ENDING_BYTES, -1)
                found: list[bytes | None] = await pipe.execute()
                return found

        return _in_pairs(await self._values.redis.ask(check), len(wanted))


def _in_pairs(found: Sequence[bytes | None] | None, most: int) -> Sequence[Looked]:
    """Return a generation and a value, or what there is of it, each; none while Redis is away."""
    if found is None:
        return [(None, None)] * most
    return list(zip(found[::2], found[1::2], strict=True))


def _at(ending: bytes) -> datetime | None:
    """Return when a value was computed that ends like this, None where that can't be told."""
    begins = ending.rfind(TIME_FIELD)
    try:
        told = orjson.loads(b"{" + ending[begins + 1 :]) if begins >= 0 else {}
        return datetime.fromisoformat(told["at"])
    except (ValueError, KeyError, TypeError):
        return None


class Generations:
    """Begins new generations, for all processes; to be used from one event loop."""

    def __init__(self, redis: OptionalRedis, lifetime: timedelta | None = None) -> None:
        """A generation is forgotten after `lifetime`: longer than any value of it is cached."""
        self._redis = redis
        self._lifetime = lifetime

    async def renew(self, keys: Iterable[str]) -> None:
        """Begin a generation at each key, in one round trip. Never raises RedisError.

        What was computed of the generations before is soon computed anew.
        """

        generation = secrets.token_hex(8)

        async def set_all(redis: Redis) -> None:
            async with redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    _ = pipe.set(key, generation, px=self._lifetime)
                await pipe.execute()

        await self._redis.ask(set_all)

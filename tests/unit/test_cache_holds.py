"""Whether a value that was read from Redis before is there still, without reading it again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import orjson
import pytest
from fakeredis import FakeServer
from prometheus_client import CollectorRegistry, Counter
from pydantic import TypeAdapter
from redis.asyncio import Redis

from domain.feedback import Signal, Variant
from infra.cache import (
    CachedValue,
    Generations,
    Lifetimes,
    OptionalRedis,
    ReadThroughCache,
    quick_json,
)
from infra.http.shapes import Position
from infra.redis import embedded_redis
from projections.recommendations.model import (
    RankedRecommendations,
    RankedVideo,
    RecommendationSource,
)
from projections.recommendations.recommender import FORM

pytestmark = pytest.mark.anyio

LONGEST, OUTDATED = timedelta(hours=1), timedelta(seconds=10)
AT = datetime(2026, 3, 14, 15, 26, 53, tzinfo=UTC)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Process:
    """One of several that share a Redis, and what time it is there."""

    def __init__(self, redis: Redis) -> None:
        self.now = AT
        count = Counter("counted", "Counts.", ("outcome",), registry=CollectorRegistry())
        fail = Counter("failed", "Failures.", registry=CollectorRegistry())
        optional = OptionalRedis(redis, "cache", fail)
        self.generations = Generations(optional, LONGEST)
        self.cache: ReadThroughCache[str] = ReadThroughCache(
            optional,
            TypeAdapter(CachedValue[str]),
            lambda _: Lifetimes(LONGEST, OUTDATED),
            lookups=count,
            unreadable=fail,
            clock=lambda: self.now,
        )

    async def get(self) -> CachedValue[str]:
        async def compute(_: datetime) -> str:
            return 'A value that says "at": "2026-01-01",' * 20

        found, _ = await self.cache.get("key", "generation", compute)
        return found

    async def holds(self, found: CachedValue[str]) -> bool:
        return await self.cache.holds("key", "generation", found)


async def test_it_holds_until_it_is_too_old() -> None:
    redis = embedded_redis(FakeServer(version=(7, 4)))
    one, other = Process(redis), Process(redis)
    found = await one.get()
    assert await one.holds(found)
    assert await other.holds(await other.get())
    one.now = AT + LONGEST
    assert not await one.holds(found)
    await redis.aclose()


async def test_a_new_generation_holds_it_for_a_while_only() -> None:
    redis = embedded_redis(FakeServer(version=(7, 4)))
    one, other = Process(redis), Process(redis)
    found = await one.get()
    await other.generations.renew(["generation"])
    assert await one.holds(found)
    one.now = AT + OUTDATED
    assert not await one.holds(found)
    await redis.aclose()


async def test_what_another_process_dropped_or_made_anew_does_not_hold() -> None:
    redis = embedded_redis(FakeServer(version=(7, 4)))
    one, other = Process(redis), Process(redis)
    found = await one.get()
    await redis.delete("key")
    assert not await one.holds(found)
    other.now = AT + timedelta(microseconds=1)
    assert (await other.get()).value == found.value
    assert not await one.holds(found)
    await redis.set("key", b"no value at all")
    assert not await one.holds(found)
    await redis.aclose()


async def test_nothing_holds_while_redis_is_away() -> None:
    server = FakeServer(version=(7, 4))
    redis = embedded_redis(server)
    one = Process(redis)
    found = await one.get()
    server.connected = False
    assert not await one.holds(found)
    await redis.aclose()


def test_what_is_encoded_quickly_is_read_as_ever() -> None:
    near = RankedVideo(UUID(int=1), 0.1, "Because you liked “Täler”", UUID(int=2), True)
    made = RankedRecommendations(
        RecommendationSource.LLM,
        (near, RankedVideo(UUID(int=3), 1e-12, "New", signal=Signal.NEW, variant=Variant.B)),
        whole=False,
        told={UUID(int=2): ("Täler", None)},
        rival=(near,),
        experiment=7,
    )
    value = CachedValue(made, AT, "generation", None, Position(7, 2))
    assert FORM.validate_json(quick_json(value)) == value
    # But for how a time says that it is UTC.
    assert quick_json(value) == FORM.dump_json(value)


def test_what_has_no_form_is_not_encoded() -> None:
    with pytest.raises(orjson.JSONEncodeError):
        quick_json({"what": object()})

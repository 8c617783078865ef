"""Rankings are made once for all who ask, kept for all processes, and made without Redis too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from fakeredis import FakeServer
from structlog.testing import capture_logs

from infra import metrics
from infra.cache import Lifetimes, Requirement
from infra.http.shapes import Position
from infra.redis import embedded_redis
from projections.trending import Ranked, TrendingCache, TrendingInvalidation, Window, key_of
from tests.integration.redis_servers import RedisServer, redis_servers

SECOND = timedelta(seconds=1)
LIFETIMES = Lifetimes(longest=300 * SECOND, outdated=5 * SECOND)
BEGIN = datetime(2026, 3, 14, 15, tzinfo=UTC)


class Maker:
    """Makes rankings, and counts how many; its clock stands still until it is moved."""

    def __init__(self) -> None:
        self.now = BEGIN
        self.made = 0
        self.failing = False

    async def __call__(self, now: datetime) -> tuple[Ranked, ...]:
        await asyncio.sleep(0.01)
        if self.failing:
            raise LookupError("no ranking")
        self.made += 1
        return (Ranked(1, UUID(int=self.made), 1.25, 0.1, 0.2, 0.3, 0.4, 0.5, 0.25),)

    def cache(self, server: FakeServer) -> TrendingCache:
        return TrendingCache(embedded_redis(server), LIFETIMES, clock=lambda: self.now)


@pytest.fixture
def server() -> FakeServer:
    return FakeServer(version=(7, 4))


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers(1, tmp_path) as (server,):
        yield server


def test_what_is_kept_is_what_was_made(server: FakeServer) -> None:
    async def ask() -> None:
        maker = Maker()
        made, cached = await maker.cache(server).get(Window.WEEK, 10, None, maker)
        assert (cached, made.at) == (False, BEGIN)
        kept, cached = await maker.cache(server).get(Window.WEEK, 10, None, maker)
        assert (cached, kept) == (True, made)

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("age", "touched", "cached"),
    [(299, False, True), (300, False, False), (4, True, True), (5, True, False)],
)
def test_how_long_it_holds(server: FakeServer, age: int, touched: bool, cached: bool) -> None:
    async def ask() -> None:
        maker = Maker()
        cache = maker.cache(server)
        await cache.get(Window.WEEK, 10, None, maker)
        if touched:
            await TrendingInvalidation(embedded_redis(server)).touch()
        maker.now += age * SECOND
        assert (await cache.get(Window.WEEK, 10, None, maker))[1] is cached

    asyncio.run(ask())


def test_what_was_counted_while_it_was_made_has_it_made_again(server: FakeServer) -> None:
    async def ask() -> None:
        maker = Maker()
        cache = maker.cache(server)

        async def interrupted(now: datetime) -> tuple[Ranked, ...]:
            await TrendingInvalidation(embedded_redis(server)).touch()
            return await maker(now)

        await cache.get(Window.WEEK, 10, None, interrupted)
        maker.now += 5 * SECOND
        assert (await cache.get(Window.WEEK, 10, None, maker))[1] is False

    asyncio.run(ask())


def test_those_who_ask_together_have_it_made_once(server: FakeServer) -> None:
    async def ask() -> None:
        maker = Maker()
        cache = maker.cache(server)
        before = metrics.value("backlot_trending_lookups_total", outcome="shared")
        work = [cache.get(Window.WEEK, 10, None, maker) for _ in range(50)]
        rankings = {ranking.value for ranking, _ in await asyncio.gather(*work)}
        assert (maker.made, len(rankings)) == (1, 1)
        shared = metrics.value("backlot_trending_lookups_total", outcome="shared")
        assert shared - before == 49

    asyncio.run(ask())


HELD = Requirement(edition=3, position=Position(5, 7))


@pytest.mark.parametrize(
    ("needs", "cached"),
    [
        (Requirement(), True),
        (HELD, True),
        (Requirement(3, Position(4, 7)), True),
        (Requirement(3, Position(0, 0)), True),
        (Requirement(3, Position(6, 7)), False),
        (Requirement(3, Position(5, 8)), False),
        (Requirement(4, Position(5, 7)), False),
        (Requirement(2), False),
        # Nobody can tell which edition is the present one.
        (Requirement(None, Position(5, 7)), True),
    ],
)
def test_what_is_kept_holds_for_what_it_includes(
    server: FakeServer, needs: Requirement, cached: bool
) -> None:
    async def ask() -> None:
        maker = Maker()
        await maker.cache(server).get(Window.WEEK, 10, None, maker, HELD)
        # In another process.
        found = await maker.cache(server).get(Window.WEEK, 10, None, maker, needs)
        assert found[1] is cached
        if not cached:
            assert (await maker.cache(server).get(Window.WEEK, 10, None, maker, needs))[1] is True

    asyncio.run(ask())


def test_what_an_older_release_kept_includes_nothing_for_sure(server: FakeServer) -> None:
    async def ask() -> None:
        maker = Maker()
        at = BEGIN.isoformat()
        older = b'{"value":[],"at":"%b","generation":null}' % at.encode()
        await embedded_redis(server).set(key_of(Window.WEEK, 10, None), older)
        assert (await maker.cache(server).get(Window.WEEK, 10, None, maker))[1] is True
        assert (await maker.cache(server).get(Window.WEEK, 10, None, maker, HELD))[1] is False

    asyncio.run(ask())


def test_who_needs_more_does_not_share_what_is_being_made(server: FakeServer) -> None:
    async def ask() -> None:
        maker = Maker()
        cache = maker.cache(server)
        needs = [Requirement(3), Requirement(3), HELD, Requirement(4)]
        work = [cache.get(Window.WEEK, 10, None, maker, each) for each in needs]
        await asyncio.gather(*work)
        assert maker.made == 3

    asyncio.run(ask())


def test_a_failure_is_not_kept(server: FakeServer) -> None:
    async def ask() -> None:
        maker = Maker()
        cache = maker.cache(server)
        maker.failing = True
        with pytest.raises(LookupError):
            await cache.get(Window.WEEK, 10, None, maker)
        maker.failing = False
        assert (await cache.get(Window.WEEK, 10, None, maker))[1] is False

    asyncio.run(ask())


def test_what_is_unreadable_is_made_again(server: FakeServer) -> None:
    async def ask() -> None:
        maker = Maker()
        await embedded_redis(server).set(key_of(Window.WEEK, 10, None), b"{}")
        before = metrics.value("backlot_trending_cache_failures_total")
        assert (await maker.cache(server).get(Window.WEEK, 10, None, maker))[1] is False
        assert metrics.value("backlot_trending_cache_failures_total") == before + 1

    asyncio.run(ask())


def test_keys_are_those_of_the_contract() -> None:
    assert key_of(Window.WEEK, 20, None) == "trending:7d:20"
    assert key_of(Window.ALL, 100, "art") == "trending:all:100:art"


@pytest.mark.redis_hangs
@pytest.mark.parametrize("hanging", [False, True])
def test_without_redis_it_is_made_each_time(redis_server: RedisServer, hanging: bool) -> None:
    async def ask() -> None:
        maker = Maker()
        redis = redis_server.client()
        cache, invalidation = TrendingCache(redis, LIFETIMES), TrendingInvalidation(redis)
        assert (await cache.get(Window.WEEK, 10, None, maker))[1] is False
        assert (await cache.get(Window.WEEK, 10, None, maker))[1] is True
        redis_server.pause() if hanging else redis_server.kill()
        before = metrics.value("backlot_trending_cache_failures_total")
        with capture_logs() as logs:
            for _ in range(20):
                assert (await cache.get(Window.WEEK, 10, None, maker))[1] is False
                await invalidation.touch()
        assert maker.made == 21
        # It is left alone after a failure, so that nobody waits for it each time.
        assert metrics.value("backlot_trending_cache_failures_total") == before + 2
        assert [each["event"] for each in logs] == ["trending_cache_away"] * 2
        await redis.aclose()

    asyncio.run(ask())

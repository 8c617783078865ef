"""Calls of the language model are counted per user, for all and per day, with and without Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from infra import metrics
from infra.llm.errors import BreakerOpen, BudgetSpent, Overloaded, UserBudgetSpent
from infra.llm.limits import KEY_SECONDS, Budget, keys_of
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.ranking_material import USER
from tests.support import DEADLINE_SECONDS

pytestmark = pytest.mark.anyio

FEATURE, PURPOSE = "recommendations", "recommend"
NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers(1, tmp_path) as (server,):
        yield server


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    client = server.client(socket_connect_timeout=DEADLINE_SECONDS)
    yield client
    await client.aclose()


class Days:
    """A clock that stands still until it is moved; Redis has the real one."""

    def __init__(self) -> None:
        self.now = NOON

    def budget(self, redis: Redis, per_user: int = 2, for_all: int = 5) -> Budget:
        return Budget(redis, FEATURE, per_user=per_user, for_all=for_all, clock=lambda: self.now)


@pytest.fixture
def days() -> Days:
    return Days()


async def spend(budget: Budget, user: str = USER) -> str:
    """One call; says how that went."""
    try:
        async with budget.call(user, PURPOSE):
            return "made"
    except BudgetSpent as error:
        return error.outcome


async def not_made(budget: Budget, meanwhile: Callable[[], Awaitable[object]]) -> None:
    """A call that the breaker does not let through, after something else has happened."""
    with suppress(BreakerOpen):
        async with budget.call(USER, PURPOSE):
            await meanwhile()
            raise BreakerOpen("left alone")


async def held(redis: Redis, user: str = USER) -> list[int]:
    """What Redis has counted of all, and of the user."""
    return [int(value or 0) for value in await redis.mget(keys_of(FEATURE, NOON.date(), user))]


async def test_a_user_has_so_many_calls_a_day(redis: Redis, days: Days) -> None:
    budget = days.budget(redis)
    found = [await spend(budget) for _ in range(3)]
    assert found == ["made", "made", "user_budget_spent"]
    assert await spend(budget, "another") == "made"
    assert await held(redis) == [3, 2]
    with pytest.raises(UserBudgetSpent) as raised:
        async with budget.call(USER, PURPOSE):
            raise AssertionError("the call was made")
    assert raised.value.retry_after == 12 * 3600
    days.now += timedelta(hours=12)
    assert await spend(budget) == "made"


async def test_all_have_so_many_calls_together(redis: Redis, days: Days) -> None:
    budget = days.budget(redis)
    before = metrics.value("backlot_llm_calls_total", purpose="recommend", outcome="budget_spent")
    with capture_logs() as logs:
        found = [await spend(budget, f"user {number}") for number in range(8)]
    assert found == 5 * ["made"] + 3 * ["budget_spent"]
    after = metrics.value("backlot_llm_calls_total", purpose="recommend", outcome="budget_spent")
    assert after - before == 3
    assert [line["event"] for line in logs] == ["llm_budget_spent"], "told once a day"


async def test_processes_count_together(redis: Redis, days: Days) -> None:
    one, two = days.budget(redis), days.budget(redis)
    assert [await spend(each) for each in (one, two, one, two)] == [
        "made", "made", "user_budget_spent", "user_budget_spent",
    ]  # fmt: skip
    assert [await spend(two, f"user {number}") for number in range(4)] == [
        "made", "made", "made", "budget_spent",
    ]  # fmt: skip


async def test_of_those_who_ask_at_once_not_one_too_many_calls(redis: Redis, days: Days) -> None:
    budgets = [days.budget(redis, per_user=3, for_all=20) for _ in range(4)]
    work = [spend(budgets[number % 4], f"user {number % 10}") for number in range(200)]
    found = await asyncio.gather(*work)
    assert found.count("made") == 20
    assert await held(redis) == [20, 0]


async def test_a_call_that_was_not_made_does_not_count(redis: Redis, days: Days) -> None:
    budget = days.budget(redis)
    for _ in range(10):
        await not_made(budget, redis.ping)
    assert await held(redis) == [0, 0]
    with pytest.raises(Overloaded):
        async with budget.call(USER, PURPOSE):
            raise Overloaded("500")
    assert await held(redis) == [1, 1], "it was made, and may have cost something"
    assert await spend(budget) == "made"
    assert await spend(budget) == "user_budget_spent"


async def test_what_is_given_back_late_makes_no_gift(redis: Redis, days: Days) -> None:
    budget = days.budget(redis)
    await not_made(budget, redis.flushall)
    assert await redis.keys() == []


async def test_keys_tell_no_user_and_do_not_stay(redis: Redis, days: Days) -> None:
    await spend(days.budget(redis))
    whole, own = sorted(map(bytes.decode, cast("list[bytes]", await redis.keys())))
    assert whole == "backlot:recommendations:{2026-03-14}:calls"
    assert own.startswith(f"{whole}:")
    assert USER not in own
    for key in (whole, own):
        assert KEY_SECONDS - 60 < await redis.ttl(key) <= KEY_SECONDS


@pytest.mark.redis_hangs
@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_without_redis_a_process_counts_for_itself(
    server: RedisServer, redis: Redis, days: Days, fault: str
) -> None:
    budget = days.budget(redis)
    assert await spend(budget) == "made"
    before = metrics.value("backlot_llm_limit_failures_total")
    server.kill() if fault == "kill" else server.pause()
    started = asyncio.get_running_loop().time()
    assert await spend(budget) == "made"
    found = [await spend(budget, f"user {number % 3}") for number in range(20)]
    assert found.count("made") == 3, "five in all"
    assert await spend(budget) == "budget_spent"
    assert asyncio.get_running_loop().time() - started < 4, "a Redis that is away is left alone"
    assert metrics.value("backlot_llm_limit_failures_total") == before + 1


async def test_a_redis_that_lost_its_data_does_not_bring_calls_back(
    redis: Redis, days: Days
) -> None:
    budget = days.budget(redis)
    for _ in range(2):
        await spend(budget)
    await redis.flushall()
    assert await spend(budget) == "user_budget_spent"
    found = [await spend(budget, f"user {number}") for number in range(5)]
    assert found == 3 * ["made"] + 2 * ["budget_spent"]


async def test_what_was_not_counted_in_redis_is_not_given_back_there(
    server: RedisServer, redis: Redis, days: Days, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.cache.AWAY_SECONDS", 0.0)
    budget = days.budget(redis)
    server.kill()

    async def another_is_made() -> None:
        server.start()
        assert await spend(days.budget(redis)) == "made"

    await not_made(budget, another_is_made)
    assert await held(redis) == [1, 1]

"""The circuit breaker and the pace of calls, before a server that counts them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from infra import metrics
from infra.llm.errors import BreakerOpen, TooManyCalls
from infra.llm.limits import Pace
from tests import openai_server as server_of
from tests.integration.llm_calls import FAILURES, HAPPY, ask, counted, failing, failure, model_of
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.openai_server import OpenAIServer
from tests.support import DEADLINE_SECONDS, ended

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server_of_redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers(1, tmp_path) as (server,):
        yield server


@pytest.fixture
async def redis(server_of_redis: RedisServer) -> AsyncIterator[Redis]:
    patient = {"socket_connect_timeout": DEADLINE_SECONDS, "socket_timeout": DEADLINE_SECONDS}
    client = server_of_redis.client(**patient)
    yield client
    await client.aclose()


@pytest.mark.parametrize("fault", ["429", "500", "hang up"])
async def test_the_breaker_opens_and_one_call_closes_it(server: OpenAIServer, fault: str) -> None:
    server.script(*3 * [failure(fault)])
    before = counted("breaker_open")
    breaker = {"LLM_BREAKER_FAILURES": "3", "LLM_BREAKER_SECONDS": "1"}
    with capture_logs() as logs:
        async with model_of(server.url, **breaker) as model:
            for _ in range(3):
                assert isinstance(await failing(model), FAILURES[fault])
            assert metrics.value("backlot_llm_breaker_state", state="open") == 1
            error = await failing(model)
            assert isinstance(error, BreakerOpen)
            assert error.retryable
            assert 0 < (error.retry_after or 0) <= 1
            assert len(server.calls) == 3

            await asyncio.sleep(1.05)
            server.script(HAPPY)
            server.delay = 0.1
            answers = await asyncio.gather(*(ask(model) for _ in range(20)), return_exceptions=True)
    assert len(server.calls) == 4, "half-open lets one through"
    assert sum(isinstance(answer, BreakerOpen) for answer in answers) == 19
    assert metrics.value("backlot_llm_breaker_state", state="closed") == 1
    assert counted("breaker_open") == before + 20
    events = [line["event"] for line in logs if line["event"].startswith("llm_breaker")]
    assert events == ["llm_breaker_opened", "llm_breaker_closed"]


@pytest.mark.parametrize("fault", ["refusal", "malformed", "truncated", "400", "401"])
async def test_answers_of_no_use_do_not_open_the_breaker(server: OpenAIServer, fault: str) -> None:
    server.script(*5 * [failure(fault)])
    async with model_of(server.url, LLM_BREAKER_FAILURES="2") as model:
        for _ in range(5):
            assert isinstance(await failing(model), FAILURES[fault])
    assert len(server.calls) == 5


async def test_calls_wait_for_their_turn(server: OpenAIServer) -> None:
    server.otherwise = lambda _: HAPPY
    async with model_of(server.url, LLM_CALLS_PER_MINUTE="600") as model:
        started = time.monotonic()
        await asyncio.gather(*(ask(model) for _ in range(20)))
        # Ten at once, then ten a second.
        assert time.monotonic() - started > 0.9


async def test_a_turn_too_far_away_is_a_failure_that_says_when(server: OpenAIServer) -> None:
    server.otherwise = lambda _: HAPPY
    pace = {"LLM_CALLS_PER_MINUTE": "60", "LLM_TIMEOUT_SECONDS": "1.5"}
    async with model_of(server.url, **pace) as model:
        answers = await asyncio.gather(*(ask(model) for _ in range(5)), return_exceptions=True)
    late = [answer for answer in answers if isinstance(answer, TooManyCalls)]
    assert len(late) == 3
    assert len(server.calls) == 2
    assert all(error.retryable and error.retry_after for error in late)


async def test_a_cancelled_trial_leaves_the_breaker_to_the_next_one(server: OpenAIServer) -> None:
    server.script(server_of.status(500), server_of.hang(30), HAPPY)
    breaker = {"LLM_BREAKER_FAILURES": "1", "LLM_BREAKER_SECONDS": "0.05"}
    async with model_of(server.url, **breaker) as model:
        await failing(model)
        await asyncio.sleep(0.1)
        trial = asyncio.create_task(ask(model))
        await asyncio.sleep(0.1)
        await ended(trial)
        assert (await ask(model)).answer.mood == "happy"


async def test_processes_share_a_pace(redis: Redis) -> None:
    await Pace(1, redis).turn(0)
    for _ in range(3):
        with pytest.raises(TooManyCalls) as raised:
            await Pace(1, redis).turn(0)
        assert 0 < (raised.value.retry_after or 0) <= 60


async def test_whoever_waits_for_the_shared_pace_keeps_its_place(redis: Redis) -> None:
    paces = [Pace(600, redis) for _ in range(2)]
    began = time.monotonic()
    async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as calls:
        for number in range(14):
            calls.create_task(paces[number % 2].turn(DEADLINE_SECONDS))
    # Ten at once, and a tenth of a second for each other: never faster, however slow it is here.
    assert time.monotonic() - began >= 0.39


async def test_without_redis_each_process_has_the_pace(
    redis: Redis, server_of_redis: RedisServer
) -> None:
    pace = Pace(1, redis)
    await pace.turn(0)
    before = metrics.value("backlot_llm_limit_failures_total")
    server_of_redis.stop()
    await pace.turn(0)
    with pytest.raises(TooManyCalls):
        await pace.turn(0)
    assert metrics.value("backlot_llm_limit_failures_total") > before

"""The circuit breaker and the pace of calls, before a server that counts them."""

from __future__ import annotations

import asyncio
import time

import pytest
from structlog.testing import capture_logs

from infra import metrics
from infra.llm.errors import BreakerOpen, TooManyCalls
from tests import openai_server as server_of
from tests.integration.llm_calls import FAILURES, HAPPY, ask, counted, failing, failure, model_of
from tests.openai_server import OpenAIServer
from tests.support import ended

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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

"""Calls of a language model over HTTP, to a server that fails in every way that is documented."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate

import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from infra import metrics
from infra.llm import (
    BreakerOpen,
    LanguageModel,
    LanguageModelError,
    Malformed,
    Overloaded,
    Parsed,
    Refused,
    RejectedRequest,
    Throttled,
    TimedOut,
    TooManyCalls,
    Truncated,
    Unauthorized,
    Unreachable,
    make_language_model,
)
from infra.settings import Settings, SettingsError
from tests import openai_server as server_of
from tests.openai_server import Answer, OpenAIServer, openai_server
from tests.support import unused_port

pytestmark = pytest.mark.anyio

KEY = "sk-test-0123456789abcdef"
MODEL = "test-model"


class Mood(BaseModel):
    mood: str
    strength: int


HAPPY = server_of.answered(mood="happy", strength=3)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def running() -> Iterator[OpenAIServer]:
    with openai_server() as server:
        yield server


@pytest.fixture
def server(running: OpenAIServer) -> OpenAIServer:
    running.forget()
    return running


@pytest.fixture
def outcomes() -> Callable[[str], float]:
    """How many calls have had an outcome since the test began."""

    def count(outcome: str) -> float:
        return metrics.value("backlot_llm_calls_total", purpose="test", outcome=outcome)

    kinds: set[type[LanguageModelError]] = {*FAILURES.values(), BreakerOpen}
    before = {kind.outcome: count(kind.outcome) for kind in kinds}
    return lambda outcome: count(outcome) - before[outcome]


@asynccontextmanager
async def model_of(url: str, **changes: str) -> AsyncIterator[LanguageModel]:
    values = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url, "LLM_TIMEOUT_SECONDS": "5", **changes}
    made = make_language_model(Settings(_env_file=None, **values))  # type: ignore[arg-type]
    assert made is not None
    try:
        yield made
    finally:
        await made.aclose()


async def ask(model: LanguageModel, user: str = "What a day!") -> Parsed[Mood]:
    return await model.parse(
        "Tell the mood.", user, Mood, model=MODEL, purpose="test", max_output_tokens=77
    )


async def failing(model: LanguageModel) -> LanguageModelError:
    with pytest.raises(LanguageModelError) as raised:
        await ask(model)
    return raised.value


async def test_a_call_is_one_request_with_a_strict_schema(server: OpenAIServer) -> None:
    server.script(server_of.answered(mood="happy", strength=3))
    async with model_of(server.url) as model:
        assert await ask(model) == Parsed(Mood(mood="happy", strength=3), MODEL, 10, 5)
    (call,) = server.calls
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert call.body["model"] == MODEL
    assert call.body["temperature"] == 0
    assert call.body["max_completion_tokens"] == 77
    assert call.body["messages"] == [
        {"role": "system", "content": "Tell the mood."},
        {"role": "user", "content": "What a day!"},
    ]
    assert call.body["response_format"]["json_schema"]["strict"] is True
    assert set(call.fields) == {"mood", "strength"}


FAILURES: dict[str, type[LanguageModelError]] = {
    "429": Throttled,
    "500": Overloaded,
    "503": Overloaded,
    "409": Overloaded,
    "400": RejectedRequest,
    "404": RejectedRequest,
    "401": Unauthorized,
    "403": Unauthorized,
    "refusal": Refused,
    "filtered": Refused,
    "truncated": Truncated,
    "malformed": Malformed,
    "other form": Malformed,
    "empty": Malformed,
    "no choices": Malformed,
    "null choices": Malformed,
    "no json": Malformed,
    "a list": Malformed,
    "hang up": Unreachable,
    "hang": TimedOut,
}
ANSWERS: dict[str, Answer] = {
    "refusal": server_of.refusal(),
    "filtered": server_of.filtered(),
    "truncated": server_of.truncated(),
    "malformed": server_of.malformed(),
    "other form": server_of.answered(mood="happy", strength="very"),
    "empty": server_of.completion(""),
    "no choices": Answer(body=b'{"choices": []}'),
    "null choices": Answer(body=b'{"choices": null}'),
    "no json": Answer(body=b"<html>", headers={"content-type": "text/html"}),
    "a list": Answer(body=b"[]"),
    "hang up": server_of.hang_up(),
    "hang": server_of.hang(30),
}
RETRYABLE = (Throttled, Overloaded, TimedOut, Unreachable, Malformed)


@pytest.mark.parametrize("fault", FAILURES)
async def test_each_failure_has_its_name(
    server: OpenAIServer, fault: str, outcomes: Callable[[str], float]
) -> None:
    server.script(ANSWERS[fault] if fault in ANSWERS else server_of.status(int(fault)))
    seconds = "0.3" if fault == "hang" else "5"
    with capture_logs() as logs:
        async with model_of(server.url, LLM_TIMEOUT_SECONDS=seconds) as model:
            error = await failing(model)
    assert type(error) is FAILURES[fault]
    assert error.retryable == isinstance(error, RETRYABLE)
    assert error.retry_after is None
    assert len(server.calls) == 1, "the SDK has tried again"
    assert outcomes(error.outcome) == 1
    (line,) = (line for line in logs if line["event"] == "llm_call_failed")
    assert (line["outcome"], line["log_level"]) == (error.outcome, "warning")


async def test_nobody_listening_is_unreachable() -> None:
    async with model_of(f"http://127.0.0.1:{unused_port()}/v1") as model:
        error = await failing(model)
    assert isinstance(error, Unreachable)
    assert "ConnectError" in str(error)


async def test_an_answer_that_trickles_is_too_late_as_well() -> None:
    gone = asyncio.Event()

    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.1)
        writer.close()
        gone.set()

    started = time.monotonic()
    listener = await asyncio.start_server(trickle, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    async with asyncio.timeout(10), model_of(url, LLM_TIMEOUT_SECONDS="0.5") as model:
        # The SDK's timeout counts from the last byte; ours does not.
        assert isinstance(await failing(model), TimedOut)
    assert time.monotonic() - started < 2
    await gone.wait()
    listener.close()


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("7", 7, 7), ("0.5", 0.5, 0.5), ("-3", 0, 0), ("9999999", 3600, 3600),
     (formatdate(time.time() + 600, usegmt=True), 400, 600)],
)  # fmt: skip
async def test_retry_after_is_handed_on(
    server: OpenAIServer, code: int, header: str, least: float, most: float
) -> None:
    server.script(server_of.status(code, header))
    async with model_of(server.url) as model:
        told = (await failing(model)).retry_after
    assert told is not None
    assert least <= told <= most


@pytest.mark.parametrize("header", ["soon", "nan", ""])
async def test_a_senseless_retry_after_is_none(server: OpenAIServer, header: str) -> None:
    server.script(server_of.status(429, header))
    async with model_of(server.url) as model:
        assert (await failing(model)).retry_after is None


@pytest.mark.parametrize("code", [400, 401, 403, 404, 429, 500])
async def test_no_text_repeats_what_the_provider_says(server: OpenAIServer, code: int) -> None:
    server.script(server_of.status(code, message=f"Incorrect API key: {KEY}", code=KEY, type=KEY))
    with capture_logs() as logs:
        async with model_of(server.url) as model:
            error = await failing(model)
    told = [*traceback.format_exception(error), repr(error), str(logs)]
    assert KEY not in "".join(told)
    if isinstance(error, Unauthorized):
        assert "OPENAI_API_KEY" in str(error)


async def test_known_codes_are_told(server: OpenAIServer) -> None:
    server.script(server_of.status(404, code="model_not_found"))
    async with model_of(server.url) as model:
        assert "HTTP 404 (model_not_found)" in str(await failing(model))


@pytest.mark.parametrize("answer", [HAPPY, server_of.malformed(), server_of.truncated()])
async def test_tokens_and_costs_are_counted_whatever_the_answer_is_worth(
    server: OpenAIServer, answer: Answer
) -> None:
    def counted() -> tuple[float, float, float]:
        tokens = "backlot_llm_tokens_total"
        return (
            metrics.value(tokens, model=MODEL, direction="input"),
            metrics.value(tokens, model=MODEL, direction="output"),
            metrics.value("backlot_llm_cost_usd_total", model=MODEL),
        )

    before = counted()
    server.script(answer)
    async with model_of(server.url, LLM_PRICES=f"{MODEL}=100/1000") as model:
        await asyncio.gather(ask(model), return_exceptions=True)
    taken = [now - then for now, then in zip(counted(), before, strict=True)]
    assert taken == pytest.approx([10, 5, (10 * 100 + 5 * 1000) / 1_000_000])


async def test_a_server_that_does_not_count_tokens_is_fine(server: OpenAIServer) -> None:
    server.script(server_of.completion('{"mood": "happy", "strength": 3}', tokens=None))
    async with model_of(server.url) as model:
        assert (await ask(model)).output_tokens == 0


@pytest.mark.parametrize("fault", ["429", "500", "hang up"])
async def test_the_breaker_opens_and_one_call_closes_it(
    server: OpenAIServer, fault: str, outcomes: Callable[[str], float]
) -> None:
    failure = ANSWERS[fault] if fault in ANSWERS else server_of.status(int(fault))
    server.script(*3 * [failure])
    breaker = {"LLM_BREAKER_FAILURES": "3", "LLM_BREAKER_SECONDS": "0.3"}
    with capture_logs() as logs:
        async with model_of(server.url, **breaker) as model:
            for _ in range(3):
                assert isinstance(await failing(model), FAILURES[fault])
            assert metrics.value("backlot_llm_breaker_state", state="open") == 1
            error = await failing(model)
            assert isinstance(error, BreakerOpen)
            assert error.retryable
            assert 0 < (error.retry_after or 0) <= 0.3
            assert len(server.calls) == 3

            await asyncio.sleep(0.35)
            server.script(HAPPY)
            server.delay = 0.1
            answers = await asyncio.gather(*(ask(model) for _ in range(20)), return_exceptions=True)
    assert len(server.calls) == 4, "half-open lets one through"
    assert sum(isinstance(answer, BreakerOpen) for answer in answers) == 19
    assert metrics.value("backlot_llm_breaker_state", state="closed") == 1
    assert outcomes("breaker_open") == 20
    events = [line["event"] for line in logs if line["event"].startswith("llm_breaker")]
    assert events == ["llm_breaker_opened", "llm_breaker_closed"]


@pytest.mark.parametrize("fault", ["refusal", "malformed", "truncated", "400", "401"])
async def test_answers_of_no_use_do_not_open_the_breaker(server: OpenAIServer, fault: str) -> None:
    answer = ANSWERS[fault] if fault in ANSWERS else server_of.status(int(fault))
    server.script(*5 * [answer])
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
        assert 0.9 < time.monotonic() - started < 3


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
        trial.cancel()
        await asyncio.gather(trial, return_exceptions=True)
        assert (await ask(model)).answer.mood == "happy"


def test_without_key_and_url_there_is_no_model() -> None:
    assert make_language_model(Settings(_env_file=None)) is None


async def test_a_server_of_ones_own_needs_no_key(server: OpenAIServer) -> None:
    server.script(HAPPY)
    settings = Settings(_env_file=None, OPENAI_BASE_URL=server.url)
    model = make_language_model(settings)
    assert model is not None
    await ask(model)
    await model.aclose()
    assert server.calls[0].headers["authorization"] == "Bearer none"


@pytest.mark.parametrize("key", ["sk-é", "sk-\x00a", "sk-a\nb"])
def test_a_key_that_can_not_be_sent_stops_the_start(key: str) -> None:
    with pytest.raises(SettingsError, match=r"^OPENAI_API_KEY: ") as raised:
        make_language_model(Settings(_env_file=None, OPENAI_API_KEY=key))
    assert key not in str(raised.value)


def test_importing_it_does_not_import_the_sdk() -> None:
    code = "import sys, infra.llm; print('openai' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"

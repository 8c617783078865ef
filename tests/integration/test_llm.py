"""Calls of a language model over HTTP, to a server that fails in every way that is documented."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from email.utils import formatdate

import pytest
from structlog.testing import capture_logs

from infra import metrics
from infra.llm.client import Parsed, make_language_model
from infra.llm.errors import TimedOut, Unauthorized, Unreachable
from infra.llm.spending import SpendingLedger
from infra.settings import SettingsError
from infra.settings.adapters import LanguageModelSettings
from tests import openai_server as server_of
from tests.integration.llm_calls import (
    FAILURES,
    HAPPY,
    KEY,
    MODEL,
    RETRYABLE,
    Mood,
    ask,
    counted,
    failing,
    failure,
    model_of,
)
from tests.openai_server import Answer, OpenAIServer
from tests.support import DEADLINE_SECONDS, unused_port

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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


@pytest.mark.parametrize("fault", FAILURES)
async def test_each_failure_has_its_name(server: OpenAIServer, fault: str) -> None:
    server.script(failure(fault))
    before = counted(FAILURES[fault].outcome)
    seconds = "0.3" if fault == "hang" else "5"
    with capture_logs() as logs:
        async with model_of(server.url, LLM_TIMEOUT_SECONDS=seconds) as model:
            error = await failing(model)
    assert type(error) is FAILURES[fault]
    assert error.retryable == isinstance(error, RETRYABLE)
    assert error.retry_after is None
    assert len(server.calls) == 1, "the SDK has tried again"
    assert counted(error.outcome) == before + 1
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

    listener = await asyncio.start_server(trickle, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    async with asyncio.timeout(DEADLINE_SECONDS), model_of(url, LLM_TIMEOUT_SECONDS="0.5") as model:
        # The SDK's timeout counts from the last byte; ours does not.
        assert isinstance(await failing(model), TimedOut)
    await gone.wait()
    listener.close()


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7), ("0.5", 0.5), ("-3", 0), ("9999999", 3600)]
)
async def test_retry_after_is_handed_on(
    server: OpenAIServer, code: int, header: str, seconds: float
) -> None:
    server.script(server_of.status(code, header))
    async with model_of(server.url) as model:
        assert (await failing(model)).retry_after == seconds


async def test_retry_after_may_be_a_date(server: OpenAIServer) -> None:
    server.script(server_of.status(429, formatdate(time.time() + 600, usegmt=True)))
    async with model_of(server.url) as model:
        told = (await failing(model)).retry_after
    assert told is not None
    assert 400 <= told <= 600


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
    server: OpenAIServer, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = SpendingLedger()
    monkeypatch.setattr("infra.llm.client.LEDGER", ledger)

    def taken() -> tuple[float, float, float]:
        tokens = "backlot_llm_tokens_total"
        return (
            metrics.value(tokens, model=MODEL, direction="input"),
            metrics.value(tokens, model=MODEL, direction="output"),
            metrics.value("backlot_llm_cost_usd_total", model=MODEL),
        )

    before = taken()
    server.script(answer)
    async with model_of(server.url, LLM_PRICES=f"{MODEL}=100/1000") as model:
        await asyncio.gather(ask(model), return_exceptions=True)
    more = [now - then for now, then in zip(taken(), before, strict=True)]
    assert more == pytest.approx([10, 5, (10 * 100 + 5 * 1000) / 1_000_000])
    failed = 0 if answer is HAPPY else 1
    ((place, spent),) = ledger.counted.items()
    assert (place.purpose, place.model) == ("test", MODEL)
    counts = (spent.calls, spent.failed, spent.input_tokens, spent.output_tokens)
    assert counts == (1, failed, 10, 5)
    assert spent.cost_usd == pytest.approx(0.006)


async def test_a_server_that_does_not_count_tokens_is_fine(server: OpenAIServer) -> None:
    server.script(server_of.completion('{"mood": "happy", "strength": 3}', tokens=None))
    async with model_of(server.url) as model:
        assert (await ask(model)).output_tokens == 0


def test_without_key_and_url_there_is_no_model() -> None:
    assert make_language_model(LanguageModelSettings()) is None


async def test_a_server_of_ones_own_needs_no_key(server: OpenAIServer) -> None:
    server.script(HAPPY)
    settings = LanguageModelSettings(OPENAI_BASE_URL=server.url)
    model = make_language_model(settings)
    assert model is not None
    await ask(model)
    await model.aclose()
    assert server.calls[0].headers["authorization"] == "Bearer none"


@pytest.mark.parametrize("key", ["sk-é", "sk-\x00a", "sk-a\nb"])
def test_a_key_that_can_not_be_sent_stops_the_start(key: str) -> None:
    with pytest.raises(SettingsError, match=r"^OPENAI_API_KEY: ") as raised:
        make_language_model(LanguageModelSettings(OPENAI_API_KEY=key))
    assert key not in str(raised.value)


def test_importing_it_does_not_import_the_sdk() -> None:
    code = "import sys, infra.llm; print('openai' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"

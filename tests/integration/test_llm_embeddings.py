"""Embeddings over HTTP: what is asked, what is made of every answer, and of those of no use."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import hypot
from typing import Any

import pytest

from infra import metrics
from infra.llm.client import Embedder, make_embedder
from infra.llm.errors import (
    BreakerOpen,
    LanguageModelError,
    Malformed,
    Overloaded,
    RejectedRequest,
    Throttled,
    TimedOut,
    Unauthorized,
    Unreachable,
)
from infra.settings import load_settings
from tests import openai_server as server_of
from tests.openai_server import Answer, Call, OpenAIServer, embedded, vector_of

pytestmark = pytest.mark.anyio

MODEL, DIMENSIONS = "places", 8
FAILURES: dict[str, tuple[Answer, type[LanguageModelError]]] = {
    "429": (server_of.status(429), Throttled),
    "500": (server_of.status(500), Overloaded),
    "400": (server_of.status(400), RejectedRequest),
    "401": (server_of.status(401), Unauthorized),
    "hang": (server_of.hang(30), TimedOut),
    "hang up": (server_of.hang_up(), Unreachable),
    "no json": (Answer(body=b"<html>", headers={"content-type": "text/html"}), Malformed),
    "a list": (Answer(body=b"[]"), Malformed),
    "no data": (Answer(body=b'{"data": null}'), Malformed),
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def embedder_of(server: OpenAIServer, **changes: str) -> AsyncIterator[Embedder]:
    values = {
        "OPENAI_BASE_URL": server.url,
        "EMBEDDING_MODEL": MODEL,
        "EMBEDDING_DIMENSIONS": str(DIMENSIONS),
        "LLM_TIMEOUT_SECONDS": "5",
        **changes,
    }
    settings = load_settings(values)
    made = make_embedder(settings.embeddings, settings.llm)
    assert made is not None
    try:
        yield made
    finally:
        await made.aclose()


async def failing(embedder: Embedder, *texts: str) -> LanguageModelError:
    with pytest.raises(LanguageModelError) as raised:
        await embedder.embed(texts or ("Rain", "Snow"))
    return raised.value


def direction(text: str) -> list[float]:
    vector = vector_of(text, DIMENSIONS)
    return [number / hypot(*vector) for number in vector]


def close(found: list[list[float]], *texts: str) -> bool:
    wanted = [direction(text) for text in texts]
    return all(one == pytest.approx(other) for one, other in zip(found, wanted, strict=True))


async def test_each_text_gets_its_vector_whatever_the_order_of_the_answer(
    server: OpenAIServer,
) -> None:
    async with embedder_of(server) as embedder:
        found = await embedder.embed(["Rain", "Snow", "Hail", "Rain"])
    assert close(found, "Rain", "Snow", "Hail", "Rain")
    (call,) = server.calls
    assert call.body["model"] == MODEL
    assert call.body["dimensions"] == DIMENSIONS
    assert call.texts == ["Rain", "Snow", "Hail", "Rain"]


async def test_a_server_that_only_knows_numbers_is_fine(server: OpenAIServer) -> None:
    def plain(call: Call) -> Answer:
        return embedded(Call(call.headers, {**call.body, "encoding_format": "float"}))

    server.otherwise = plain
    async with embedder_of(server) as embedder:
        assert close(await embedder.embed(["Rain"]), "Rain")


async def test_many_texts_are_several_calls(server: OpenAIServer) -> None:
    texts = [f"Rain {number}" for number in range(150)]
    async with embedder_of(server) as embedder:
        assert await embedder.embed([]) == []
        assert close(await embedder.embed(texts), *texts)
    assert [len(call.texts) for call in server.calls] == [64, 64, 22]


async def test_tokens_and_their_cost_are_counted(server: OpenAIServer) -> None:
    before = metrics.value("backlot_llm_tokens_total", model=MODEL, direction="input")
    spent = metrics.value("backlot_llm_cost_usd_total", model=MODEL)
    async with embedder_of(server, LLM_PRICES=f"{MODEL}=100/0") as embedder:
        await embedder.embed(["Rain"])
    after = metrics.value("backlot_llm_tokens_total", model=MODEL, direction="input")
    assert after - before == 4
    assert metrics.value("backlot_llm_cost_usd_total", model=MODEL) - spent == pytest.approx(0.0004)


@pytest.mark.parametrize("fault", FAILURES)
async def test_each_failure_has_its_name(server: OpenAIServer, fault: str) -> None:
    answer, expected = FAILURES[fault]
    server.script(answer)
    labels = {"purpose": "embed", "outcome": expected.outcome}
    before = metrics.value("backlot_llm_calls_total", **labels)
    seconds = "0.3" if fault == "hang" else "5"
    async with embedder_of(server, LLM_TIMEOUT_SECONDS=seconds) as embedder:
        assert type(await failing(embedder)) is expected
    assert len(server.calls) == 1, "the SDK has tried again"
    assert metrics.value("backlot_llm_calls_total", **labels) == before + 1


def _vector(*numbers: object) -> list[dict[str, Any]]:
    """The data of an answer to two texts: what the first one's vector begins with."""
    first = [*numbers, *[0.5] * (DIMENSIONS - len(numbers))]
    return [{"index": 0, "embedding": first}, {"index": 1, "embedding": [0.5] * DIMENSIONS}]


def _places(*indices: object) -> list[dict[str, Any]]:
    return [{"index": index, "embedding": [0.5] * DIMENSIONS} for index in indices]


@pytest.mark.parametrize(
    "data",
    [
        _places(0),
        _places(0, 0),
        _places(0, 2),
        _places(0, 1, 1),
        _places(0, None),
        _places(0, [1]),
        [{"index": 0}, {"index": 1}],
        _vector(float("nan")),
        _vector(float("inf")),
        _vector(10**400),
        _vector(1.7e308, 1.7e308),
        _vector(*[0] * DIMENSIONS),
        _vector("0.5"),
        _vector(None),
        _vector(*[0.5] * (DIMENSIONS + 1)),
        [{"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": "?"}],
    ],
    ids=lambda data: json.dumps(data)[:60],
)
async def test_an_answer_of_another_form_is_malformed(
    server: OpenAIServer, data: list[dict[str, Any]]
) -> None:
    server.otherwise = lambda call: embedded(call, data=data)
    async with embedder_of(server) as embedder:
        assert type(await failing(embedder)) is Malformed


async def test_other_dimensions_are_told(server: OpenAIServer) -> None:
    server.otherwise = lambda call: embedded(Call(call.headers, {**call.body, "dimensions": 768}))
    async with embedder_of(server) as embedder:
        error = await failing(embedder)
    assert "768 dimensions" in str(error)
    assert "EMBEDDING_DIMENSIONS" in str(error)


async def test_one_batch_that_fails_is_all(server: OpenAIServer) -> None:
    def second_fails(call: Call) -> Answer:
        return embedded(call) if len(server.calls) == 1 else server_of.status(500)

    server.otherwise = second_fails
    async with embedder_of(server) as embedder:
        assert type(await failing(embedder, *["Rain"] * 200)) is Overloaded
    assert len(server.calls) == 2


async def test_the_breaker_stands_before_it(server: OpenAIServer) -> None:
    server.script(*2 * [server_of.status(500)])
    async with embedder_of(server, LLM_BREAKER_FAILURES="2") as embedder:
        for _ in range(2):
            await failing(embedder)
        assert type(await failing(embedder)) is BreakerOpen
    assert len(server.calls) == 2

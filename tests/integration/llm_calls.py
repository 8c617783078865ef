"""Calls of a language model as its tests make them, and every way that a server can fail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import BaseModel

from infra import metrics
from infra.llm.client import LanguageModel, Parsed, make_language_model
from infra.llm.errors import (
    LanguageModelError,
    Malformed,
    Overloaded,
    Refused,
    RejectedRequest,
    Throttled,
    TimedOut,
    Truncated,
    Unauthorized,
    Unreachable,
)
from infra.settings import load_settings
from tests import openai_server as server_of
from tests.openai_server import Answer

KEY = "sk-test-0123456789abcdef"
MODEL = "test-model"


class Mood(BaseModel):
    mood: str
    strength: int


HAPPY = server_of.answered(mood="happy", strength=3)


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


def failure(fault: str) -> Answer:
    """What the server does for one of FAILURES."""
    return ANSWERS[fault] if fault in ANSWERS else server_of.status(int(fault))


def counted(outcome: str) -> float:
    """Calls of tests with this outcome so far."""
    return metrics.value("backlot_llm_calls_total", purpose="test", outcome=outcome)


@asynccontextmanager
async def model_of(url: str, **changes: str) -> AsyncIterator[LanguageModel]:
    values = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url, "LLM_TIMEOUT_SECONDS": "5", **changes}
    made = make_language_model(load_settings(values).llm)
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

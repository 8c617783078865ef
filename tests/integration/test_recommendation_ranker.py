"""What is asked of a language model about recommendations, and what becomes of its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from domain.upload import Visibility
from readapi.recommendations import PLAIN
from tests import openai_server
from tests.integration.recommendation_support import (
    Place,
    change_details,
    kept_items,
    serving,
    settings_of,
    titles,
)
from tests.openai_server import Answer, Call, OpenAIServer


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenAIServer]:
    with openai_server.openai_server() as server:
        yield server


@pytest.fixture
def asking(database_url: str, tmp_path: Path, provider: OpenAIServer) -> Iterator[Place]:
    """With a language model, which is asked once per minute at most by each test."""
    provider.forget()
    settings = settings_of(OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="key")
    yield from serving(database_url, tmp_path, settings)


def test_the_model_orders_and_says_why(asking: Place, provider: OpenAIServer) -> None:
    asked = watched(asking)
    provider.otherwise = backwards
    body = asking.ask()
    assert (body["source"], body["cached"]) == ("llm", False)
    assert "The model's." in {each["reason"] for each in body["items"]}
    assert asking.ask() == body | {"cached": True}
    assert len(provider.calls) == 1
    # The whole blend is still there.
    assert sorted(titles(body)) == sorted(asked)


def test_the_models_words_go_with_the_texts_that_it_read(
    asking: Place, provider: OpenAIServer
) -> None:
    seen = asking.video("Watched once")
    expected = watched(asking)
    asking.watch("ann", seen)
    provider.otherwise = backwards
    assert {each["reason"] for each in asking.ask()["items"]} == {"The model's."}
    change_details(asking, seen, "Watched twice")
    assert kept_items(asking) == dict.fromkeys(expected, PLAIN)
    assert len(provider.calls) == 1


def test_nobody_else_is_in_the_prompt(asking: Place, provider: OpenAIServer) -> None:
    watched(asking)
    asking.watch("bob", asking.video("Bob's secret taste", category="other"))
    provider.otherwise = backwards
    asking.ask()
    whole = json.dumps(provider.calls[0].body)
    with asking.connected() as conn:
        ids = {str(row[0]) for row in conn.execute("SELECT video_id FROM analytics.videos")}
    for private in ("ann", "bob", "owner", *ids):
        assert f'"{private}' not in whole
        assert f'{private}"' not in whole
    assert not any(each in whole for each in ids)


@pytest.mark.parametrize(
    "answer",
    [
        openai_server.status(500),
        openai_server.status(429),
        openai_server.hang(),
        openai_server.hang_up(),
        openai_server.refusal(),
        openai_server.malformed(),
        openai_server.truncated(),
        openai_server.answered(picks=[]),
    ],
    ids=["500", "429", "hangs", "hangs-up", "refusal", "malformed", "truncated", "nothing"],
)
def test_whatever_the_provider_does_there_is_an_answer(
    asking: Place, provider: OpenAIServer, answer: Answer
) -> None:
    expected = watched(asking)
    provider.otherwise = lambda call: answer
    body = asking.ask()
    assert (body["source"], sorted(titles(body))) == ("blend", sorted(expected))


def watched(place: Place) -> list[str]:
    """What is recommended to ann now."""
    seen = place.video("Seen")
    others = [place.video(f"Number {number}") for number in range(5)]
    for viewer in ("bob", "cat"):
        place.watch(viewer, seen, *others)
    place.watch("ann", seen)
    return [each.title for each in others]


def backwards(call: Call) -> Answer:
    """The candidates in reverse, with a reason."""
    ids = [each["id"] for each in call.data["candidates"]]
    picks = [{"id": each, "reason": "The model's."} for each in reversed(ids)]
    return openai_server.answered(picks=picks)


def test_no_prompt_holds_a_video_that_is_not_public(asking: Place, provider: OpenAIServer) -> None:
    told = {name: asking.video(name) for name in ("Seen", "Near", "Quiet", "Secret", "Gone")}
    asking.watch("bob", *told.values())
    asking.watch("ann", told["Seen"], told["Secret"])
    for name, visibility in (("Quiet", "unlisted"), ("Secret", "private"), ("Gone", "private")):
        asking.site.writer.show(told[name], Visibility(visibility))
    assert titles(asking.ask()) == ["Near"]
    (call,) = provider.calls
    asked = json.dumps(call.body)
    assert "Near" in asked
    assert "Seen" in asked
    assert not [name for name in ("Quiet", "Secret", "Gone") if name in asked]

"""From what viewers do to what they are recommended, in the started program, killed and not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.program import Program
from tests.e2e.videos import read, see, upload
from tests.openai_server import Answer, Call, OpenAIServer, answered, openai_server, status
from tests.support import eventually

SOON = {
    "ANALYTICS_FLUSH_SECONDS": "0.2",
    "RECOMMENDATIONS_INVALIDATE_SECONDS": "0.2",
    "TRENDING_INVALIDATE_SECONDS": "0.2",
}


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenAIServer]:
    with openai_server() as server:
        yield server


def ask(client: httpx.Client, **params: Any) -> dict[str, Any]:
    client.headers.pop("Backlot-Min-Position", None)
    return read(client.get("/recommendations", params=params))


def ids(body: dict[str, Any]) -> list[str]:
    return [item["video"]["videoId"] for item in body["items"]]


def watch(client: httpx.Client, *videos: str) -> None:
    for video in videos:
        assert client.post(f"/videos/{video}/watch").is_success


def test_what_others_watch_is_recommended_over_a_kill(make_program: Callable[..., Program]) -> None:
    program = make_program(**SOON).start()
    owner, ann = program.client("owner"), program.client("ann")
    first, second, third = (upload(owner) for _ in range(3))
    # Nothing has happened: what is new, the newest first.
    eventually(lambda: ids(ask(ann)) == [third, second, first])
    assert ask(ann)["source"] == "trending"
    for name in ("bob", "cat"):
        watch(program.client(name), first, second)
    watch(ann, first)
    eventually(lambda: ids(ask(ann))[:1] == [second])
    body = ask(ann)
    assert (body["source"], first in ids(body)) == ("blend", False)
    program.kill()
    program.start()
    ann = program.client("ann")
    assert ids(ask(ann))[:1] == [second]
    see(ann, ann.put(f"/videos/{second}/like"))
    eventually(lambda: ids(ask(ann)) == [third])
    assert ask(ann, limit=1)["cached"] is True
    bob = program.client("bob")
    assert bob.get("/recommendations", params={"userId": "ann"}).status_code == 403
    assert ids(ask(program.client("root", admin=True), userId="ann")) == [third]
    assert program.stop() == 0


def test_with_a_model_and_when_it_breaks(
    make_program: Callable[..., Program], provider: OpenAIServer
) -> None:
    provider.forget()
    provider.otherwise = backwards
    program = make_program(
        OPENAI_BASE_URL=provider.url, RECOMMENDATIONS_TIMEOUT_SECONDS="4", **SOON
    ).start()
    owner, ann = program.client("owner"), program.client("ann")
    videos = [upload(owner) for _ in range(4)]
    watch(program.client("bob"), *videos)
    watch(ann, videos[0])
    eventually(lambda: ask(ann)["source"] == "llm")
    # The first answer may have been made before anything of all this was counted.
    reason = "It goes with what you watched."
    eventually(lambda: reason in {each["reason"] for each in ask(ann)["items"]})
    provider.otherwise = lambda call: status(500)
    watch(ann, videos[1])
    eventually(lambda: ask(ann)["source"] == "blend")
    assert sorted(ids(ask(ann))) == sorted(videos[2:])
    assert program.stop() == 0


def test_they_are_made_before_anybody_asks(make_program: Callable[..., Program]) -> None:
    program = make_program(RECOMMENDATIONS_PRECOMPUTE_SECONDS="0.5", **SOON).start()
    owner, ann = program.client("owner"), program.client("ann")
    watch(ann, upload(owner))
    upload(owner)

    def made() -> bool:
        told = program.client().get("/metrics").text
        return 'backlot_recommendations_made_total{source="' in told

    eventually(made)
    assert ask(ann)["cached"] is True
    assert program.stop() == 0


def backwards(call: Call) -> Answer:
    if "candidates" not in call.data:
        return status(404)
    picks = [each["id"] for each in reversed(call.data["candidates"])]
    reason = "It goes with what you watched."
    return answered(picks=[{"id": each, "reason": reason} for each in picks])

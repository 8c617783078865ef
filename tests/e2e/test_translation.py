"""Comments get their translation in the started program, whatever is killed meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from tests.e2e.program import Program
from tests.e2e.videos import everything, problem, read, upload
from tests.openai_server import OpenAIServer, openai_server, status, translated
from tests.real_inputs import real_inputs
from tests.support import eventually

FINAL = {"translated", "not_needed", "failed", "skipped"}
SOON = {
    "TRANSLATION_SWEEP_SECONDS": "1",
    "TRANSLATION_OVERDUE_SECONDS": "2",
    "TASK_HEARTBEAT_SECONDS": "2",
    "TASK_MIN_BACKOFF_SECONDS": "0.1",
    "TASK_MAX_BACKOFF_SECONDS": "1",
}


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenAIServer]:
    with openai_server() as server:
        yield server


@pytest.fixture
def program(make_program: Callable[..., Program], provider: OpenAIServer) -> Program:
    provider.forget()
    return make_program(OPENAI_BASE_URL=provider.url, **SOON).start()


def post(client: httpx.Client, video: str, content: str) -> str:
    answer = client.post(f"/videos/{video}/comments", json={"content": content})
    return str(read(answer)["commentId"])


def comments(client: httpx.Client, video: str) -> dict[str, dict[str, Any]]:
    client.headers.pop("Backlot-Min-Position", None)
    return {item["commentId"]: item for item in everything(client, f"/videos/{video}/comments")}


def all_final(client: httpx.Client, video: str, count: int) -> bool:
    found = comments(client, video)
    return len(found) == count and all(
        item["translationStatus"] in FINAL for item in found.values()
    )


def test_from_post_to_translation_and_to_the_audit(program: Program) -> None:
    bob = program.client("bob")
    video = upload(bob)
    spanish = post(bob, video, "¡Qué bonito es este vídeo, señores! 🎬 https://example.org")
    english = post(bob, video, "What a wonderful film this is, thank you very much")
    emoji = post(bob, video, "🎬🎬🎬")
    eventually(lambda: all_final(bob, video, 3))
    found = comments(bob, video)
    assert found[spanish]["translationStatus"] == "translated"
    assert found[spanish]["language"] == "es"
    assert found[spanish]["confidence"] > 0.5
    assert found[spanish]["translatedText"].startswith("[en] ¡Qué bonito")
    assert found[english]["translationStatus"] == "not_needed"
    assert "translatedText" not in found[english]
    assert found[emoji]["translationStatus"] == "not_needed"
    assert "language" not in found[emoji]

    edited = bob.patch(f"/comments/{spanish}", json={"content": "Otra cosa distinta, amigos míos"})
    assert read(edited)["translationStatus"] == "pending"
    anew = "[en] Otra cosa distinta, amigos míos"
    eventually(lambda: comments(bob, video)[spanish].get("translatedText") == anew)

    admin = program.client("root", admin=True)
    stream = read(admin.get(f"/audit/streams/{spanish}"))["items"]
    assert [event["type"].split(".")[1] for event in stream] == [
        "posted", "language_detected", "translated", "edited", "language_detected", "translated",
    ]  # fmt: skip
    trace = admin.get(f"/audit/trace/{edited.headers['X-Request-Id']}").text
    assert "comment.edited.v1" in trace
    assert "comment.translated.v1" in trace


@pytest.mark.parametrize("always", [8, pytest.param(1, marks=pytest.mark.chaos)])
def test_real_comments_are_translated_where_they_say_something(
    program: Program, provider: OpenAIServer, always: int
) -> None:
    provider.otherwise = lambda call: translated(f"[en] {call.text}", "hi")
    bob = program.client("bob")
    video = upload(bob)
    posted = {post(bob, video, one.text): one for one in real_inputs("comments")[::always]}
    eventually(lambda: all_final(bob, video, len(posted)))
    found = comments(bob, video)
    for comment, one in posted.items():
        shown, calls = found[comment], provider.by_text[one.text]
        if one.right in ("no_words", "en"):
            assert (shown["translationStatus"], calls) == ("not_needed", 0), one
        else:
            assert shown.get("translatedText") == f"[en] {one.text}", one
            assert one.right in ("asked", shown["language"]), one


def test_a_reader_asks_for_another_language_once(
    make_program: Callable[..., Program], provider: OpenAIServer
) -> None:
    provider.forget()
    provider.otherwise = lambda call: translated(f"[{call.target}] {call.text}", "es")
    settings = {"OPENAI_BASE_URL": provider.url, "TRANSLATION_TARGETS": "de,fr", **SOON}
    program = make_program(**settings).start()
    bob, reader = program.client("bob"), program.client()
    video = upload(bob)
    text = "¡Qué bonito es este vídeo, señores! 🎬 https://example.org"
    comment = post(bob, video, text)
    eventually(lambda: all_final(bob, video, 1))
    path = f"/videos/{video}/comments"

    def seen(language: str) -> dict[str, Any]:
        [item] = read(reader.get(path, headers={"Accept-Language": f"{language}, en;q=0.5"}))[
            "items"
        ]
        return dict(item)

    assert seen("de")["content"] == text
    assert eventually(lambda: seen("de").get("translatedText")) == f"[de] {text}"
    assert seen("en")["translatedText"] == f"[en] {text}"
    assert provider.by_text[text] == 2
    assert program.stop() == 0
    program.start()
    reader, admin = program.client(), program.client("root", admin=True)
    asked = read(admin.post("/projections/translations/replay", json={"yes": True}))
    done = f"/operations/{asked['operationId']}"
    eventually(lambda: "finishedAt" in admin.get(done).text)
    assert read(admin.get(done))["status"] == "done"
    assert eventually(lambda: seen("de").get("translatedText")) == f"[de] {text}"
    assert provider.by_text[text] == 2, "neither a restart nor a replay asks again"
    stream = read(admin.get(f"/audit/streams/{comment}"))["items"]
    assert [event["type"] for event in stream][-1] == "comment.translated_to"


def test_comments_of_a_removed_video_cost_nothing_and_take_no_edits(
    program: Program, provider: OpenAIServer
) -> None:
    ann, bob = program.client("ann"), program.client("bob")
    video = upload(ann)
    text = "¡Qué bonito es este vídeo, señores!"
    comment = post(bob, video, text)
    eventually(lambda: all_final(bob, video, 1))
    [shown] = comments(bob, video).values()
    assert shown["translationStatus"] == "translated"
    # How many like it and reply to it, only reads know.
    for counted in ("replyCount", "likeCount", "hasLiked"):
        del shown[counted]
    assert read(bob.patch(f"/comments/{comment}", json={"content": text})) == shown
    assert read(ann.delete(f"/videos/{video}"))
    calls = len(provider.calls)
    for answer in (
        bob.post(f"/videos/{video}/comments", json={"content": "Otra cosa"}),
        bob.patch(f"/comments/{comment}", json={"content": "Otra cosa distinta, amigos"}),
        bob.patch(f"/comments/{comment}", json={"content": text}),
        ann.patch(f"/comments/{comment}", json={"content": "Otra cosa distinta, amigos"}),
    ):
        assert problem(answer, 404)["detail"] == "There is no such video."
    assert len(provider.calls) == calls


def test_without_a_language_model(make_program: Callable[..., Program]) -> None:
    program = make_program().start()
    bob = program.client("bob")
    video = upload(bob)
    comment = post(bob, video, "¡Qué bonito es este vídeo, señores!")
    eventually(lambda: all_final(bob, video, 1))
    assert comments(bob, video)[comment]["translationStatus"] == "skipped"
    assert comments(bob, video)[comment]["language"] == "es"
    assert program.complained.count("translation_skipped") == 1
    assert "skipped" in program.run("doctor").stdout


def test_a_provider_that_fails_for_a_while(program: Program, provider: OpenAIServer) -> None:
    bob = program.client("bob")
    video = upload(bob)
    provider.otherwise = lambda call: status(500)
    text = "Me gusta mucho esta película, de verdad"
    comment = post(bob, video, text)
    eventually(lambda: len(provider.calls) >= 2)
    eventually(lambda: comment in comments(bob, video))
    assert comments(bob, video)[comment]["translationStatus"] == "pending"
    provider.forget()
    eventually(lambda: all_final(bob, video, 1))
    assert comments(bob, video)[comment]["translatedText"] == f"[en] {text}"


def test_a_task_that_was_given_up_is_found_again(
    make_program: Callable[..., Program], provider: OpenAIServer
) -> None:
    provider.forget()
    provider.otherwise = lambda call: status(500)
    variables = {**SOON, "TASK_MAX_RETRIES": "1", "LLM_BREAKER_FAILURES": "1000"}
    program = make_program(OPENAI_BASE_URL=provider.url, **variables).start()
    bob = program.client("bob")
    video = upload(bob)
    text = "Esta película me ha encantado, de verdad"
    comment = post(bob, video, text)

    def said(field: str) -> Any:
        return comments(bob, video).get(comment, {}).get(field)

    eventually(lambda: said("translationStatus") == "failed")
    eventually(lambda: "task_dead" in program.complained)
    assert len(provider.calls) >= 2
    provider.forget()
    eventually(lambda: said("translatedText") == f"[en] {text}")
    eventually(lambda: "translations_swept" in program.complained)


@pytest.mark.chaos
def test_killed_again_and_again_every_language_is_recorded_once(
    make_program: Callable[..., Program], provider: OpenAIServer
) -> None:
    """The consumer's place is written down after its work: no sweep has to find what was lost."""
    provider.forget()
    settings = {"OPENAI_BASE_URL": provider.url, **SOON, "TRANSLATION_SWEEP_SECONDS": "3600"}
    program = make_program(**settings).start()
    count, kills = 240, 3
    video = upload(program.client("bob"))
    posted: list[str] = []

    with ThreadPoolExecutor(8) as pool:
        texts = (f"This is a wonderful film, I liked part {number} best" for number in range(count))
        writing = [pool.submit(_post_again, program, video, text, posted) for text in texts]
        for turn in range(kills):
            eventually(partial(_are, posted, (turn + 1) * count // (kills + 1)))
            program.kill()
            program.start()
        for each in writing:
            each.result()
    reader, admin = program.client("bob"), program.client("root", admin=True)
    eventually(lambda: len(comments(reader, video)) >= count)
    eventually(lambda: all_final(reader, video, len(comments(reader, video))))
    found = comments(reader, video)
    assert set(posted) <= found.keys()
    assert {item["translationStatus"] for item in found.values()} == {"not_needed"}
    for comment in found:
        stream = read(admin.get(f"/audit/streams/{comment}"))["items"]
        kinds = [event["type"].split(".")[1] for event in stream]
        assert kinds == ["posted", "language_detected"]
    assert provider.calls == []


@pytest.mark.chaos
def test_killed_again_and_again_every_comment_ends(
    program: Program, provider: OpenAIServer
) -> None:
    """In the embedded shape the queue dies with the program: the sweep finds what was lost."""
    count, texts = 300, 60
    provider.delay = 0.05
    video = upload(program.client("bob"))
    posted: list[str] = []

    with ThreadPoolExecutor(8) as pool:
        numbered = (
            f"Este vídeo es muy bonito y muy largo, número {number % texts}"
            for number in range(count)
        )
        writing = [pool.submit(_post_again, program, video, text, posted) for text in numbered]
        for _ in range(3):
            eventually(lambda: len(provider.calls) > 5)
            program.kill()
            provider.calls.clear()
            program.start()
        for each in writing:
            each.result()
    reader = program.client("bob")
    # A post whose answer was lost with the program may have been repeated.
    eventually(lambda: len(comments(reader, video)) >= count)
    eventually(lambda: all_final(reader, video, len(comments(reader, video))))
    found = comments(reader, video)
    assert set(posted) <= found.keys()
    assert Counter(item["translationStatus"] for item in found.values()) == {
        "translated": len(found)
    }
    # The cache dies with the program too: a call for each text and life, at most.
    assert max(provider.by_text.values()) <= 4


def _are(posted: list[str], wanted: int) -> bool:
    return len(posted) >= wanted


def _post_again(program: Program, video: str, text: str, posted: list[str]) -> None:
    """Post a comment, again and again while the program is away."""
    for _ in range(200):
        try:
            with program_client(program) as client:
                posted.append(post(client, video, text))
            return
        except (httpx.HTTPError, AssertionError):
            eventually(lambda: program.process.poll() is None)


def program_client(program: Program) -> httpx.Client:
    return httpx.Client(
        base_url=program.url,
        headers={"Authorization": f"Bearer {program.token('bob')}"},
        trust_env=False,
    )

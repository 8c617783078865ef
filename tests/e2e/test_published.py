"""A service that follows what is published, over real connections and through deaths."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.e2e import plain
from tests.e2e.live_events import Told, events
from tests.e2e.program import Program
from tests.e2e.videos import problem, read, upload
from tests.support import DEADLINE_SECONDS, eventually

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def service(server: Program) -> httpx.Client:
    return server.client("svc", roles=["service"])


def end(client: httpx.Client) -> str:
    """A position behind which nothing is recorded, unless it happens from now on."""
    return client.get("/videos").headers["Backlot-Position"]


def page(client: httpx.Client, after: str, **params: Any) -> tuple[list[dict[str, Any]], str]:
    """The next events, and the position behind them."""
    answer = client.get("/events", params={"after": after, **params})
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/cloudevents-batch+json"
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.json(), answer.headers["Backlot-Position"]


def test_a_service_reads_what_happens_by_pages(server: Program, service: httpx.Client) -> None:
    begin, ann = end(service), server.client("ann")
    video = upload(server.client("owner"))
    read(ann.put(f"/videos/{video}/like"))
    read(ann.post(f"/videos/{video}/comments", json={"content": "¡Qué bonito!"}))
    read(ann.post(f"/videos/{video}/watch"))
    wanted = "upload.completed,video.liked,comment.created,video.viewed"
    found: list[dict[str, Any]] = []
    position = begin
    while len(found) < 4:
        told, position = page(service, position, topics=wanted, limit=1, wait=10)
        found += told
    by_topic = {each["type"]: each for each in found}
    assert set(by_topic) == set(wanted.split(","))
    assert all(each["specversion"] == "1.0" for each in found)
    assert {each["data"]["videoId"] for each in found} == {video}
    assert by_topic["comment.created"]["data"]["content"] == "¡Qué bonito!"
    # As in topics, a pseudonym stands for each user.
    assert by_topic["video.liked"]["data"]["userId"] == server.person("ann")
    assert page(service, position, topics=wanted)[0] == []


def test_who_may_not_is_told_so_and_what_is_wrong_is_named(
    server: Program, service: httpx.Client
) -> None:
    assert problem(server.client().get("/events"), 401)["type"] == "unauthenticated"
    refused = problem(server.client("ann").get("/events", headers=STREAM), 403)
    assert "`service`" in refused["detail"]
    wrong = problem(service.get("/events?topics=video.liked,video.loved"), 422)
    assert "'video.loved'" in wrong["detail"]
    assert "video.unliked" in wrong["detail"]
    assert problem(service.get("/events?after=nothing"), 422)["type"] == "position-invalid"
    ahead = "YmFja2xvdDo5OTk5OTk5OTk"
    for headers in ({}, STREAM):
        refused = problem(service.get(f"/events?after={ahead}", headers=headers), 422)
        assert refused["type"] == "position-invalid"
    for params in ({"wait": 31}, {"limit": 0}, {"limit": 1001}, {"other": 1}):
        assert problem(service.get("/events", params=params), 422)["type"] == "invalid"


def test_a_wait_ends_when_something_comes(server: Program, service: httpx.Client) -> None:
    video, begin = upload(server.client("owner")), end(service)
    answered: list[dict[str, Any]] = []

    def wait() -> None:
        position = begin
        while not answered:
            told, position = page(service, position, topics="video.liked", wait=30)
            answered.extend(told)

    waiting = threading.Thread(target=wait)
    waiting.start()
    readers = "backlot_published_readers 1.0"
    eventually(lambda: readers in plain.get(f"{server.url}/metrics").text)
    read(server.client("ann").put(f"/videos/{video}/like"))
    waiting.join(DEADLINE_SECONDS)
    assert [each["data"]["action"] for each in answered] == ["like"]


def followed(client: httpx.Client, after: str | None, count: int) -> Iterator[Told]:
    """So many events of a stream, which is then cut."""
    headers = {**STREAM, **({"Last-Event-ID": after} if after else {})}
    with client.stream("GET", "/events?topics=video.liked&limit=3", headers=headers) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        told = events(stream.iter_lines())
        for _ in range(count):
            yield next(told)


@pytest.mark.chaos
def test_a_stream_misses_nothing_and_has_nothing_twice_when_the_program_is_killed(
    make_program: Callable[..., Program],
) -> None:
    program = make_program().start()
    video = upload(program.client("owner"))
    viewers = [f"viewer-{number}" for number in range(10)]
    found: list[Told] = []
    for run in (viewers[:5], viewers[5:]):
        for viewer in run:
            read(program.client(viewer).put(f"/videos/{video}/like"))
        service = program.client("svc", roles=["service"])
        known = found[-1].id if found else None
        # One is left for whoever comes after the death.
        found += followed(service, known, len(run) - 1 + len(found[:1]))
        program.kill()
        program.start()
    found += followed(program.client("svc", roles=["service"]), found[-1].id, 1)
    people = [each.data["data"]["userId"] for each in found]
    assert people == [program.person(viewer) for viewer in viewers]


BEGINNING = "YmFja2xvdDow"


def test_of_somebody_who_is_forgotten_there_are_no_texts(
    make_program: Callable[..., Program],
) -> None:
    # Another process may know the key for a minute more.
    program = make_program(BACKLOT_PROCESSES="1")
    program.module = "tests.e2e.hasty_erasure"
    program.start()
    video = upload(program.client("owner"))
    ann, service = program.client("ann"), program.client("svc", roles=["service"])
    read(ann.post(f"/videos/{video}/comments", json={"content": "Forget me"}))
    person = program.person("ann")

    def told(topic: str) -> list[dict[str, Any]]:
        return [each["data"] for each in page(service, BEGINNING, topics=topic)[0]]

    assert [each["content"] for each in told("comment.created")] == ["Forget me"]
    read(program.client("root", admin=True).delete("/users/ann"))
    assert [each["userId"] for each in eventually(lambda: told("user.forgotten"))] == [person]
    assert [each["content"] for each in told("comment.created")] == [""]
    assert "Forget me" not in json.dumps(page(service, BEGINNING, limit=1000)[0])


def test_open_streams_do_not_hold_up_the_end(
    make_program: Callable[..., Program],
) -> None:
    program = make_program().start()
    service = program.client("svc", roles=["service"])
    with service.stream("GET", "/events", headers=STREAM) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "retry: 2000"
        program.process.terminate()
        with suppress(httpx.TransportError):
            list(lines)
    assert program.wait() == 0
    # What uvicorn says of requests in flight that have not ended after their ten seconds.
    assert "graceful shutdown exceeded" not in program.complained + program.said

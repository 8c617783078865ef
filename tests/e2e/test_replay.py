"""Clients of the running program go through replays and rollbacks without noticing them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import httpx
import pytest

from tests.e2e.program import Program
from tests.e2e.videos import everything, read, see, upload
from tests.support import DEADLINE_SECONDS, eventually

ROUNDS = 10
NAMES = ("catalog", "likes", "comments")
VIDEOS = 3

Look = Callable[[httpx.Client], None]


class Grows:
    """What one reader has seen; nobody takes anything back, so that it only grows."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._keys: dict[str, set[str]] = {}

    def number(self, what: str, value: int) -> None:
        before = self._numbers.get(what, 1)
        assert value >= before, f"{what}: {value} after {before}"
        self._numbers[what] = value

    def keys(self, what: str, found: Sequence[str]) -> None:
        before = self._keys.get(what, set())
        assert found, f"{what}: nothing"
        assert len(set(found)) == len(found), f"{what}: something twice"
        assert before <= set(found), f"{what}: {len(before - set(found))} are lost"
        self._keys[what] = set(found)


class Visit:
    """A reader's round through every query."""

    def __init__(self, videos: Sequence[str]) -> None:
        self._videos = videos
        self._grows = Grows()

    def __call__(self, client: httpx.Client) -> None:
        for path in ("/videos", "/videos?owner=alice", "/videos?category=art", "/videos/liked"):
            self._grows.keys(path, [video["videoId"] for video in everything(client, path, 20)])
        for video in self._videos:
            self._look_at(client, video)

    def _look_at(self, client: httpx.Client, video: str) -> None:
        found = read(client.get(f"/videos/{video}"))
        assert found["hasLiked"] is True
        self._grows.number(f"likes of {video}", found["likes"])
        self._grows.number(f"comments of {video}", found["comments"])
        state = read(client.get(f"/videos/{video}/like"))
        assert state["hasLiked"] is True
        self._grows.number(f"likes of {video}", state["likesCount"])
        comments = everything(client, f"/videos/{video}/comments", 50)
        self._grows.keys(f"comments of {video}", [row["commentId"] for row in comments])
        assert read(client.get(f"/uploads/{video}"))["status"] == "completed"


class Crowd:
    """Threads that go on until one of them has something to complain about, or all is over."""

    def __init__(self) -> None:
        self.ended = Event()
        self.faults: list[str] = []
        self.rounds = 0

    def keep(self, work: Look, client: httpx.Client) -> Thread:
        thread = Thread(target=self._keep, args=(work, client))
        thread.start()
        return thread

    def _keep(self, work: Look, client: httpx.Client) -> None:
        while not self.ended.is_set():
            try:
                work(client)
                self.rounds += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, no client must see it
                self.faults.append(f"{type(error).__name__}: {error}")
                self.ended.set()


@contextmanager
def busy(program: Program, videos: Sequence[str]) -> Iterator[Crowd]:
    """Two who read, and two who write."""
    crowd = Crowd()
    writing = Writing(program, videos)
    threads = [
        crowd.keep(Visit(videos), program.client("alice")),
        crowd.keep(Visit(videos), program.client("alice")),
        crowd.keep(writing.like, program.client("bob")),
        crowd.keep(writing.comment, program.client("bob")),
    ]
    try:
        yield crowd
    finally:
        crowd.ended.set()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)


class Writing:
    """Ever more likes, comments and videos."""

    def __init__(self, program: Program, videos: Sequence[str]) -> None:
        self._program = program
        self._videos = videos
        self._likes = 0

    def like(self, client: httpx.Client) -> None:
        self._likes += 1
        token = self._program.token(f"viewer-{self._likes}")
        headers = {"Authorization": f"Bearer {token}"}
        video = self._videos[self._likes % VIDEOS]
        answer = client.put(f"/videos/{video}/like", headers=headers)
        assert answer.is_success, answer.text
        time.sleep(0.005)

    def comment(self, client: httpx.Client) -> None:
        for video in self._videos:
            answer = client.post(f"/videos/{video}/comments", json={"content": "¡Qué bonito!"})
            assert answer.is_success, answer.text
            time.sleep(0.05)


def asked(root: httpx.Client, action: str, name: str) -> str:
    body = {"yes": True} if action == "replay" else {}
    answer = root.post(f"/projections/{name}/{action}", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["operationId"])


def ended(root: httpx.Client, operation_id: str) -> dict[str, Any]:
    path = f"/operations/{operation_id}"
    eventually(lambda: "finishedAt" in root.get(path).text)
    return read(root.get(path))


@pytest.fixture
def program(make_program: Callable[..., Program]) -> Program:
    return make_program().start()


@pytest.mark.chaos
def test_clients_do_not_notice_ten_replays_and_rollbacks(program: Program) -> None:
    alice = program.client("alice")
    videos = [upload(alice, category="art") for _ in range(VIDEOS)]
    for video in videos:
        assert alice.put(f"/videos/{video}/like").is_success
        answer = alice.post(f"/videos/{video}/comments", json={"content": "first"})
        assert answer.is_success
        see(alice, answer)
    assert read(alice.get(f"/videos/{videos[-1]}"))["comments"] == 1
    root = program.client("root", admin=True)
    with busy(program, videos) as crowd:
        for number in range(ROUNDS):
            action = "rollback" if number % 2 else "replay"
            operations = [asked(root, action, name) for name in NAMES]
            for operation in operations:
                found = ended(root, operation)
                assert (found["status"], found["result"]["state"]) == ("done", "switched"), found
            assert crowd.faults == []
    assert crowd.faults == []
    assert crowd.rounds > ROUNDS
    assert_nothing_broke(program)


def assert_nothing_broke(program: Program) -> None:
    assert program.stop() == 0
    for fault in ("request_broke", "projection_interrupted", "replay_failed", "replay_differs"):
        assert fault not in program.complained

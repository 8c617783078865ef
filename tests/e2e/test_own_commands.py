"""Who was told that something is done sees it in whatever is asked next, with default settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import httpx
import pytest

from tests.e2e.program import Program
from tests.e2e.videos import problem, read, upload
from tests.integration.redis_servers import redis_servers
from tests.real_inputs import RealInput, each, real_inputs
from tests.support import KEY_ENCRYPTION_KEY, unused_port

WITHOUT_CONSUMERS = "commands,queries,projections,workers"


def told(client: httpx.Client, answer: httpx.Response) -> dict[str, str]:
    """The header with which a query includes the command that was answered so."""
    assert answer.is_success, answer.text
    return {"Backlot-Min-Position": answer.headers["Backlot-Position"]}


class Deeds:
    """What one viewer does to one video, in the words of `deeds.tsv`."""

    def __init__(self, client: httpx.Client, video: str) -> None:
        self.client = client
        self.video = video
        self.comment = ""

    def do(self, deed: str) -> httpx.Response:
        method, what, *body = deed.split(" ", 2)
        paths = {"video": f"/videos/{self.video}", "comment": f"/comments/{self.comment}"}
        path = paths.get(what, f"/videos/{self.video}/{what}")
        answer = self.client.request(method, path, json=json.loads(body[0]) if body else None)
        if what == "comments":
            self.comment = answer.json()["commentId"]
        return answer

    def stats(self, headers: dict[str, str]) -> dict[str, Any]:
        path = f"/videos/{self.video}/stats"
        totals: dict[str, Any] = read(self.client.get(path, headers=headers))["totals"]
        return totals


def numbers(right: str) -> dict[str, int]:
    pairs = (figure.split("=") for figure in right.split())
    return {name: int(number) for name, number in pairs}


def test_every_deed_is_in_the_stats_of_its_position(server: Program) -> None:
    client = server.client("deeds")
    deeds = Deeds(client, upload(client))
    client.headers.pop("Backlot-Min-Position")
    for deed in real_inputs("deeds"):
        totals = deeds.stats(told(client, deeds.do(deed.text)))
        right = numbers(deed.right)
        assert {name: totals[name] for name in right} == right, deed


def test_a_repeat_of_a_watch_is_of_its_position_too(server: Program, video: str) -> None:
    client = server.client("repeating")
    key = {"Idempotency-Key": "once"}
    client.post(f"/videos/{video}/watch", headers=key)
    again = client.post(f"/videos/{video}/watch", headers=key)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert Deeds(server.client("alice"), video).stats(told(client, again))["views"] == 1


def test_trending_of_a_position_has_it_though_another_was_kept(server: Program) -> None:
    owner, bob = server.client("owner"), server.client("bob")
    category = "kept rankings"
    first, second = (upload(owner, category=category) for _ in range(2))

    def ranked(headers: dict[str, str]) -> list[tuple[str, float]]:
        path = "/analytics/trending"
        items = read(bob.get(path, params={"category": category}, headers=headers))["items"]
        return [(item["video"]["videoId"], item["components"]["likes"]) for item in items]

    assert ranked(told(bob, bob.put(f"/videos/{first}/like"))) == [(first, 5)]
    assert ranked(told(bob, bob.put(f"/videos/{second}/like")))[0][1] == 5
    assert len(ranked({})) == 2
    assert ranked(told(bob, bob.delete(f"/videos/{first}/like"))) == [(second, 5)]
    cat = server.client("cat")
    watched = told(cat, cat.post(f"/videos/{first}/watch"))
    assert [video for video, _ in ranked(watched)] == [second, first]


@pytest.mark.parametrize("deed", ["PUT like", "POST like", "POST watch"])
@pytest.mark.parametrize("asked_before", [False, True])
def test_what_was_just_seen_is_not_recommended(
    server: Program, deed: str, asked_before: bool
) -> None:
    owner = server.client("owner")
    client = server.client(f"{deed} {asked_before}")
    video, other = upload(owner), upload(owner)

    def recommended(headers: dict[str, str]) -> list[str]:
        found = read(client.get("/recommendations", params={"limit": 50}, headers=headers))
        return [item["video"]["videoId"] for item in found["items"]]

    if asked_before:
        assert video in recommended({})
    answer = Deeds(client, video).do(deed)
    for headers in ({}, told(client, answer), {}):
        assert video not in recommended(headers)
        assert other in recommended(headers)


def test_without_consumers_it_is_refused_and_nothing_seen_is_recommended(
    make_program: Callable[..., Program],
) -> None:
    program = make_program(BACKLOT_ROLES=WITHOUT_CONSUMERS, STATS_PUBLIC="true").start()
    owner, ann = program.client("owner"), program.client("ann")
    watched, liked, other, removed = (upload(owner) for _ in range(4))
    ann.headers["Backlot-Timeout-Ms"] = "200"
    for deed in (ann.post(f"/videos/{watched}/watch"), ann.put(f"/videos/{liked}/like")):
        headers = told(ann, deed)
        for path in (f"/videos/{liked}/stats", "/analytics/trending", "/recommendations"):
            answer = ann.get(path, headers=headers)
            problem(answer, 503, "read-model-behind")
            assert answer.headers["Retry-After"] == "1"
    assert owner.delete(f"/videos/{removed}").is_success
    for path in ("/recommendations", "/videos/recommendations"):
        items = read(ann.get(path, params={"limit": 50}))["items"]
        assert [item["video"]["videoId"] for item in items] == [other]
    assert program.stop() == 0


class Rankings:
    """Four videos, 1 to 3 of the category `art` and 4 of `nature`, the most liked first."""

    def __init__(self, program: Program) -> None:
        self._owner = program.client("owner")
        self._case = uuid4().hex[:8]
        self.videos: dict[str, str] = {}
        fans = [program.client(f"fan {number}") for number in range(4)]
        for number, category in enumerate(("art", "art", "art", "nature")):
            video = upload(self._owner, category=self._name(category))
            self.videos[str(number + 1)] = video
            for fan in fans[number:]:
                self.position = told(fan, fan.put(f"/videos/{video}/like"))
        self._owner.headers.pop("Backlot-Min-Position")

    def _name(self, category: str) -> str:
        return f"{category} {self._case}"

    def change(self, changes: str) -> None:
        for change in changes.split("; "):
            method, number, *body = change.split(" ", 2)
            details = json.loads(body[0]) if body else None
            if details and details.get("category"):
                details["category"] = self._name(details["category"])
            path = f"/videos/{self.videos[number]}"
            told(self._owner, self._owner.request(method, path, json=details))

    def read(self, client: httpx.Client, right: str, headers: dict[str, str]) -> str:
        """The rankings that `right` tells of, in the same words."""
        names = {video: number for number, video in self.videos.items()}
        lists = []
        for category in (told.partition("=")[0] for told in right.split()):
            params = {"limit": "2"}
            if category != "all":
                params["category"] = self._name(category)
            items = read(client.get("/analytics/trending", params=params, headers=headers))["items"]
            found = [names[item["video"]["videoId"]] for item in items]
            lists.append(f"{category}={','.join(found)}")
        return " ".join(lists)

    def at(self, program: Program) -> Self:
        """The same, at a program that was started anew."""
        self._owner = program.client("owner")
        return self

    def clean_up(self) -> None:
        for video in self.videos.values():
            self._owner.delete(f"/videos/{video}")


@pytest.fixture(scope="module", params=["without Redis", "with Redis"])
def replicas(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[Sequence[Program]]:
    """A whole program, and one more that answers queries from its database."""
    with ExitStack() as stack:
        shared = {"KEY_ENCRYPTION_KEY": KEY_ENCRYPTION_KEY}
        home = short_dir / f"replicas-{uuid4().hex[:8]}"
        home.mkdir()
        if request.param == "with Redis":
            (redis,) = stack.enter_context(redis_servers(1, home))
            shared["REDIS_URL"] = redis.url
        whole = Program(home / "whole", unused_port(), shared)
        stack.callback(whole.clean_up)
        whole.start()
        apart = {**shared, "DATABASE_URL": whole.database_url, "BACKLOT_ROLES": "queries"}
        another = Program(home / "another", unused_port(), apart)
        stack.callback(another.clean_up)
        yield whole, another.start()
        assert [program.stop() for program in (another, whole)] == [0, 0]


@each("listing_changes", always=3)
def test_the_next_ranking_is_right_wherever_it_is_read(
    replicas: Sequence[Program], real: RealInput
) -> None:
    rankings = Rankings(replicas[0])
    clients = [program.client() for program in replicas]
    for client in clients:
        before = rankings.read(client, real.right, rankings.position)
        assert before.startswith("all=1,2 art=1,2 nature=4")
        assert rankings.read(client, real.right, {}) == before
    rankings.change(real.text)
    assert [rankings.read(client, real.right, {}) for client in clients] == 2 * [real.right]
    rankings.clean_up()


def test_a_gap_is_filled_though_the_analytics_know_of_none(
    make_program: Callable[..., Program],
) -> None:
    """A consumer that is stopped must not show what is removed, nor hide what is behind it."""
    program = make_program().start()
    rankings = Rankings(program)
    nobody = program.client()
    assert rankings.read(nobody, "all= art=", rankings.position) == "all=1,2 art=1,2"
    program.stop()
    program.variables["BACKLOT_ROLES"] = WITHOUT_CONSUMERS
    program.start()
    rankings = rankings.at(program)
    rankings.change('DELETE 1; PATCH 2 {"category": "nature"}')
    assert rankings.read(program.client(), "all= art= nature=", {}) == "all=2,3 art=3 nature=4"
    assert "ranking_behind_catalog" in program.complained
    assert program.stop() == 0

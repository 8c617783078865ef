"""What was acknowledged by one replica is in the next read of every other, without any header."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from infra.http.shapes import Position, decode_position
from infra.postgres.server import EmbeddedPostgres
from tests.e2e.live_events import events
from tests.e2e.replicas import Site, running_site
from tests.e2e.test_live import of_comments
from tests.e2e.videos import problem, read, upload
from tests.integration.redis_servers import redis_servers

ROUNDS = 5


@pytest.fixture(scope="module")
def site(short_dir: Path, postgres: EmbeddedPostgres) -> Iterator[Site]:
    """Two replicas; the projections run in the first one."""
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE consistent")
    with redis_servers(1, short_dir) as (server,):
        variables = {"REDIS_URL": server.url}
        url = postgres.url_of("consistent")
        with running_site(short_dir / "site", 2, url, "backlot", variables) as site:
            yield site


class Reader:
    """Asks the replicas in turn; what it is told is never less than before, or than it did."""

    def __init__(self, site: Site, user: str | None) -> None:
        self.clients = cycle([replica.client(user) for replica in site.replicas])
        self.known = Position()

    def do(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        return read(self._note(next(self.clients).request(method, path, json=body)))

    def ask(self, path: str) -> httpx.Response:
        """What the next replica answers, which is not the one that was asked before."""
        return self._note(next(self.clients).get(path))

    def _note(self, answer: httpx.Response) -> httpx.Response:
        told = decode_position(answer.headers["Backlot-Position"])
        assert told.events >= self.known.events, "a read has gone back"
        self.known = told
        return answer

    def read(self, path: str) -> dict[str, Any]:
        return read(self.ask(path))


def test_each_command_is_in_the_next_read_wherever_that_goes(site: Site) -> None:
    video = upload(site.first.client("owner"))
    bob, path = Reader(site, "bob"), f"/videos/{video}"
    for number in range(ROUNDS):
        for method, liked in (("PUT", True), ("DELETE", False)):
            bob.do(method, f"{path}/like")
            assert bob.read(path)["hasLiked"] is liked
            assert bob.read(f"{path}/like") == {"hasLiked": liked, "likesCount": int(liked)}
            found = [each["videoId"] for each in bob.read("/videos/liked")["items"]]
            assert found == [video] * liked
        posted = bob.do("POST", f"{path}/comments", {"content": f"{number}"})
        shown = bob.read(f"{path}/comments")["items"]
        assert shown[0]["commentId"] == posted["commentId"]
        assert bob.read(path)["comments"] == 1
        comment = f"/comments/{posted['commentId']}"
        bob.do("PATCH", comment, {"content": f"{number}, edited"})
        assert bob.read(f"{path}/comments")["items"][0]["content"] == f"{number}, edited"
        bob.do("DELETE", comment)
        assert bob.read(f"{path}/comments")["items"] == []
        assert bob.read(path)["comments"] == 0


def test_what_others_do_is_seen_at_once_too(site: Site) -> None:
    video = upload(site.first.client("owner"))
    owner, reader, path = Reader(site, "owner"), Reader(site, None), f"/videos/{video}"
    for number in range(ROUNDS):
        owner.do("PATCH", path, {"title": f"Take {number}"})
        for _ in site.replicas:
            assert reader.read(path)["title"] == f"Take {number}"
            assert reader.read("/videos")["items"][0]["title"] == f"Take {number}"
        owner.do("PATCH", path, {"visibility": "private"})
        for _ in site.replicas:
            problem(next(reader.clients).get(path), 404, "not-found")
            assert video not in str(reader.read("/videos"))
        owner.do("PATCH", path, {"visibility": "public"})
        for _ in site.replicas:
            assert video in str(reader.read("/videos"))
    owner.do("DELETE", path)
    for _ in site.replicas:
        problem(next(reader.clients).get(path), 404, "not-found")


def test_a_stream_goes_on_at_another_replica(site: Site) -> None:
    video = upload(site.first.client("owner"))
    first, second = (replica.client() for replica in site.replicas)
    ann = site.first.client("ann")
    path = f"/videos/{video}"
    with first.stream("GET", f"{path}/events") as stream:
        told = events(stream.iter_lines())
        assert next(told).kind == "likes"
        read(ann.post(f"{path}/comments", json={"content": "seen"}))
        seen = next(of_comments(told))
        assert seen.data["content"] == "seen"
    missed = read(ann.post(f"{path}/comments", json={"content": "missed"}))
    known = {"Last-Event-ID": seen.id}
    with second.stream("GET", f"{path}/events", headers=known) as stream:
        told = events(stream.iter_lines())
        found = next(each for each in told if each.data.get("content") == "missed")
        assert (found.kind, found.data["commentId"]) == ("comment", missed["commentId"])
        read(ann.post(f"{path}/comments", json={"content": "and on"}))
        assert next(each for each in told if each.data.get("content") == "and on")

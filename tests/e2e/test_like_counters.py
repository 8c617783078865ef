"""Counter, read model and event log agree exactly, whatever is done to Redis and the processes."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import httpx
import psycopg
import pytest
import redis

from backlot.demo.client import Lanes
from engine.log import EventMapper
from infra.postgres.server import EmbeddedPostgres
from infra.redis import connect_blocking_redis
from projections.like_counters import Counter, Counters
from tests.e2e.replicas import Replica, Site, running_site
from tests.e2e.videos import upload
from tests.integration.event_log import logged
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.support import DEADLINE_SECONDS, eventually

pytestmark = pytest.mark.chaos

CLIENTS, VIDEOS = 50, 4
SECONDS = float(os.environ.get("COUNTERS_SECONDS", "15"))
# Printed on failure; set it to have the same dice again.
SEED = int(os.environ.get("COUNTERS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)


@pytest.fixture(scope="module")
def server(short_dir: Path) -> Iterator[RedisServer]:
    with redis_servers(1, short_dir) as (one,):
        yield one


@pytest.fixture(scope="module")
def site(short_dir: Path, postgres: EmbeddedPostgres, server: RedisServer) -> Iterator[Site]:
    """Three command processes; the first runs the projections too."""
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE counting")
    url = postgres.url_of("counting")
    variables = {"REDIS_URL": server.url}
    with running_site(short_dir / "counting", 3, url, "backlot", variables) as site:
        yield site


@pytest.fixture(scope="module")
def videos(site: Site) -> list[str]:
    return [upload(site.first.client("owner")) for _ in range(VIDEOS)]


@pytest.fixture
def counters(server: RedisServer) -> Iterator[Counters]:
    with connect_blocking_redis(server.url) as client:
        yield Counters(client, 3600)


class Viewer:
    """A client that knows what it wished, and holds every answer against that."""

    def __init__(self, number: int, site: Site, videos: list[str], http: httpx.AsyncClient) -> None:
        self.dice = random.Random(f"{SEED}-{number}")
        self.name = f"viewer-{number}"
        self.site, self.videos, self.http = site, videos, http
        self.liked = dict.fromkeys(videos, False)
        self.headers = {"Authorization": f"Bearer {site.first.token(self.name)}"}
        self.acknowledged = 0

    async def live(self, over: Callable[[], bool]) -> None:
        while not over():
            video = self.dice.choice(self.videos)
            method = self.dice.choice(["POST", "POST", "PUT", "DELETE"])
            self.acknowledged += 1
            key = {"Idempotency-Key": f"{self.name}-{self.acknowledged}"}
            answer = await self._insist(method, f"/videos/{video}/like", key)
            wished = {"PUT": True, "DELETE": False}.get(method, not self.liked[video])
            self.liked[video] = wished
            self._check(answer, wished)
            if self.dice.random() < 0.3:
                seen = {"Backlot-Min-Position": answer.headers["Backlot-Position"]}
                self._check(await self._insist("GET", f"/videos/{video}/like", seen), wished)

    def _check(self, answer: httpx.Response, wished: bool) -> None:
        state = answer.json()
        assert state["hasLiked"] is wished, (
            f"COUNTERS_SEED={SEED} {self.name} wished {wished} and saw {state}"
        )
        assert state["likesCount"] >= wished, f"{self.name}'s own like is missing in {state}"

    async def _insist(self, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
        """An answer from any replica; what is down or behind now is asked again."""
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            url = self.dice.choice(self.site.replicas).url + path
            try:
                answer = await self.http.request(method, url, headers={**self.headers, **headers})
            except httpx.TransportError:
                await asyncio.sleep(0.05)
                continue
            if answer.is_success:
                return answer
            assert answer.status_code in (409, 503), f"{method} {path}: {answer.text}"
            await asyncio.sleep(0.05)
        raise AssertionError(f"{method} {path} got no answer in a minute")


class Trouble(threading.Thread):
    """Does something bad every half second, until told to stop; then all is up again."""

    def __init__(self, site: Site, server: RedisServer, counters: Counters, videos: list[str]):
        super().__init__()
        self.dice = random.Random(SEED)
        self.first, self.server, self.counters = site.first, server, counters
        self.videos = [UUID(video) for video in videos]
        self.ended = threading.Event()
        self.done: Tally[str] = Tally()
        self.old: list[tuple[UUID, Counter]] = []
        self.error: BaseException | None = None

    @property
    def is_complete(self) -> bool:
        """Whether each kind has come at least once, or no more will come."""
        return len(self.done) == 5 or not self.is_alive()

    def run(self) -> None:
        kinds: list[Callable[[], None]] = [
            self.flush,
            self.restart_redis,
            self.hang_redis,
            self.kill_projections,
            self.repeat_old_counters,
            self.repeat_old_counters,
        ]
        bag: list[Callable[[], None]] = []
        try:
            while not self.ended.wait(0.3):
                if not bag:
                    bag = self.dice.sample(kinds, len(kinds))
                kind = bag.pop()
                kind()
                self.done[kind.__name__] += 1
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.error = error

    def flush(self) -> None:
        with connect_blocking_redis(self.server.url) as client:
            client.flushall()

    def restart_redis(self) -> None:
        self.server.kill()
        time.sleep(0.5)
        self.server.start()

    def hang_redis(self) -> None:
        self.server.pause()
        time.sleep(1.5)
        self.server.resume()

    def kill_projections(self) -> None:
        self.first.kill()
        time.sleep(0.2)
        self.first.start()

    def repeat_old_counters(self) -> None:
        """Put counters again that were right once: late, twice and out of order."""
        self.dice.shuffle(self.old)
        self.counters.put(self.old * 2)
        held = zip(self.videos, self.counters.get(self.videos), strict=True)
        self.old += [(video, counter) for video, counter in held if counter is not None]


async def live_together(site: Site, videos: list[str], trouble: Trouble) -> list[Viewer]:
    """Let all viewers live for a while, until each kind of trouble has come over them."""
    async with httpx.AsyncClient(transport=Lanes(CLIENTS), timeout=DEADLINE_SECONDS) as http:
        viewers = [Viewer(number, site, videos, http) for number in range(CLIENTS)]
        until = time.monotonic() + SECONDS

        def over() -> bool:
            return time.monotonic() > until and trouble.is_complete

        await asyncio.gather(*(viewer.live(over) for viewer in viewers))
        return viewers


def folded(replica: Replica) -> dict[UUID, int]:
    """The likes of each video, from nothing but the event log."""
    mapper, likes = EventMapper(), Tally[UUID]()
    for stored in logged(replica.database_url).values():
        if stored.topic.startswith("video_likes."):
            event = mapper.to_domain_event(stored)
            likes[event.video_id] += 1 if ".liked." in stored.topic else -1  # type: ignore[attr-defined]
    return likes


def test_counter_read_model_and_log_agree_after_all_that(
    site: Site, server: RedisServer, counters: Counters, videos: list[str]
) -> None:
    trouble = Trouble(site, server, counters, videos)
    trouble.start()
    try:
        viewers = asyncio.run(live_together(site, videos, trouble))
    finally:
        trouble.ended.set()
        trouble.join()
    if trouble.error is not None:
        raise trouble.error
    assert sum(viewer.acknowledged for viewer in viewers) > CLIENTS
    head = max(logged(site.first.database_url))
    eventually(lambda: _published(counters) >= head)
    truth = folded(site.first)
    wished = Tally(UUID(v) for viewer in viewers for v, liked in viewer.liked.items() if liked)
    with psycopg.connect(site.first.database_url) as conn:
        rows = conn.execute("SELECT video_id, likes FROM likes.counts").fetchall()
        model: dict[UUID, int] = dict(rows)
    for video in map(UUID, videos):
        (held,) = counters.get([video])
        asked = httpx.get(f"{site.first.url}/videos/{video}/like", trust_env=False).json()
        counts = {
            "wished": wished[video],
            "log": truth[video],
            "read model": model.get(video, 0),
            "counter": held.likes if held else asked["likesCount"],
            "answer": asked["likesCount"],
        }
        assert len(set(counts.values())) == 1, f"COUNTERS_SEED={SEED} {video}: {counts}"
    done = site.first.run("likes", "reconcile", "--json")
    assert done.returncode == 0, done.stderr
    assert '"drifted": []' in done.stdout


def _published(counters: Counters) -> int:
    try:
        return counters.published() or 0
    except redis.RedisError:
        return 0

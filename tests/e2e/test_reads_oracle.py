"""No client ever reads older than it has read or written, whichever process answers, without a
header: an oracle on the log checks every answer (`READS_SEED` and `READS_SECONDS` repeat a run)."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from backlot.demo.client import Lanes
from domain.comment import Comment
from domain.upload import Upload, Visibility
from domain.video_likes import VideoLikes, stream_id
from engine.telemetry import VIEWED
from infra.http.shapes import BEGINNING, Position, decode_position
from infra.postgres.server import EmbeddedPostgres
from infra.redis import connect_blocking_redis
from tests.e2e.read_oracle import WAIT_SECONDS, Answer, History, Oracle
from tests.e2e.recorded import Recorded
from tests.e2e.replicas import Replica, Site, running_site
from tests.e2e.videos import MP4, upload
from tests.integration.projection_support import origin
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.support import DEADLINE_SECONDS, eventually

SECONDS = float(os.environ.get("READS_SECONDS", "20"))
SEED = int(os.environ.get("READS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
PERSONS, NOBODIES, MOST_VIDEOS, FIRST_VIDEOS = 8, 4, 14, 3
KINDS, LEAST = ("video", "like", "comments", "stats", "videos", "own", "liked"), 10
NAMES = ("catalog", "likes", "comments")
RETRY_SECONDS = 0.02
VIEWS = "SELECT seq, video_id, user_id FROM backlot_telemetry WHERE topic = %s ORDER BY seq"


@pytest.fixture(scope="module")
def redis(short_dir: Path) -> Iterator[RedisServer]:
    with redis_servers(1, short_dir) as (one,):
        yield one


@pytest.fixture(scope="module")
def site(short_dir: Path, postgres: EmbeddedPostgres, redis: RedisServer) -> Iterator[Site]:
    """Three processes with commands and queries; the first does everything else, too."""
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE reading")
    variables = {"REDIS_URL": redis.url, "STATS_PUBLIC": "true"}
    url = postgres.url_of("reading")
    with running_site(short_dir / "reading", 3, url, "backlot", variables) as site:
        yield site


@dataclass
class World:
    """What all clients share: the processes, the videos, and everything that was answered."""

    site: Site
    http: httpx.AsyncClient
    videos: list[str] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    refused: list[Answer] = field(default_factory=list)
    found: Tally[str] = field(default_factory=Tally)
    refusals: Tally[int] = field(default_factory=Tally)

    def has(self, least: int) -> bool:
        """Whether so many answers of each kind have come, and some that there is no such video."""
        return all(self.found[kind] >= least for kind in KINDS) and self.found["gone"] > 0


class Client:
    """Does and reads this and that, one after the other, wherever it happens to come."""

    def __init__(
        self, world: World, name: str, person: str | None, replicas: Sequence[Replica]
    ) -> None:
        self.world, self.name, self.person, self.replicas = world, name, person, replicas
        self.dice = random.Random(f"{SEED} {name}")
        self.headers: dict[str, str] = {}
        if person is not None:
            self.headers["Authorization"] = f"Bearer {world.site.first.token(person)}"
        self.comments: list[tuple[str, str]] = []
        self.videos: list[str] = []
        self._tags: dict[str, tuple[str, dict[str, Any]]] = {}
        self._deeds = self._possible_deeds()

    def _possible_deeds(self) -> list[Callable[[str], Any]]:
        if self.person is None:
            return []
        often = [self.like] * 6 + [self.comment] * 3 + [self.edit, self.delete, self.delete]
        return [*often, self.watch, self.watch, self.change, self.change, self.change, self.upload]

    async def live(self, over: Callable[[], bool]) -> None:
        while not over():
            video = self.dice.choice(self.world.videos)
            if self._deeds and self.dice.random() < 0.4:
                await self.dice.choice(self._deeds)(video)
            for _ in range(self.dice.randrange(3)):
                await self.read(video)

    async def read(self, video: str) -> None:
        """Ask for what is told of the video somewhere, or for a list."""
        path = f"/videos/{video}"
        kinds = {
            "video": path,
            "like": f"{path}/like",
            "comments": f"{path}/comments",
            "stats": f"{path}/stats",
            "videos": "/videos?limit=100",
        }
        if self.person is not None:
            kinds |= {"liked": "/videos/liked?limit=100", "own": "/videos?owner=me&limit=100"}
            if video in self.videos:
                kinds["upload"] = f"/uploads/{video}"
        what = self.dice.choice([*kinds, "video", "like", "comments"])
        await self.ask(what, kinds[what], None if "limit" in kinds[what] else video)

    async def ask(self, what: str, path: str, video: str | None) -> None:
        kept = self._tags.get(path) if self.dice.random() < 0.5 else None
        told = {} if kept is None else {"If-None-Match": kept[0]}
        answer = await self._send(what, video, "GET", path, headers=told)
        if answer is not None and (tag := answer.headers.get("ETag")) and answer.status_code == 200:
            self._tags[path] = tag, answer.json()

    async def like(self, video: str) -> None:
        await self.do(self.dice.choice(["POST", "PUT", "DELETE"]), f"/videos/{video}/like")

    async def watch(self, video: str) -> None:
        await self.do("POST", f"/videos/{video}/watch")

    async def comment(self, video: str) -> None:
        answer = await self.do("POST", f"/videos/{video}/comments", {"content": self._words()})
        if answer is not None:
            self.comments.append((video, answer.json()["commentId"]))

    async def edit(self, video: str) -> None:
        if self.comments:
            _, comment = self.dice.choice(self.comments)
            await self.do("PATCH", f"/comments/{comment}", {"content": self._words()})

    async def delete(self, video: str) -> None:
        if self.comments:
            place = self.dice.randrange(len(self.comments))
            await self.do("DELETE", f"/comments/{self.comments.pop(place)[1]}")

    async def change(self, video: str) -> None:
        """Rename one of their videos, show it to others than before, or remove it."""
        if not self.videos:
            return
        video, chance = self.dice.choice(self.videos), self.dice.random()
        if chance < 0.1 and len(self.videos) > 1:
            self.videos.remove(video)
            await self.do("DELETE", f"/videos/{video}")
            await self.read(video)
        elif chance < 0.5:
            await self.do("PATCH", f"/videos/{video}", {"title": self._words()})
        else:
            visibility = self.dice.choice(["public", "public", "unlisted", "private"])
            await self.do("PATCH", f"/videos/{video}", {"visibility": visibility})

    async def upload(self, _: str) -> None:
        if len(self.world.videos) >= MOST_VIDEOS:
            return
        body = {"title": self._words(), "filename": "a.mp4", "contentType": "video/mp4"}
        started = await self.do("POST", "/uploads", {**body, "sizeBytes": len(MP4)})
        if started is None:
            return
        video, (part,) = started.json()["videoId"], started.json()["parts"]
        self.videos.append(video)
        await self.ask("upload", f"/uploads/{video}", video)
        try:
            sent = await self.world.http.put(part["url"], content=MP4)
        except httpx.TransportError:
            return
        if sent.is_success:
            parts = [{"number": part["number"], "etag": sent.headers["ETag"]}]
            done = await self.do("POST", f"/uploads/{video}/complete", {"parts": parts})
            if done is not None:
                self.world.videos.append(video)
                await self.ask("video", f"/videos/{video}", video)

    async def do(self, method: str, path: str, body: Any = None) -> httpx.Response | None:
        return await self._send("command", None, method, path, json=body)

    async def _send(
        self, what: str, video: str | None, method: str, path: str, **given: Any
    ) -> httpx.Response | None:
        """The answer, if there is one that tells of anything; it is kept for the oracle."""
        replica = self.dice.choice(self.replicas)
        process = f"{replica.port}, {replica.process.pid}"
        headers, began = {**self.headers, **given.pop("headers", {})}, time.monotonic()

        def refuse(status: int) -> None:
            ended, who = time.monotonic(), (self.name, self.person)
            told = Answer(*who, what, video, status, {}, BEGINNING, process, began, ended)
            self.world.refused.append(told)

        try:
            answer = await self.world.http.request(
                method, replica.url + path, headers=headers, **given
            )
        except httpx.TransportError:
            # Whose answer was lost may have waited as well.
            refuse(0)
            await asyncio.sleep(RETRY_SECONDS)
            return None
        ended = time.monotonic()
        missing = answer.status_code == 404 and what != "command"
        if not (answer.is_success or missing or answer.status_code == 304):
            self.world.refusals[answer.status_code] += 1
            assert answer.status_code in (403, 404, 409, 503), f"{method} {path}: {answer.text}"
            refuse(answer.status_code)
            return None
        body: Mapping[str, Any] = {} if missing else self._body(path, answer)
        status = 200 if answer.status_code == 304 else answer.status_code
        self.world.found["gone" if missing else what] += 1
        self.world.answers.append(
            Answer(
                self.name, self.person, what, video, status, body, told(answer),
                process, began, ended,
            )
        )  # fmt: skip
        return answer

    def _body(self, path: str, answer: httpx.Response) -> Mapping[str, Any]:
        body: Mapping[str, Any] = (
            self._tags[path][1] if answer.status_code == 304 else answer.json()
        )
        return body

    def _words(self) -> str:
        return f"{self.name} says {self.dice.randrange(10**9)}"


def told(answer: httpx.Response) -> Position:
    """The position that an answer tells; of nothing, where it tells none."""
    token = answer.headers.get("Backlot-Position")
    return BEGINNING if token is None else decode_position(token)


class Trouble(threading.Thread):
    """Does something to the parts all the while, each kind in its turn; at the end all are up."""

    def __init__(self, site: Site, redis: RedisServer) -> None:
        super().__init__()
        self.dice = random.Random(SEED)
        self.site, self.redis = site, redis
        self.ended = threading.Event()
        self.done: Tally[str] = Tally()
        self.error: BaseException | None = None
        self.kinds: list[Callable[[], None]] = [
            self.replay,
            self.roll_back,
            self.flush,
            self.restart_redis,
            self.restart_a_reader,
            self.restart_the_projections,
            self.replay_through_a_kill,
        ]

    @property
    def is_complete(self) -> bool:
        """Whether each kind has come at least once, or no more will come."""
        return len(self.done) == len(self.kinds) or not self.is_alive()

    def run(self) -> None:
        bag: list[Callable[[], None]] = []
        try:
            # The first replays, so that there is something to go back to.
            self._tell(self.replay)
            while not self.ended.is_set():
                if not bag:
                    bag = self.dice.sample(self.kinds, len(self.kinds))
                self._tell(bag.pop())
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.error = error

    def _tell(self, kind: Callable[[], None]) -> None:
        kind()
        self.done[kind.__name__] += 1

    def replay(self) -> None:
        self._wait(self._ask("replay"))

    def roll_back(self) -> None:
        self._wait(self._ask("rollback"))

    def flush(self) -> None:
        with connect_blocking_redis(self.redis.url) as client:
            client.flushall()

    def restart_redis(self) -> None:
        self.redis.kill()
        self.redis.start()

    def restart_a_reader(self) -> None:
        replica = self.dice.choice(self.site.replicas[1:])
        replica.kill()
        replica.start()

    def restart_the_projections(self) -> None:
        self.site.first.kill()
        self.site.first.start()

    def replay_through_a_kill(self) -> None:
        operations = self._ask("replay")
        self.restart_the_projections()
        self._wait(operations)

    def _ask(self, action: str) -> list[str]:
        """Have each read model replayed, or rolled back; which operations these are."""
        asked = []
        for name in NAMES:
            body = {"yes": True} if action == "replay" else {}
            answer = self._root("POST", f"/projections/{name}/{action}", json=body)
            assert answer.status_code == 202, answer.text
            asked.append(answer.json()["operationId"])
        return asked

    def _wait(self, operations: list[str]) -> None:
        for each in operations:
            eventually(lambda each=each: self._has_ended(each))  # type: ignore[misc]

    def _has_ended(self, operation: str) -> bool:
        answer = self._root("GET", f"/operations/{operation}")
        return answer.is_success and "finishedAt" in answer.json()

    def _root(self, method: str, path: str, **given: Any) -> httpx.Response:
        replica = self.site.replicas[1]
        token = replica.token("root", admin=True)
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=replica.url, timeout=60, trust_env=False) as client:
            return client.request(method, path, headers=headers, **given)


async def live_together(site: Site, seconds: float, trouble: Trouble | None) -> World:
    """Let all clients live until so much time has passed, and all trouble, and all was read."""
    names = [f"person-{n}" for n in range(PERSONS)]
    lanes = Lanes(PERSONS + NOBODIES)
    async with httpx.AsyncClient(transport=lanes, timeout=DEADLINE_SECONDS) as http:
        world = World(site, http)
        clients = [Client(world, name, name, site.replicas) for name in names]
        clients += [Client(world, f"nobody-{n}", None, site.replicas) for n in range(NOBODIES)]
        for owner in clients[:FIRST_VIDEOS]:
            video = await asyncio.to_thread(upload, site.first.client(owner.name))
            owner.videos.append(video)
            world.videos.append(video)
        if trouble is not None:
            # Not before: nobody repeats what went wrong with these uploads.
            trouble.start()
        until = time.monotonic() + seconds

        def over() -> bool:
            calm = trouble is None or trouble.is_complete
            return time.monotonic() > until and calm and world.has(LEAST)

        await asyncio.gather(*(client.live(over) for client in clients))
        if trouble is not None:
            trouble.ended.set()
            await asyncio.to_thread(trouble.join)
        for replica in site.replicas:
            for person in (names[0], None):
                late = Client(world, f"late {person} {replica.port}", person, [replica])
                await look_at_everything(world, late)
        return world


async def look_at_everything(world: World, late: Client) -> None:
    """Who comes when all is over is told how it ended, as if it had done all of that."""
    head = await asyncio.to_thread(end_of_log, world.site)
    known = Answer(late.name, late.person, "command", None, 200, {}, head)
    world.answers.append(known)
    for video in world.videos:
        for what, rest in (("video", ""), ("like", "/like"), ("comments", "/comments")):
            await late.ask(what, f"/videos/{video}{rest}", video)
    await late.ask("videos", "/videos?limit=100", None)


def end_of_log(site: Site) -> Position:
    query = "SELECT (SELECT max(notification_id) FROM backlot_events), max(seq) "
    query += "FROM backlot_telemetry"
    with psycopg.connect(site.first.database_url) as conn:
        events, telemetry = conn.execute(query).fetchone() or (0, 0)
        return Position(events, telemetry or 0)


def history_of(site: Site) -> History:
    """What the database has by now."""
    recorded = Recorded.of(site.first)
    with psycopg.connect(site.first.database_url) as conn:
        views = conn.execute(VIEWS, (VIEWED,)).fetchall()
    events = zip(recorded.positions, recorded.events, strict=True)
    return History(events, ((seq, video, viewer) for seq, video, viewer in views), recorded.names)


def check(world: World, history: History) -> None:
    """Have every answer checked."""
    oracle = Oracle(history)
    oracle.check(world.answers, world.refused)
    story = f"READS_SEED={SEED}, {len(world.answers)} answers, {dict(oracle.checked)}, "
    story += f"{len(oracle.admitted)} said that they were older, {dict(world.refusals)} refused"
    print(story)  # noqa: T201 - told where the test fails, and with -s
    assert oracle.faults == [], "\n".join([story, *oracle.faults[:10]])


def small_history() -> tuple[str, History]:
    """A video at 2, a like at 3, taken back at 4, a comment at 5; hidden at 6; and one view."""
    video, comment = Upload.blank(uuid4()), Comment.blank(uuid4())
    details = {"title": "Rain", "description": None, "category": None, "filename": "rain.mp4"}
    file = {"content_type": "video/mp4", "size_bytes": 9, "part_size_bytes": 9}
    place = {"object_key": "key", "store_upload_id": "id"}
    video.start(origin("alice"), **details, **file, **place)  # type: ignore[arg-type]
    video.complete(9, "etag", origin("alice"))
    likes = VideoLikes.blank(stream_id(video.id, "ann"))
    likes.like(video.id, "ann", origin("ann")).unlike(video.id, "ann", origin("ann"))
    comment.post(video.id, "Bonito", origin("bob"))
    shown = video.collect_events()
    video.change_visibility(Visibility.PRIVATE, origin("alice"))
    done: list[Any] = [
        *shown,
        *likes.collect_events(),
        *comment.collect_events(),
        *video.collect_events(),
    ]
    return str(video.id), History(enumerate(done, 1), [(1, video.id, "ann")], {})


# What a client did (`!`) and read, with the position that it was told; the number of faults.
STORIES = [
    ("likes=0@2 likes=1@3 likes=0@4", 0),
    ("likes=1@3 likes=0@3 likes=0@4", 0),
    # Taken back is taken back.
    ("likes=0@2 likes=1@2 likes=0@3 likes=1@4", 1),
    ("!@3 likes=1@3 likes=0@3", 0),
    ("!@4 likes=1@4", 1),
    ("likes=2@4", 1),
    # It is as old as it says, and nobody had to wait; or somebody had.
    ("likes=0@4 likes=0@2", 1),
    ("likes=0@4 likes=1@3 slow", 0),
    ("likes=0@4 likes=2@3 slow", 1),
    ("there@2 gone@6", 0),
    ("gone@6 there@6", 1),
    ("!@6 there@6", 1),
    ("comments=0@4 comments=1@5", 0),
    ("comments=1@5 comments=0@5", 1),
    ("views=0@4 views=1@4 views=1@4", 0),
    ("views=1@4 views=0@4", 1),
]


@pytest.mark.parametrize(("story", "faults"), STORIES)
def test_the_oracle_finds_what_is_older(story: str, faults: int) -> None:
    video, history = small_history()
    oracle = Oracle(history)
    answers = []
    for told in story.removesuffix(" slow").split():
        said, _, at = told.partition("@")
        name, _, number = said.partition("=")
        what = {"!": "command", "comments": "comments", "views": "video"}.get(name, "like")
        body: dict[str, Any] = {"likesCount": int(number or 0)}
        if name == "comments":
            ((comment, author, text, edited),) = history.comments[video].last
            item = {"commentId": comment, "userId": author, "content": text, "edited": edited}
            body = {"items": [item] * int(number)}
        elif what == "video":
            shown = {"title": "Rain", "ownerId": "alice", "visibility": "public", "videoId": video}
            body = {**shown, "likes": 0, "comments": 0, "views": int(number)}
        status = 404 if name == "gone" else 200
        slow = WAIT_SECONDS if "slow" in story else 0.0
        seen = Position(int(at), body.get("views", 0))
        given = (what, video, status, body, seen, "1", 0.0, slow)
        answers.append(Answer("nobody", None, *given))
    oracle.check(answers)
    assert len(oracle.faults) == faults, oracle.faults


def test_nobody_reads_older_than_was_read_or_done(site: Site) -> None:
    world = asyncio.run(live_together(site, 1.0, None))
    check(world, history_of(site))


@pytest.mark.chaos
def test_nobody_does_whatever_becomes_of_the_parts(site: Site, redis: RedisServer) -> None:
    trouble = Trouble(site, redis)
    try:
        world = asyncio.run(live_together(site, SECONDS, trouble))
    finally:
        trouble.ended.set()
        if trouble.is_alive():
            trouble.join()
    if trouble.error is not None:
        raise trouble.error
    check(world, history_of(site))
    for replica in site.replicas:
        assert "request_broke" not in replica.complained

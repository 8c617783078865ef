"""A rolling upgrade: two releases on one database, one of them leaves, and no client notices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import httpx
import psycopg
import pytest

from projections.likes import Likes
from tests.e2e import plain
from tests.e2e.program import Program
from tests.e2e.releases import next_release
from tests.e2e.replicas import SECRET, Replica
from tests.e2e.videos import read, upload
from tests.support import eventually, unused_port

VERSION = "SELECT version FROM backlot_checkpoints WHERE subscription = 'likes'"
STALE = "Backlot-Stale-Position"
# So that a busy machine is no fault; what nobody can feed is answered long before.
PATIENT = {"Backlot-Timeout-Ms": "30000"}
SECONDS = 120
# Of everybody who writes and reads, after each change; each round is a write and its reads.
ROUNDS = 12
PEOPLE = 3
# Between a person's rounds: they leave the processes time for what is tested, such as to start.
PACE_SECONDS = 0.05


class Fleet:
    """The processes that a load balancer sends requests to, in turn."""

    def __init__(self) -> None:
        self._serving: list[Replica] = []
        self._busy: Counter[int] = Counter()
        self._turn = count()
        self._lock = Lock()

    def join(self, replica: Replica) -> None:
        with self._lock:
            self._serving.append(replica)

    def leave(self, replica: Replica) -> None:
        """Take a process out, let it answer what it has been asked, and stop it in order."""
        with self._lock:
            self._serving.remove(replica)
        eventually(lambda: self._busy[replica.port] == 0, SECONDS)
        assert replica.stop() == 0

    @contextmanager
    def one(self) -> Iterator[Replica]:
        with self._lock:
            replica = self._serving[next(self._turn) % len(self._serving)]
            self._busy[replica.port] += 1
        try:
            yield replica
        finally:
            with self._lock:
                self._busy[replica.port] -= 1


class Crowd:
    """People who like, comment, and look for what they have just done and seen, wherever."""

    def __init__(self, fleet: Fleet, video: str) -> None:
        self.faults: list[str] = []
        self.stale = 0
        self.rounds = 0
        self.likes: set[str] = set()
        self._fleet, self.video = fleet, video
        self._ended = Event()
        self._threads = [Thread(target=self._live, args=(n,)) for n in range(PEOPLE)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(SECONDS)

    def go_on(self) -> None:
        """Return when everybody has done as much again; fails with what somebody complains of."""
        goal = self.rounds + ROUNDS
        eventually(lambda: self.rounds >= goal or bool(self.faults), SECONDS)
        assert self.faults == []

    def _live(self, number: int) -> None:
        seen = 0
        with plain.client() as client:
            for n in count():
                if self._ended.wait(PACE_SECONDS):
                    return
                try:
                    seen = self._round(client, f"person-{number}-{n}", seen)
                    self.rounds += 1
                except Exception as error:  # noqa: BLE001 - whatever it is, no client must see it
                    self.faults.append(f"{type(error).__name__}: {error}")
                    return

    def _round(self, client: httpx.Client, viewer: str, seen: int) -> int:
        """Like, comment and look; returns how many likes there are to be seen from now on."""
        self._ask(client, "PUT", "/like", viewer)
        with_own = len(self.likes | {viewer})
        self.likes.add(viewer)
        position = self._ask(client, "POST", "/comments", viewer, json={"content": "¡Qué bonito!"})
        headers = PATIENT | {"Backlot-Min-Position": position.headers["Backlot-Position"]}
        likes = self._ask(client, "GET", "/like", viewer, headers=headers)
        if STALE in likes.headers:
            self.stale += 1
        else:
            assert likes.json()["hasLiked"] is True, viewer
            assert likes.json()["likesCount"] >= with_own
        shown = self._ask(client, "GET", "", viewer)
        counts = [likes.json()["likesCount"], shown.json()["likes"]]
        assert sorted([seen, *counts]) == [seen, *counts], f"{counts} after {seen}"
        return int(counts[-1])

    def _ask(
        self, client: httpx.Client, method: str, path: str, viewer: str, **options: Any
    ) -> httpx.Response:
        with self._fleet.one() as replica:
            headers = {"Authorization": f"Bearer {replica.token(viewer)}"}
            headers |= options.pop("headers", {})
            url = f"{replica.url}/videos/{self.video}{path}"
            answer = client.request(method, url, headers=headers, **options)
        assert answer.is_success, f"{method} {path} {answer.status_code}: {answer.text}"
        return answer


Release = Callable[..., Replica]


@pytest.fixture
def release(short_dir: Path, database_url: str) -> Iterator[Release]:
    """Makes processes of this release, or of the one whose source is given, on one database."""
    made: list[Replica] = []

    def make(source: Path | None = None, **variables: str) -> Replica:
        shared = {"DATABASE_URL": database_url, "JWT_SECRET": SECRET, **variables}
        if source is not None:
            shared["PYTHONPATH"] = str(source)
        home = short_dir / f"release-{unused_port()}"
        replica = Replica(home, unused_port(), shared)
        replica.events_url = database_url
        made.append(replica)
        return replica.start()

    yield make
    for replica in made:
        replica.clean_up()


def live_version(database_url: str) -> int:
    with psycopg.connect(database_url, autocommit=True) as conn:
        ((version,),) = conn.execute(VERSION).fetchall()
        return int(version)


def is_live(database_url: str, version: int) -> Callable[[], bool]:
    return lambda: live_version(database_url) == version


def replay(program: Program) -> None:
    with plain.client(
        headers={"Authorization": f"Bearer {program.token('root', admin=True)}"}
    ) as root:
        answer = root.post(f"{program.url}/projections/likes/replay", json={"yes": True})
        assert answer.status_code == 202, answer.text


@pytest.mark.chaos
@pytest.mark.parametrize("carries", [True, False], ids=["code carried", "code gone"])
def test_the_old_release_leaves_before_the_replay(
    release: Release, tmp_path: Path, database_url: str, carries: bool
) -> None:
    fleet, old = Fleet(), release()
    fleet.join(old)
    with Crowd(fleet, upload(old.client("alice"))) as crowd:
        crowd.go_on()
        new = release(next_release(tmp_path, carries=carries), PROJECTION_AUTO_REPLAY="false")
        fleet.join(new)
        crowd.go_on()
        # While a process has the code, everybody sees what they have done, whichever answers.
        assert crowd.stale == 0
        fleet.leave(old)
        crowd.go_on()
        assert live_version(database_url) == Likes.version
        replay(new)
        eventually(is_live(database_url, Likes.version + 1), SECONDS)
        stale = crowd.stale
        assert (stale == 0) is carries
        crowd.go_on()
    assert_all_is_there(new, crowd)


@pytest.mark.chaos
def test_the_new_release_replays_while_the_old_one_serves(
    release: Release, tmp_path: Path, database_url: str
) -> None:
    fleet, old = Fleet(), release()
    fleet.join(old)
    with Crowd(fleet, upload(old.client("alice"))) as crowd:
        crowd.go_on()
        new = release(next_release(tmp_path, carries=False))
        fleet.join(new)
        eventually(is_live(database_url, Likes.version + 1), SECONDS)
        crowd.go_on()
        fleet.leave(old)
        crowd.go_on()
        assert crowd.stale == 0
    assert_all_is_there(new, crowd)


def assert_all_is_there(program: Replica, crowd: Crowd) -> None:
    """Each acknowledged like once; and the read model is what the log says."""
    assert crowd.faults == []
    nobody = program.client()
    written = {"likes": len(crowd.likes), "comments": len(crowd.likes)}
    path = f"/videos/{crowd.video}"
    eventually(lambda: written.items() <= read(nobody.get(path)).items(), SECONDS)
    told = program.run("projections", "verify", "likes")
    assert told.returncode == 0, told.stdout + told.stderr
    root = program.client("root", admin=True)
    assert read(root.get("/projections/likes/completeness"))["complete"] is True
    for fault in ("request_broke", "projection_interrupted", "replay_failed"):
        assert fault not in program.complained

"""A user is forgotten over HTTP and at the command line, however often the program is killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.e2e import plain
from tests.e2e.conftest import SMALL_PARTS
from tests.e2e.halted_erasure import STEPS
from tests.e2e.program import Program
from tests.e2e.replicas import running_site
from tests.e2e.videos import everything, problem, read, see, start, upload
from tests.support import eventually, unused_port

HALTING = "tests.e2e.halted_erasure"
SETTINGS = {**SMALL_PARTS, "PRIVACY_SELF_SERVICE": "true", "ANALYTICS_FLUSH_SECONDS": "0.1"}


@pytest.fixture(scope="module")
def program(short_dir: Path) -> Iterator[Program]:
    program = Program(short_dir / "forgetting", unused_port(), SETTINGS, HALTING)
    try:
        yield program.start()
        assert program.stop() == 0
        assert "erasure_step_failed" not in program.complained
    finally:
        program.clean_up()


@dataclass
class User:
    """A user who has a video, an upload under way, comments and likes on a film of another."""

    client: httpx.Client
    film: str
    video: str
    draft: dict[str, Any]
    comments: list[str]


def user(program: Program, name: str, film: str, *, comments: int = 2) -> User:
    client = program.client(name)
    video, draft = upload(client, title=f"by {name}"), start(client)
    written = []
    for number in range(comments):
        body = {"content": f"{number} says {name}"}
        answer = client.post(f"/videos/{film}/comments", json=body)
        written.append(read(answer)["commentId"])
    see(client, client.put(f"/videos/{film}/like"))
    return User(client, film, video, draft, written)


def progress(root: httpx.Client, name: str) -> dict[str, Any]:
    return read(root.get(f"/users/{name}/forgetting"))


BEHIND = b"""
SELECT subscription FROM backlot_checkpoints WHERE kind = 'projection' AND subscription <> 'audit'
    AND position < (SELECT max(notification_id) FROM backlot_events)
"""


def forgotten(program: Program, root: httpx.Client, name: str) -> dict[str, Any]:
    """What was removed, once it is, and read models have heard of it too."""
    eventually(lambda: progress(root, name)["status"] == "forgotten")
    with psycopg.connect(program.database_url, autocommit=True) as conn:
        eventually(lambda: not conn.execute(BEHIND).fetchall())
    return progress(root, name)


def test_an_admin_has_a_user_forgotten(program: Program) -> None:
    root, owner = program.client("root", admin=True), program.client("owner")
    film = upload(owner)
    ann = user(program, "ann-7f3a91", film)
    problem(root.delete("/users/nobody-ever"), 404, "not-found")
    problem(root.delete("/users/system:nobody"), 404, "not-found")
    problem(owner.delete("/users/ann-7f3a91"), 403, "forbidden")
    answer = root.delete("/users/ann-7f3a91")
    assert answer.status_code == 202
    see(root, answer)
    assert read(answer) == {"userId": "ann-7f3a91", "status": "forgetting"}
    # At once by the bus, and soon for every call that names her.
    problem(ann.client.put(f"/videos/{film}/like"), 410, "forgotten")
    problem(ann.client.post(f"/videos/{film}/watch"), 410, "forgotten")
    problem(start_again(ann.client), 410, "forgotten")
    eventually(lambda: ann.client.get("/videos").status_code == 410)
    told = forgotten(program, root, "ann-7f3a91")
    assert told["counts"].items() >= {"comments": 2, "uploads": 2}.items()
    assert read(root.delete("/users/ann-7f3a91"))["status"] == "forgotten"
    # What nobody made from her stays, and what was hers is gone.
    assert read(root.get(f"/videos/{film}"))["likes"] == 1
    assert read(root.get(f"/videos/{film}"))["comments"] == 0
    assert everything(root, f"/videos/{film}/comments") == []
    problem(root.get(f"/videos/{ann.video}"), 404)
    url = ann.draft["parts"][0]["url"]
    problem(plain.put(url, content=b"x" * 16 * 1024), 404, "upload-gone")
    problem(root.get("/users/owner/forgetting"), 404, "not-found")
    assert "ann-7f3a91" not in program.complained


def start_again(client: httpx.Client) -> httpx.Response:
    body = {"title": "t", "filename": "f.mp4", "contentType": "video/mp4", "sizeBytes": 1}
    return client.post("/uploads", json=body)


def test_a_user_asks_to_be_forgotten_and_leaves_the_videos(program: Program) -> None:
    root, owner = program.client("root", admin=True), program.client("owner")
    bob = user(program, "bob", upload(owner))
    answer = bob.client.delete("/users/me", params={"videos": "keep"})
    assert answer.status_code == 202
    assert answer.json() == {"userId": "bob", "status": "forgetting"}
    eventually(lambda: bob.client.delete("/users/me").status_code == 410)
    forgotten(program, root, "bob")
    assert read(root.get(f"/videos/{bob.video}"))["ownerId"] == "system:nobody"
    assert read(root.get(f"/videos/{bob.video}"))["title"] == "by bob"
    assert plain.get(read(root.post(f"/videos/{bob.video}/watch"))["url"]).status_code == 200


def test_an_operator_has_a_user_forgotten(program: Program) -> None:
    user(program, "cyd", upload(program.client("owner")))
    unsure = program.run("privacy", "forget", "cyd")
    assert (unsure.returncode, unsure.stdout) == (2, "")
    unknown = program.run("privacy", "forget", "nobody-ever", "--yes")
    assert (unknown.returncode, unknown.stdout) == (4, "")
    ended = program.run("privacy", "forget", "cyd", "--yes", "--wait", "--json")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["status"] == "forgotten"
    assert told["counts"].items() >= {"comments": 2, "uploads": 2}.items()
    again = program.run("privacy", "forget", "cyd")
    assert (again.returncode, again.stdout.splitlines()[0]) == (0, "cyd is forgotten")
    events = program.run("events", "list", "--type", "person.forget_requested.v1", "--json")
    assert '"cyd"' not in events.stdout
    assert "operator:" in events.stdout


@pytest.mark.chaos
def test_killed_at_each_step_the_end_is_the_same(short_dir: Path) -> None:
    program = Program(short_dir / "killed", unused_port(), SETTINGS, HALTING)
    try:
        program.start()
        root, owner = program.client("root", admin=True), program.client("owner")
        film = upload(owner)
        twins = {name: user(program, name, film, comments=300) for name in ("dan", "eve")}
        root.delete("/users/eve")
        forgotten(program, root, "eve")
        first, *rest = STEPS
        halt(program, first)
        # It may die before it has answered.
        with suppress(httpx.TransportError):
            root.delete("/users/dan")
        program.wait()
        for step in rest:
            halt(program, step)
            program.launch()
            assert program.wait() == -9, step
            assert not (program.home / "halt").exists(), step
        program.start()
        ends = {name: end(program, root, twin, name) for name, twin in twins.items()}
        assert ends["dan"] == ends["eve"]
        assert program.stop() == 0
    finally:
        program.clean_up()


def halt(program: Program, step: str) -> None:
    (program.home / "halt").write_text(f"{step} SIGKILL")


# Not of what translates, which may be faster for one than for the other.
THINGS = b"""
SELECT topic, count(*) FROM backlot_events
WHERE position(%(person)s::bytea IN state) > 0
    AND convert_from(state, 'UTF8')::json ->> 'actor' NOT IN ('translation')
GROUP BY topic
"""


def end(program: Program, root: httpx.Client, twin: User, name: str) -> dict[str, Any]:
    """Everything that can be seen of somebody who is forgotten."""
    told = forgotten(program, root, name)
    with psycopg.connect(program.database_url) as conn:
        persons = conn.execute(
            b"SELECT pseudonym, name, key, finished_at IS NOT NULL FROM backlot_persons "
            b"JOIN backlot_erasures USING (pseudonym)"
        ).fetchall()
        assert all(row[1:] == (None, None, True) for row in persons)
        mine = [row for row in persons if events_of(conn, row[0], twin)]
        (pseudonym,) = [row[0] for row in mine]
        events: dict[str, int] = dict(
            conn.execute(THINGS, {"person": pseudonym.encode()}).fetchall()
        )
    return {
        # What is purged is counted where it is known, and not when that was cut off.
        "counts": {part: told["counts"][part] for part in ("comments", "uploads")},
        "events": events,
        "film": read(root.get(f"/videos/{twin.film}")),
        "comments": everything(root, f"/videos/{twin.film}/comments"),
        "video": root.get(f"/videos/{twin.video}").status_code,
        "draft": plain.put(twin.draft["parts"][0]["url"], content=b"x" * 16_384).status_code,
    }


def events_of(conn: psycopg.Connection[Any], pseudonym: str, twin: User) -> bool:
    found = conn.execute(
        b"SELECT convert_from(state, 'UTF8')::json->>'owner' FROM backlot_events "
        b"WHERE originator_id = %s AND originator_version = 1",
        (twin.video,),
    ).fetchone()
    return found is not None and found[0] == pseudonym


def test_every_process_hears_of_it(short_dir: Path, database_url: str) -> None:
    with running_site(short_dir / "heard", 2, database_url, HALTING, {}) as site:
        here, there = site.replicas
        film = upload(here.client("owner"))
        ann = there.client("ann")
        # The other process remembers who this token is.
        assert ann.put(f"/videos/{film}/like").status_code == 200
        root = here.client("root", admin=True)
        assert root.delete("/users/ann").status_code == 202
        problem(ann.delete(f"/videos/{film}/like"), 410, "forgotten")
        eventually(lambda: ann.get("/videos").status_code == 410)
        forgotten(here, root, "ann")
        assert read(there.client("owner").get(f"/videos/{film}"))["likes"] == 1

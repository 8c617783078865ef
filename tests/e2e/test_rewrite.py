"""The log of an older release is rewritten by the program, which then goes on with its users."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from engine.seals.anchors import FileAnchors
from engine.seals.chain import connect, seals
from infra.postgres.server import EmbeddedPostgres
from tests.e2e.program import Program
from tests.e2e.videos import read, see
from tests.integration.projection_support import Writer
from tests.integration.seal_support import seal_all
from tests.support import eventually

FANS = [f"fan-{number}@example.net" for number in range(5)]
OWNER = "owner@example.net"

Make = Callable[..., Program]


@pytest.fixture
def new_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A second database, without tables."""
    name = f"new_{os.getpid()}_{time.monotonic_ns()}"
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(SQL("CREATE DATABASE {} TEMPLATE template0").format(Identifier(name)))
        yield postgres.url_of(name)
        admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


@pytest.fixture
def old(database_url: str) -> Iterator[Writer]:
    """What an older release has recorded: a video, five likes, a comment, sealed."""
    writer = Writer(database_url)
    video = writer.video(OWNER, title="Rain")
    writer.like(video.id, *FANS)
    writer.comment(video.id, FANS[0], "Qué bonito")
    seal_all(database_url)
    yield writer
    writer.close()


def told(program: Program, *words: str, **variables: str) -> dict[str, Any]:
    ran = program.run(*words, "--json", **variables)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_users_go_on_with_what_they_have_done(
    make_program: Make, old: Writer, database_url: str, new_url: str, tmp_path: Path
) -> None:
    anchors, file = tmp_path / "seals.jsonl", str(tmp_path / "old.jsonl")
    program = make_program(
        DATABASE_URL=new_url,
        SEAL_ANCHOR=f"file:{anchors}",
        SEAL_SECONDS="0.2",
    )
    program.home.mkdir(parents=True)
    # The places outside know the seals of the old log, as they do on the same machine.
    with connect(database_url, "test") as conn:
        FileAnchors(anchors).append(list(seals(conn, 0, 100)))
    exported = told(program, "events", "export", file, DATABASE_URL=database_url)
    rewritten = told(program, "events", "rewrite", file)
    assert (rewritten["persons"], rewritten["moved"]) == (len(FANS) + 1, len(FANS))
    assert (rewritten["ok"], rewritten["events"]) == (True, exported["events"])
    kinds = [each["kind"] for each in rewritten["caveats"]]
    assert kinds == ["unsigned", "unanchored", "rewritten", "accepted"]

    video = old_video(database_url)
    program.start()
    assert "log_rewritten" not in program.complained
    fan = program.client(FANS[0])
    assert read(fan.get(f"/videos/{video}/like")) == {"hasLiked": True, "likesCount": len(FANS)}
    answer = fan.delete(f"/videos/{video}/like")
    see(fan, answer)
    assert read(fan.get(f"/videos/{video}/like")) == {
        "hasLiked": False,
        "likesCount": len(FANS) - 1,
    }
    (comment,) = read(fan.get(f"/videos/{video}/comments"))["items"]
    assert (comment["content"], comment["userId"]) == ("Qué bonito", FANS[0])
    assert read(fan.get(f"/videos/{video}"))["ownerId"] == OWNER
    verified = told(program, "events", "verify", "--follows", file)
    assert (verified["ok"], verified["follows"]) == (True, rewritten["follows"])
    assert program.stop() == 0


def old_video(database_url: str) -> str:
    with psycopg.connect(database_url) as conn:
        ((video,),) = conn.execute(
            "SELECT originator_id FROM backlot_events WHERE notification_id = 1"
        ).fetchall()
    return str(video)


def test_an_embedded_database_is_rewritten_beside_its_program(
    make_program: Make, old: Writer, database_url: str, tmp_path: Path
) -> None:
    """It runs only while its program does, which finds everything there after a restart."""
    file = str(tmp_path / "old.jsonl")
    program = make_program(SEAL_SECONDS="0.2").start()
    told(program, "events", "export", file, DATABASE_URL=database_url)
    rewritten = told(program, "events", "rewrite", file)
    assert (rewritten["ok"], rewritten["moved"]) == (True, len(FANS))
    assert program.stop() == 0
    program.start()
    video, fan = old_video(database_url), program.client(FANS[1])
    eventually(lambda: fan.get(f"/videos/{video}").status_code == 200)
    assert read(fan.get(f"/videos/{video}/like")) == {"hasLiked": True, "likesCount": len(FANS)}
    verified = told(program, "events", "verify", "--follows", file)
    assert (verified["ok"], verified["follows"]) == (True, rewritten["follows"])
    assert program.stop() == 0

"""A server, a role and an environment in other zones: every time is in UTC all the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql

from infra.postgres.server import EmbeddedPostgres
from tests.e2e.program import Program
from tests.e2e.videos import read, see, upload
from tests.real_inputs import real_inputs
from tests.support import eventually, unused_port

ZONES = {"PGTZ": "America/St_Johns", "TZ": "Asia/Kathmandu", "PGOPTIONS": "-c timezone=Asia/Tokyo"}
# Bytes, numbers, a stream, and what is for an upload's owner alone.
NOT_ASKED = ("/objects", "/metrics", "/videos/{video_id}/e", "/tus")
TIME = re.compile(r"\d\d:\d\d:\d\d(?:\.\d+)?(?P<zone>\S{0,6})")


@pytest.fixture(scope="module")
def database(postgres: EmbeddedPostgres) -> str:
    """A database that wishes the first of every kind of setting."""
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE elsewhere")
        wishes: dict[str, str] = {}
        for real in real_inputs("sessions"):
            name, _, value = real.text.partition("=")
            wishes.setdefault(name, value)
        for name, value in wishes.items():
            wish = sql.SQL("ALTER DATABASE elsewhere SET {} = {}")
            admin.execute(wish.format(sql.Identifier(name), sql.Literal(value)))
    return postgres.url_of("elsewhere")


@pytest.fixture(scope="module")
def program(short_dir: Path, database: str) -> Iterator[Program]:
    variables = {"DATABASE_URL": database, "PRIVACY_SELF_SERVICE": "true", **ZONES}
    program = Program(short_dir / "zones", unused_port(), variables)
    try:
        yield program.start()
        assert program.stop() == 0
        assert "request_broke" not in program.complained
    finally:
        program.clean_up()


@pytest.fixture(scope="module")
def recorded(program: Program) -> None:
    """Something in the log, whatever ran before."""
    operator = program.client("root", admin=True)
    upload(program.client("alice"))
    eventually(lambda: operator.get("/audit/events/1").status_code == 200)


def zones_in(text: str) -> set[str]:
    """What stands behind the times in a text, up to six characters."""
    return {found["zone"].rstrip('",)')[:1] for found in TIME.finditer(text)}


def all_answers(program: Program, video: str) -> Iterator[httpx.Response]:
    operator = program.client("root", admin=True)
    ids = {"name": "likes", "position": "1"}
    for path, calls in operator.get("/openapi.json").json()["paths"].items():
        if "get" in calls and not path.startswith(NOT_ASKED):
            url = re.sub(r"\{(\w+)\}", lambda f: ids.get(f[1], video), path)
            yield operator.get(url)


def test_commands_and_queries_tell_utc(program: Program) -> None:
    alice = program.client("alice")
    video = upload(alice)
    comment = alice.post(f"/videos/{video}/comments", json={"content": "Schön, 見事だ"})
    see(alice, comment)
    see(alice, alice.put(f"/videos/{video}/like"))
    alice.post(f"/videos/{video}/watch")
    told = {"comment": comment, "video": alice.get(f"/videos/{video}")}
    told |= {"comments": alice.get(f"/videos/{video}/comments")}
    assert read(told["comment"])["createdAt"].endswith("Z")
    for answer in told.values():
        assert zones_in(answer.text) == {"Z"}
    assert read(told["comments"])["items"][0]["content"] == "Schön, 見事だ"
    eventually(lambda: alice.get(f"/videos/{video}").json()["views"] == 1)
    answers = {answer.url.path: answer for answer in all_answers(program, video)}
    # A proof wants a position, which no id is.
    assert {answer.status_code for answer in answers.values()} <= {200, 404, 422}
    found = {path: zones_in(answer.text) for path, answer in answers.items()}
    # What was recorded is shown as it was recorded: RFC 3339 too, with the zone in numbers.
    payloads = {path for path in found if path.startswith("/audit/events/")}
    assert {path: zones for path, zones in found.items() if zones - {"Z"}}.keys() <= payloads
    assert sum(bool(zones) for zones in found.values()) > 6


@pytest.mark.parametrize(
    "words",
    [
        ["events", "list"],
        ["events", "show", "1"],
        ["events", "stats"],
        ["events", "stats", "--json"],
        ["events", "verify", "--json"],
        ["projections", "list", "--json"],
        ["topics", "list", "--json"],
        ["token", "--user", "alice", "--json"],
    ],
    ids=" ".join,
)
def test_every_time_at_the_command_line_has_its_zone(
    program: Program, recorded: None, words: list[str]
) -> None:
    ran = program.run(*words)
    assert ran.returncode == 0, ran.stderr
    assert zones_in(ran.stdout) <= {"Z", "+"}
    assert "+00:00" in ran.stdout or "+" not in zones_in(ran.stdout)

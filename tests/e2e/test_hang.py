"""PostgreSQL hangs under the running program: everybody is told so, and then all goes on."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from infra.errors import ExitCode
from tests.e2e import plain
from tests.e2e.program import Program
from tests.e2e.videos import problem, read, upload
from tests.routes import TUS
from tests.support import eventually, hung, unused_port

Call = Callable[[], httpx.Response]
# Nobody is left waiting: far beyond what the limits add up to, however slow the machine.
PATIENCE_SECONDS = 60.0
# Files and pages of their own, which no database stands behind; and what must go on answering.
NOT_READ = ("/objects/", "/healthz", "/metrics", "/readyz", "/docs", "/openapi.json")


@pytest.fixture(scope="module")
def program(short_dir: Path) -> Iterator[Program]:
    program = Program(short_dir / "hung", unused_port(), {"PRIVACY_SELF_SERVICE": "true"})
    try:
        yield program.start()
        assert program.stop() == 0
        assert "request_broke" not in program.complained
    finally:
        for process in program.servers():
            process.send_signal(signal.SIGCONT)
        program.clean_up()


@pytest.fixture(scope="module")
def video(program: Program) -> str:
    return upload(program.client("alice"))


def reads(program: Program, video: str) -> dict[str, Call]:
    """Every GET of the contract, asked by an operator."""
    operator = program.client("root", admin=True)
    paths = operator.get("/openapi.json").json()["paths"]
    ids = {"name": "likes", "position": "1", "correlation_id": "c"}

    def asked(path: str) -> Call:
        real = re.sub(r"\{(\w+)\}", lambda found: ids.get(found[1], video), path)
        return lambda: operator.get(real, headers=TUS, timeout=PATIENCE_SECONDS)

    return {
        path: asked(path)
        for path, calls in paths.items()
        if "get" in calls and not path.startswith(NOT_READ)
    }


def commands(program: Program, video: str) -> dict[str, Call]:
    """A command of each kind."""
    alice = program.client("alice")
    session = read(alice.post(f"/videos/{video}/watch"))["sessionId"]
    started = {"title": "t", "filename": "f.mp4", "contentType": "video/mp4", "sizeBytes": 5}
    seen = {"sessionId": session, "seconds": 1.0}

    def posted(path: str, body: dict[str, Any] | None = None) -> Call:
        return lambda: alice.post(path, json=body, timeout=PATIENCE_SECONDS)

    return {
        "like": lambda: alice.put(f"/videos/{video}/like", timeout=PATIENCE_SECONDS),
        "comment": posted(f"/videos/{video}/comments", {"content": "What a walk!"}),
        "watch": posted(f"/videos/{video}/watch"),
        "watch time": posted(f"/videos/{video}/watch-time", seen),
        "share": posted(f"/videos/{video}/share", {}),
        "upload": posted("/uploads", started),
        "complete": posted(f"/uploads/{video}/complete", {}),
        "change": lambda: alice.patch(
            f"/videos/{video}", json={"title": "Later"}, timeout=PATIENCE_SECONDS
        ),
    }


def check_unavailable(name: str, answer: httpx.Response) -> None:
    problem(answer, 503)
    assert int(answer.headers["Retry-After"]) >= 1, name


def check_back(program: Program, video: str) -> None:
    """Reads, commands and every part are as before."""
    client = program.client("bob")
    eventually(lambda: client.put(f"/videos/{video}/like").is_success)
    eventually(lambda: program.client("alice").get(f"/videos/{video}/stats").is_success)
    eventually(lambda: all_in_order(program))


def all_in_order(program: Program) -> bool:
    answer = plain.get(f"{program.url}/readyz")
    return answer.is_success and all(part["ok"] for part in answer.json()["parts"].values())


def test_reads_and_commands_are_told_and_then_all_goes_on(program: Program, video: str) -> None:
    calls = reads(program, video) | commands(program, video)
    assert len(calls) >= 30
    with ThreadPoolExecutor(len(calls)) as threads, hung(program.postmaster.pid):
        asked = {name: threads.submit(call) for name, call in calls.items()}
        for name, answer in asked.items():
            check_unavailable(name, answer.result())
        # What is asked once it is known is told as well.
        for name in ("/videos", "/recommendations", "/analytics/trending", "like"):
            check_unavailable(name, calls[name]())
        check_parts(program)
        check_commands_of_operators(program)
    check_back(program, video)
    events = [json.loads(line)["event"] for line in program.complained.splitlines() if "{" in line]
    assert "database_silent" in events
    assert "database_answers" in events


def check_parts(program: Program) -> None:
    """Who looks after it sees which part it is, and the process itself lives."""
    assert plain.get(f"{program.url}/healthz").status_code == 200
    figures = plain.get(f"{program.url}/metrics").text.splitlines()
    assert "backlot_database_silences_total 0.0" not in figures
    ready = plain.get(f"{program.url}/readyz", timeout=PATIENCE_SECONDS)
    assert ready.status_code == 503
    assert ready.headers["Retry-After"]
    parts = ready.json()["parts"]
    assert "hangs" in parts["database"]["detail"]
    assert parts["objects"]["ok"]


def check_commands_of_operators(program: Program) -> None:
    found = json.loads(program.run("doctor", "--json").stdout)["parts"]
    parts = {part["name"]: part for part in found}
    assert parts["database"]["detail"].startswith("it hangs")
    assert "database" in parts["api"]["detail"]
    assert "another program" not in parts["api"]["detail"]
    for words in (["projections", "list"], ["events", "stats"], ["topics", "list"]):
        ran = program.run(*words)
        assert ran.returncode == ExitCode.FAILED
        assert "it hangs" in ran.stderr.splitlines()[-1]


def test_a_command_of_unknown_outcome_counts_once(program: Program, video: str) -> None:
    carol = program.client("carol")
    before = read(carol.get(f"/videos/{video}"))["comments"]
    keys = [str(uuid4()) for _ in range(20)]

    def comment(key: str) -> httpx.Response:
        return carol.post(
            f"/videos/{video}/comments",
            json={"content": f"said once: {key}"},
            headers={"Idempotency-Key": key},
            timeout=PATIENCE_SECONDS,
        )

    with ThreadPoolExecutor(len(keys)) as threads:
        with hung(program.postmaster.pid):
            told = list(threads.map(comment, keys))
            for answer in told:
                check_unavailable("comment", answer)
                detail = answer.json()["detail"]
                assert "not known" in detail or "nothing was recorded" in detail
        eventually(lambda: comment(keys[0]).is_success)
        assert all(answer.is_success for answer in threads.map(comment, keys))
    eventually(lambda: read(carol.get(f"/videos/{video}"))["comments"] == before + len(keys))


def test_no_connection_is_left_behind(program: Program, video: str) -> None:
    with hung(program.postmaster.pid):
        check_unavailable("video", plain.get(f"{program.url}/videos/{video}", timeout=60))
    check_back(program, video)
    # Pools have grown and grow again; who gave a connection up has not kept the old one.
    eventually(lambda: max(connections(program).values()) == 1)


def connections(program: Program) -> dict[str, int]:
    """How many connections each purpose has that needs but one."""
    with psycopg.connect(program.database_url) as conn:
        found = conn.execute(
            "SELECT application_name, count(*) FROM pg_stat_activity "
            "WHERE application_name LIKE 'backlot %%' AND application_name <> ALL (%s) GROUP BY 1",
            (["backlot queries", "backlot events", "backlot persons"],),
        )
        return dict(found.fetchall())

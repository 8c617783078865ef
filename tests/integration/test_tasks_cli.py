"""`backlot tasks` on a real Redis: dead tasks are sent again, or given up with a reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from domain.operation import Operation
from infra.errors import ExitCode
from infra.tasks.broker import task_queues
from infra.tasks.queues import TRANSLATION
from tests.integration.operator_desk import Backlot, desk, in_group
from tests.integration.redis_servers import redis_servers
from tests.integration.task_support import Toy, quick_settings
from tests.support import eventually


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with redis_servers(1, tmp_path) as (server,):
        yield server.url


@pytest.fixture
def backlot(
    database_url: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Backlot:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("TASK_BROKER_URL", redis_url)
    return in_group("tasks", monkeypatch, capsys)


@pytest.fixture
def dead(redis_url: str) -> list[str]:
    """Three tasks that were given up, the first two for the same fault."""

    async def fail(comment: str) -> None:
        raise ValueError("odd" if comment == "odd" else f"comment {len(comment)} is bad")

    settings = quick_settings(redis_url)
    toy = Toy(settings)
    toy.actor(fail)
    sent = [toy.send("fail", comment) for comment in ("a", "bb", "odd")]
    queues = task_queues(settings)
    with toy.working():
        eventually(lambda: len(queues.dead(TRANSLATION, 10)) == 3)
    return sent


def listed(backlot: Backlot) -> set[str]:
    found: list[dict[str, Any]] = json.loads(backlot("dead", "--json").out)["items"]
    return {task["id"] for task in found}


def test_one_is_given_up_and_the_log_says_why(
    backlot: Backlot, database_url: str, dead: list[str]
) -> None:
    words = ("discard", dead[2], "--reason", "spam", "--yes")
    assert backlot(*words, "--json").data == {"discarded": [dead[2]]}
    assert listed(backlot) == {dead[0], dead[1]}
    again = backlot(*words)
    assert again.code == ExitCode.FAILED
    assert again.err.startswith(f"backlot: no dead task {dead[2]}")
    with desk(database_url) as found:
        requested, finished, *_ = found.events()
    assert isinstance(requested, Operation.Requested)
    assert isinstance(finished, Operation.Finished)
    assert (requested.action, requested.asked) == (
        "discard-tasks",
        {"task": dead[2], "reason": "spam"},
    )
    gone = {"id": dead[2], "queue": TRANSLATION, "actor": "fail"}
    assert finished.result == {"discarded": 1, "tasks": [gone]}


def test_all_like_one_are_handled_together(backlot: Backlot, dead: list[str]) -> None:
    assert backlot("discard", "--all-like", dead[0], "--reason", "spam", "--yes").out == (
        "2 given up\n"
    )
    assert listed(backlot) == {dead[2]}
    assert backlot("redrive", "--all-like", dead[2], "--json").data == {"sent": [dead[2]]}
    assert listed(backlot) == set()
    assert backlot("redrive", "--all-like", dead[2]).code == ExitCode.FAILED


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), ExitCode.USAGE, "name one dead task"),
        (("--all", "--all-like", "x"), ExitCode.USAGE, "name one dead task"),
        (("x", "--all"), ExitCode.USAGE, "name one dead task"),
        (("--all", "--reason", "\u200b"), ExitCode.FAILED, "text that can be seen"),
    ],
)
def test_what_is_given_up_and_why_has_to_be_said(
    backlot: Backlot, dead: list[str], words: tuple[str, ...], code: ExitCode, told: str
) -> None:
    refused = backlot("discard", "--reason", "x", "--yes", *words)
    assert refused.code == code
    assert told in refused.err
    assert listed(backlot) == set(dead)

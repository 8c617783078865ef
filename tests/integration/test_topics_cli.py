"""`backlot topics` on a real database: what is published, consumed, dead, and driven again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from backlot.cli import main
from domain.operation import Operation
from engine.dead_letters import RejectedMessage
from projections.integration_events import TOPICS
from tests.integration.consuming_support import VIDEO, LogStage, Tasks, consuming, run
from tests.integration.event_log import rows
from tests.integration.operator_desk import desk
from tests.integration.projection_support import Writer
from tests.support import until
from workers import relay as relay_places


class Ran(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Backlot = Callable[..., Ran]


@pytest.fixture
def backlot(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    database_url: str,
) -> Backlot:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", database_url)

    def run(*words: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["backlot", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, said.out, said.err)

    return run


@pytest.fixture
def stage(database_url: str, writer: Writer) -> LogStage:
    return LogStage(database_url, writer)


def with_dead(stage: LogStage, *contents: str) -> None:
    """Messages with these contents come, and die."""

    async def scenario() -> None:
        tasks = Tasks()
        tasks.poison = set(contents)
        for content in contents:
            stage.writer.comment(VIDEO, content=content)
        stage.writer.comment(VIDEO, content="good")
        async with consuming(stage, tasks):
            await until(lambda: attempts(stage) == [1] * len(contents))
        assert tasks.contents == ["good"]

    run(scenario)


def test_the_list_has_topics_the_relay_and_consumers(stage: LogStage, backlot: Backlot) -> None:
    with_dead(stage, "bad")
    with psycopg.connect(stage.database_url, autocommit=True) as conn:
        relay_places.begin(conn)
        relay_places.move(conn, "events", 0, 1, [])
    told = backlot("topics", "list", "--json").data
    assert [each["topic"] for each in told["topics"]] == list(TOPICS)
    assert told["topics"][0]["deadLetters"] == "comment.created.dlq"
    events, views = told["relay"]
    assert (events["source"], events["position"], events["head"]) == ("events", 1, 2)
    assert (events["lagEvents"], views["lagEvents"]) == (1, 0)
    (consumer,) = told["consumers"]
    assert (consumer["consumer"], consumer["source"]) == ("tasks", "events")
    assert (consumer["position"], consumer["dead"]) == (2, 1)
    text = backlot("topics", "list").out
    for line in ("comment.created", "events", "tasks"):
        assert line in text


def test_before_any_relay_it_says_never(stage: LogStage, backlot: Backlot) -> None:
    assert "never" in backlot("topics", "list").out
    relay = backlot("topics", "list", "--json").data["relay"]
    assert [each["position"] for each in relay] == [None, None]


def test_dead_messages_are_listed_and_shown(stage: LogStage, backlot: Backlot) -> None:
    with_dead(stage, "bad", "worse")
    items = backlot("topics", "dead", "list", "--json").data["items"]
    assert [json.loads(item["value"])["content"] for item in items] == ["bad", "worse"]
    assert {item["reason"] for item in items} == {"it can't be handled"}
    assert items[0]["headers"]["ce_type"] == "comment.created"
    shown = backlot("topics", "dead", "show", str(items[1]["id"]), "--json").data
    assert shown == items[1]
    assert "it can't be handled" in backlot("topics", "dead", "list").out
    assert "position: 2" in backlot("topics", "dead", "show", str(items[1]["id"])).out
    for words in (("--topic", "comment.edited"), ("--after", "99")):
        assert backlot("topics", "dead", "list", *words).out == "nothing is dead\n"
    for words, near in (
        (("--topic", "comment.edite"), "comment.edited"),
        (
            ("--consumer", "task"),
            "tasks",
        ),
    ):
        refused = backlot("topics", "dead", "list", *words)
        assert (refused.code, near in refused.err) == (2, True)
        assert backlot("topics", "redrive", "--all", *words).err == refused.err
    for options in ((), ("--limit", "2"), ("--consumer", "tasks")):
        assert backlot("topics", "dead", *options) == backlot("topics", "dead", "list", *options)
    missing = backlot("topics", "dead", "show", "99")
    assert (missing.code, missing.err) == (4, "backlot: no dead message has the id 99\n")


def test_a_dead_message_is_driven_again(stage: LogStage, backlot: Backlot) -> None:
    with_dead(stage, "bad", "worse")
    first, _ = backlot("topics", "dead", "list", "--json").data["items"]
    assert backlot("topics", "redrive", str(first["id"]), "--json").data == {"redriven": 1}

    async def scenario() -> None:
        tasks = Tasks()
        async with consuming(stage, tasks):
            await until(lambda: tasks.contents == ["bad"])
            await until(
                lambda: len(rows(stage.database_url, "SELECT id FROM backlot_dead_letters")) == 1
            )

    run(scenario)
    (left,) = backlot("topics", "dead", "list", "--json").data["items"]
    assert json.loads(left["value"])["content"] == "worse"
    assert backlot("topics", "redrive", "--all", "--consumer", "tasks").out == (
        "1 to be driven again\n"
    )


@pytest.mark.parametrize("words", [(), ("1", "--all"), ("1", "--all-like", "1")])
def test_what_to_drive_again_has_to_be_said(
    stage: LogStage, backlot: Backlot, words: tuple[str, ...]
) -> None:
    refused = backlot("topics", "redrive", *words)
    assert refused.code == 2
    assert refused.err.startswith("backlot: name dead messages by their ids, or say --all")


def test_dead_messages_are_given_up_with_a_reason(stage: LogStage, backlot: Backlot) -> None:
    with_dead(stage, "bad", "worse", "worst")
    first, second, third = backlot("topics", "dead", "list", "--json").data["items"]
    words = ("topics", "dead", "discard", str(first["id"]), "--reason", "spam", "--yes")
    assert backlot(*words, "--json").data == {"discarded": 1}
    again = backlot(*words)
    assert (again.code, again.err) == (4, f"backlot: no dead message has the id {first['id']}\n")
    left = backlot("topics", "dead", "list", "--json").data["items"]
    assert left == [second, third]
    requested, finished, *_ = _operations(stage)
    assert isinstance(requested, Operation.Requested)
    assert isinstance(finished, Operation.Finished)
    assert (requested.action, requested.subject) == ("discard-dead", "dead messages")
    assert requested.asked == {"ids": [first["id"]], "reason": "spam"}
    kept = ("id", "consumer", "topic", "source", "partition", "position", "messageId")
    assert finished.outcome == "done"
    assert finished.result == {
        "discarded": 1,
        "messages": [{name: first[name] for name in kept}],
    }


def test_dead_messages_like_one_are_handled_together(stage: LogStage, backlot: Backlot) -> None:
    with_dead(stage, "bad", "worse", "worst")
    first, second, third = backlot("topics", "dead", "list", "--json").data["items"]
    rows(
        stage.database_url,
        f"UPDATE backlot_dead_letters SET error = 'another' WHERE id = {third['id']} RETURNING 1",
    )
    like = ("--all-like", str(second["id"]))
    assert backlot("topics", "redrive", *like, "--json").data == {"redriven": 2}
    discard = ("topics", "dead", "discard", "--reason", "spam", "--yes")
    assert backlot(*discard, *like, "--json").data == {"discarded": 2}
    (left,) = backlot("topics", "dead", "list", "--json").data["items"]
    assert (left["id"], left["status"]) == (third["id"], "dead")
    assert backlot(*discard, *like).err == f"backlot: no dead message has the id {second['id']}\n"
    assert "there is no consumer 'other'" in backlot(*discard, "--all", "--consumer", "other").err
    assert backlot(*discard, "--all").out == "1 given up\n"
    assert first["id"] not in [each["id"] for each in [left]]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--reason", "x"), 2, "name dead messages"),
        (("1", "--all", "--reason", "x"), 2, "name dead messages"),
        (("--all", "--reason", "\u3164"), 4, "text that can be seen"),
    ],
)
def test_what_is_given_up_and_why_has_to_be_said(
    stage: LogStage, backlot: Backlot, words: tuple[str, ...], code: int, told: str
) -> None:
    with_dead(stage, "bad")
    refused = backlot("topics", "dead", "discard", "--yes", *words)
    assert refused.code == code
    assert told in refused.err
    assert len(backlot("topics", "dead", "list", "--json").data["items"]) == 1
    assert backlot("topics", "dead", "discard", "1", "--yes").code == 2


def _operations(stage: LogStage) -> list[Operation.Event]:
    with desk(stage.database_url) as found:
        return found.events()


def test_what_could_not_be_published_is_told(stage: LogStage, backlot: Backlot) -> None:
    assert backlot("topics", "undelivered").out == "everything could be published\n"
    with psycopg.connect(stage.database_url, autocommit=True) as conn:
        relay_places.begin(conn)
        lost = RejectedMessage("events", 0, 3, "comment.created", "it is too large")
        relay_places.move(conn, "events", 0, 5, [lost])
    (item,) = backlot("topics", "undelivered", "--json").data["items"]
    assert (item["source"], item["position"], item["reason"]) == ("events", 3, "it is too large")
    assert "it is too large" in backlot("topics", "undelivered").out


def test_a_database_without_tables_is_one_line(
    backlot: Backlot, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    refused = backlot("topics", "list")
    assert refused.code == 4
    assert refused.err == "backlot: its tables are not there yet: start Backlot on it once\n"


def test_a_message_that_is_gone_stays_dead(stage: LogStage, backlot: Backlot) -> None:
    with_dead(stage, "bad")
    rows(stage.database_url, "UPDATE backlot_events SET state = '{}' RETURNING 1")
    backlot("topics", "redrive", "--all")

    async def scenario() -> None:
        async with consuming(stage, Tasks()):
            await until(lambda: attempts(stage) == [2])

    run(scenario)
    (item,) = backlot("topics", "dead", "list", "--json").data["items"]
    assert (item["status"], item["attempts"]) == ("dead", 2)
    assert "Can't read version 1" in item["reason"]


def attempts(stage: LogStage) -> list[int]:
    """How often each dead message was tried."""
    found = rows(stage.database_url, "SELECT attempts FROM backlot_dead_letters ORDER BY id")
    return [each for (each,) in found]

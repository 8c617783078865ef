"""Decisions about messages, tasks and translations that failed, as operations carry them out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event
from uuid import uuid4

import pytest

from domain.operation import Members, OperationOutcome
from engine import dead_letters
from engine.checkpoints import SubscriptionKind
from engine.connections import connect
from engine.dead_letters import RejectedMessage
from engine.replay.records import tell_nobody
from infra.settings.adapters import TaskSettings
from infra.tasks.broker import task_queues, task_sender
from infra.tasks.queues import TRANSLATION
from tests.integration.operator_desk import Desk
from tests.integration.redis_servers import redis_servers
from tests.integration.task_support import Toy, quick_settings
from tests.support import eventually
from workers.operations.actions import Tools
from workers.operations.executor import perform
from workers.operations.failures import TaskAccess
from workers.tasks import TRANSLATE_COMMENT


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[TaskSettings]:
    with redis_servers(1, tmp_path) as (server,):
        yield quick_settings(server.url)


def carried_out(
    root: Desk,
    action: str,
    subject: str,
    parameters: Members,
    settings: TaskSettings | None = None,
) -> tuple[OperationOutcome, Members]:
    """How an operation ended, which this process carries out at once."""
    of = settings or quick_settings(None)
    tasks = TaskAccess(task_queues(of), task_sender(of))
    tools = Tools(root.database_url, {}, tell_nobody, Event(), tasks=tasks)
    operation_id = root.ask(action, subject, parameters)
    with connect(root.database_url, "test") as conn:
        assert perform(conn, root.recorder, tools, operation_id)
    return root.end(operation_id)


def test_messages_are_retried_and_discarded(root: Desk) -> None:
    consumer, relay = SubscriptionKind.CONSUMER, SubscriptionKind.RELAY
    with connect(root.database_url, "test") as conn:
        for kind in (consumer, relay):
            message = RejectedMessage("events", 0, 7, "comment.created", "ValueError: no")
            dead_letters.reject(conn, kind, f"a {kind}", [message])
        of_consumer, of_relay = (each.id for each in dead_letters.messages(conn))

        def decide(action: str, *ids: int) -> tuple[OperationOutcome, Members]:
            return carried_out(
                root, action, "dead messages", {"ids": list(ids), "reason": "a test"}
            )

        assert decide("redrive-dead", of_consumer, of_relay)[1] == {"redriven": 1}
        (wanted,) = dead_letters.wanted(conn, consumer, f"a {consumer}", 10)
        assert (wanted.id, wanted.decided_by) == (of_consumer, "root")
        outcome, result = decide("redrive-dead", of_relay)
        assert outcome is OperationOutcome.REFUSED
        assert "no message of a consumer" in str(result["reason"])
        assert decide("discard-dead", of_consumer, of_relay)[1]["discarded"] == 2
        assert dead_letters.messages(conn) == []
        assert decide("discard-dead", of_consumer)[0] is OperationOutcome.REFUSED


def test_all_that_a_command_left_undone_is_not_done_again(root: Desk) -> None:
    """Whether a command that died had given them up, nobody knows."""
    with connect(root.database_url, "test") as conn:
        message = RejectedMessage("events", 0, 7, "comment.created", "ValueError: no")
        dead_letters.reject(conn, SubscriptionKind.CONSUMER, "a consumer", [message])
        outcome, result = carried_out(
            root, "discard-dead", "dead messages", {"reason": "all of them"}
        )
        assert outcome is OperationOutcome.FAILED
        assert "ended before" in str(result["error"])
        assert len(dead_letters.messages(conn)) == 1


def test_a_task_is_sent_again_or_given_up(root: Desk, settings: TaskSettings) -> None:
    async def fail(comment: str) -> None:
        raise ValueError(f"{comment} is bad")

    toy, queues = Toy(settings), task_queues(settings)
    toy.actor(fail)
    first, second = toy.send("fail", "a"), toy.send("fail", "b")
    with toy.working():
        eventually(lambda: len(queues.dead(TRANSLATION, 10)) == 2)
    found = carried_out(root, "redrive-tasks", "dead tasks", {"task": first}, settings)
    assert found == (OperationOutcome.DONE, {"sent": [first]})
    asked: Members = {"task": second, "reason": "a test"}
    _, result = carried_out(root, "discard-tasks", "dead tasks", asked, settings)
    assert result["tasks"] == [{"id": second, "queue": TRANSLATION, "actor": "fail"}]
    (depth,) = [each for each in queues.depths() if each.queue == TRANSLATION]
    assert (depth.waiting, depth.dead) == (1, 0)
    outcome, _ = carried_out(root, "discard-tasks", "dead tasks", asked, settings)
    assert outcome is OperationOutcome.REFUSED


def test_a_comment_is_sent_to_be_translated_again(root: Desk, settings: TaskSettings) -> None:
    comment, seen = str(uuid4()), list[str]()

    async def translate_comment(comment_id: str) -> None:
        seen.append(comment_id)

    outcome, result = carried_out(root, "retry-translation", comment, {}, settings)
    assert (outcome, result) == (OperationOutcome.DONE, {"sent": [comment]})
    toy = Toy(settings)
    toy.actor(translate_comment, actor_name=TRANSLATE_COMMENT)
    with toy.working():
        eventually(lambda: seen == [comment])


def test_a_broker_that_is_away_is_the_reason(root: Desk) -> None:
    away = quick_settings("redis://127.0.0.1:1/0")
    outcome, result = carried_out(root, "redrive-tasks", "dead tasks", {"task": "x"}, away)
    assert outcome is OperationOutcome.REFUSED
    assert "broker is away" in str(result["reason"])

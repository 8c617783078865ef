"""What operators do about messages, tasks and translations that failed: retried, or given up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dramatiq import Message
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.operation import (
    DISCARD_MESSAGES,
    DISCARD_TASKS,
    RETRY_MESSAGES,
    RETRY_TASKS,
    RETRY_TRANSLATION,
    Members,
    Operation,
)
from engine import dead_letters
from engine.checkpoints import SubscriptionKind
from engine.log import event_id
from infra.errors import OperatorError
from infra.tasks.queues import QUEUES, TRANSLATION, TaskQueues, named
from workers.tasks import TRANSLATE_COMMENT


@dataclass(frozen=True)
class TaskAccess:
    """The queues of tasks, and what sends a task; both raise BrokerAway."""

    queues: TaskQueues
    send: Callable[[Message[Any]], None]


Decision = Callable[[Connection[TupleRow], TaskAccess, Operation], Members]


class NothingFailed(OperatorError):
    """What was named is not dead, or not any more."""


def decision_of(operation: Operation) -> Decision | None:
    """Return what an operation decides about what failed; None where it is about something else.

    An operation of the command line, which does what it records itself, may name all that are dead:
    whether it did that before it died, nobody knows, so that it is not done again.
    """
    if operation.action == RETRY_TRANSLATION:
        return _retry_translation
    names = operation.parameters.keys() & {"ids", "task"}
    others = operation.parameters.keys() - {"ids", "task", "reason"}
    return DECISIONS.get(operation.action) if len(names) == 1 and not others else None


def _retry_messages(conn: Connection[TupleRow], tasks: TaskAccess, operation: Operation) -> Members:
    actor, ids = operation.requested_by, _ids(operation)
    count = dead_letters.redrive(conn, SubscriptionKind.CONSUMER, actor=actor, ids=ids)
    _require(count, "no message of a consumer that is dead has such an id")
    return {"redriven": count}


def _discard_messages(
    conn: Connection[TupleRow], tasks: TaskAccess, operation: Operation
) -> Members:
    ids = _ids(operation)
    gone = [
        letter
        for kind in (SubscriptionKind.CONSUMER, SubscriptionKind.RELAY)
        for letter in dead_letters.give_up(conn, kind, ids=ids)
    ]
    _require(len(gone), "no dead message has such an id")
    return {"discarded": len(gone), "messages": [letter.place() for letter in gone]}


def _retry_tasks(conn: Connection[TupleRow], tasks: TaskAccess, operation: Operation) -> Members:
    wanted = named(str(operation.parameters["task"]))
    sent = [task for queue in QUEUES for task in tasks.queues.redrive(queue, wanted)]
    _require(len(sent), "no task that failed has this id")
    return {"sent": sent}


def _discard_tasks(conn: Connection[TupleRow], tasks: TaskAccess, operation: Operation) -> Members:
    wanted = named(str(operation.parameters["task"]))
    gone = [task for queue in QUEUES for task in tasks.queues.discard(queue, wanted)]
    _require(len(gone), "no task that failed has this id")
    told = [{"id": each.id, "queue": each.queue, "actor": each.actor} for each in gone]
    return {"discarded": len(gone), "tasks": told}


def _retry_translation(
    conn: Connection[TupleRow], tasks: TaskAccess, operation: Operation
) -> Members:
    """Send the task of a comment once more; it works on the comment as it stands then."""
    origin = {
        "correlation_id": operation.correlation_id,
        "causation_id": str(event_id(operation.id, 1)),
    }
    tasks.send(
        Message(
            queue_name=TRANSLATION,
            actor_name=TRANSLATE_COMMENT,
            args=(operation.subject,),
            kwargs={},
            options=origin,
        )
    )
    return {"sent": [operation.subject]}


def _ids(operation: Operation) -> list[int]:
    ids = operation.parameters.get("ids")
    return [each for each in ids if isinstance(each, int)] if isinstance(ids, list) else []


def _require(count: int, otherwise: str) -> None:
    if not count:
        raise NothingFailed(otherwise)


DECISIONS: Mapping[str, Decision] = MappingProxyType(
    {
        RETRY_MESSAGES: _retry_messages,
        DISCARD_MESSAGES: _discard_messages,
        RETRY_TASKS: _retry_tasks,
        DISCARD_TASKS: _discard_tasks,
    }
)

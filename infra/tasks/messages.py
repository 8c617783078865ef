"""The origin of a task, a request and an event, which travels in the message's options."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, NamedTuple

from dramatiq import Actor, Broker
from dramatiq.broker import MessageProxy
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Middleware

from infra.logging import CORRELATION_ID
from infra.tasks.errors import BrokerAway


class TaskOrigin(NamedTuple):
    """What a command that the task issues is recorded with."""

    correlation_id: str | None
    causation_id: str | None


NOWHERE = TaskOrigin(None, None)
_ORIGIN: ContextVar[TaskOrigin] = ContextVar("task_origin", default=NOWHERE)


def current_origin() -> TaskOrigin:
    """Return where the running task comes from; nowhere outside of one."""
    return _ORIGIN.get()


def origin_of(options: dict[str, Any]) -> TaskOrigin:
    """Return the origin of a message, which may not run here at all."""
    return TaskOrigin(options.get("correlation_id"), options.get("causation_id"))


class Correlation(Middleware):
    """Sets the origin while a task runs: all its log lines carry the correlation id.

    A coroutine starts with a copy of the variables of the thread that submits it.
    """

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        origin = origin_of(message.options)
        _ORIGIN.set(origin)
        CORRELATION_ID.set(origin.correlation_id)

    def after_process_message(self, broker: Broker, message: MessageProxy, **_: object) -> None:
        _ORIGIN.set(NOWHERE)
        CORRELATION_ID.set(None)

    after_skip_message = after_process_message


def enqueue(
    actor: Actor[..., Any], *args: object, correlation_id: str | None, causation_id: str | None
) -> str:
    """Send one task and return its id; it blocks, so call it in a thread.

    The broker has the task when this returns. Raise BrokerAway within a few seconds otherwise.
    """
    try:
        message = actor.send_with_options(
            args=args, correlation_id=correlation_id, causation_id=causation_id
        )
    except BrokerConnectionError as error:
        raise BrokerAway(f"the task broker is away: {' '.join(str(error).split())}") from error
    return message.message_id

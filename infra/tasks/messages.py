"""Tasks as they are sent: their origin, which travels in the message's options, and their errors.

An error within a task is the task's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from dramatiq import Actor, Broker, Retry
from dramatiq.broker import MessageProxy
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Middleware, MiddlewareError

from infra.errors import OperatorError
from infra.logging import CORRELATION_ID


class BrokerAway(OperatorError):
    """The broker did not take a task, or did not answer; nothing is known of that one task.

    Whoever enqueues backs off and tries again: a task that arrives twice does no harm.
    """


class ExtraMissing(OperatorError):
    """A broker is configured whose client library is not installed."""


class NoSharedBroker(OperatorError):
    """The tasks live inside the running server, and another process was asked about them."""


class NoSuchDeadTask(OperatorError):
    """No dead letter has this id."""


class UnknownQueue(MiddlewareError):
    """An actor wants a queue that nobody watches: name it in `infra.tasks.queues` first."""


class ResourcesUnavailable(MiddlewareError):
    """What the tasks need could not be opened, so this process takes none."""


class Postponed(Retry):
    """Raised by a task that cannot run now through no fault of its own; costs no attempt."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason, delay=round(seconds * 1000))


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
    with away(BrokerConnectionError):
        message = actor.send_with_options(
            args=args, correlation_id=correlation_id, causation_id=causation_id
        )
    return message.message_id


@contextmanager
def away(*errors: type[Exception]) -> Iterator[None]:
    """Tell the client library's errors as BrokerAway."""
    try:
        yield
    except errors as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise BrokerAway(f"the task broker is away: {text}") from error

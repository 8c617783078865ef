"""Queues of tasks: what is sent into them, what they hold, and their dead letters.

Where a task comes from travels in the options of its message. Operators and gauges see the queues
that are named here alone, whichever broker keeps them: tasks may use no other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol

from dramatiq import Actor, Message, Retry
from dramatiq.broker import MessageProxy
from dramatiq.errors import BrokerConnectionError, DecodeError
from dramatiq.middleware import MiddlewareError
from pydantic.alias_generators import to_camel

from infra.errors import OperatorError, fault_of
from infra.http.shapes import rfc3339

TRANSLATION: Final = "translation"
# What readers ask for waits apart: what was just posted does not stand behind it.
TRANSLATION_REQUESTS: Final = "translation_requests"
SPEECH: Final = "speech"
RECOMMENDATIONS: Final = "recommendations"
QUEUES: Final = (TRANSLATION, TRANSLATION_REQUESTS, SPEECH, RECOMMENDATIONS)
ERROR_CHARACTERS = 300


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
    """An actor wants a queue that nobody watches: name it here first."""


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
ORIGIN: ContextVar[TaskOrigin] = ContextVar("task_origin", default=NOWHERE)


def current_origin() -> TaskOrigin:
    """Return where the running task comes from; nowhere outside of one."""
    return ORIGIN.get()


def origin_of(options: dict[str, Any]) -> TaskOrigin:
    """Return the origin of a message, which may not run here at all."""
    return TaskOrigin(options.get("correlation_id"), options.get("causation_id"))


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


@dataclass(frozen=True)
class FailedTask:
    """One task after its last attempt; `attempts` counts the first one too."""

    id: str
    queue: str
    actor: str
    args: tuple[Any, ...]
    attempts: int
    error: str
    failed_at: datetime | None
    correlation_id: str | None
    causation_id: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the task as the command line prints it."""
        told = {to_camel(name): value for name, value in asdict(self).items()}
        failed_at = rfc3339(self.failed_at) if self.failed_at else None
        return told | {"args": list(self.args), "failedAt": failed_at}


OnDead = Callable[[FailedTask], Awaitable[None]]
"""Runs where async actors run. While it fails the task is not dead: it is tried again later."""


def failed_task(message: Message[Any] | MessageProxy) -> FailedTask:
    """Return what a failed message's options tell; a message that nobody knew has no error."""
    options = message.options
    failed_at = options.get("failed_at")
    origin = origin_of(options)
    return FailedTask(
        message.message_id,
        message.queue_name,
        message.actor_name,
        message.args,
        int(options.get("retries", 0)),
        options.get("error", "no actor has this name"),
        None if failed_at is None else datetime.fromtimestamp(failed_at / 1000, UTC),
        origin.correlation_id,
        origin.causation_id,
    )


def in_one_line(error: BaseException) -> str:
    """Return an error's type and the beginning of its text, never a traceback."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:ERROR_CHARACTERS].removesuffix(": ")


@dataclass(frozen=True)
class Depth:
    """How many tasks a queue holds; None where the broker does not tell."""

    queue: str
    waiting: int
    delayed: int
    dead: int
    taken: int | None = None

    def by_state(self) -> dict[str, int]:
        """Return the counts that are known."""
        counts = {"waiting": self.waiting, "delayed": self.delayed, "dead": self.dead}
        return counts if self.taken is None else {**counts, "taken": self.taken}


Wanted = Callable[[FailedTask], bool]
"""Whether a dead letter is chosen."""


def every(task: FailedTask) -> bool:
    """Choose every dead letter."""
    return True


def named(task_id: str) -> Wanted:
    """Return the choice of the one dead letter with this id."""
    return lambda task: task.id == task_id


def like(one: FailedTask) -> Wanted:
    """Return the choice of all dead letters of one's actor that failed as it did."""
    what = one.actor, fault_of(one.error)
    return lambda task: (task.actor, fault_of(task.error)) == what


class TaskQueues(Protocol):
    """All of QUEUES; each method raises BrokerAway."""

    def depths(self) -> list[Depth]:
        """Return the depth of each queue."""

    def dead(self, queue: str, limit: int) -> list[FailedTask]:
        """Return up to `limit` dead letters, oldest first."""

    def redrive(self, queue: str, wanted: Wanted) -> list[str]:
        """Send dead letters once more, with all attempts before them.

        Return the ids. One that can't be read stays. A crash midway may send one twice.
        """

    def discard(self, queue: str, wanted: Wanted) -> list[FailedTask]:
        """Give dead letters up for good, also those that can't be read; return what they were."""


def read(queue: str, key: str, data: bytes) -> tuple[FailedTask, Message[Any] | None]:
    """Return a dead letter; without its message when it can't be read."""
    try:
        message = Message.decode(data)
    except DecodeError as error:
        why = f"can't be read: {error.error}"
        return FailedTask(key, queue, "", (), 0, why, None, None, None), None
    return failed_task(message), message


def revived(message: Message[Any]) -> Message[Any]:
    """Return the message as it was before its first attempt."""
    gone = ("retries", "error", "failed_at", "eta", "redis_message_id")
    options = {key: value for key, value in message.options.items() if key not in gone}
    return replace(message, queue_name=message.queue_name.removesuffix(".DQ"), options=options)

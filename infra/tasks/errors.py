"""The errors around tasks; an error within a task is the task's own."""

from __future__ import annotations

from dramatiq import Retry
from dramatiq.middleware import MiddlewareError

from infra.errors import OperatorError


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

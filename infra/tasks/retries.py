"""What becomes of a task that failed: tried again later, given back, or given up for good."""

from __future__ import annotations

import time
from typing import Any

import structlog
from dramatiq import Broker, Message
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.broker import MessageProxy
from dramatiq.common import compute_backoff
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Retries as StockRetries

from infra.metrics import counter
from infra.settings.adapters import TaskSettings
from infra.tasks.errors import Postponed
from infra.tasks.failed import FailedTask, OnDead, failed_task, in_one_line
from infra.tasks.stopping import was_interrupted

log = structlog.get_logger(__name__)

AWAY_SECONDS = 1.0

TASK_DEAD_HOOK_FAILURES = counter(
    "backlot_task_dead_hook_failures",
    "Times that giving up a task could not be recorded; it is tried again instead.",
    ("actor",),
)


class Retries(StockRetries):
    """Backs off exponentially, with jitter, up to a cap; after the last attempt `on_dead` is told.

    The stock one loses the task when the broker is away at that moment, and keeps tracebacks in
    the broker. An actor's options (`max_retries`, `min_backoff`, `max_backoff`, `throws`) count.
    """

    def __init__(self, settings: TaskSettings, on_dead: OnDead | None = None) -> None:
        super().__init__(
            max_retries=settings.max_retries,
            min_backoff=round(settings.min_backoff_seconds * 1000),
            max_backoff=round(settings.max_backoff_seconds * 1000),
        )
        self._on_dead = on_dead

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: object = None,
        exception: BaseException | None = None,
    ) -> None:
        if exception is None:
            return
        if was_interrupted(exception):
            log.info("task_returned", actor=message.actor_name, task=message.message_id)
            send_again(broker, message, None)
        elif isinstance(exception, Postponed):
            log.info("task_postponed", actor=message.actor_name, reason=str(exception))
            send_again(broker, message, exception.delay)
        else:
            self._count(message, exception)
            self._decide(broker, message, exception)

    def _count(self, message: MessageProxy, exception: BaseException) -> None:
        message.options["retries"] = message.options.get("retries", 0) + 1
        message.options["error"] = in_one_line(exception)
        message.options["failed_at"] = round(time.time() * 1000)

    def _decide(self, broker: Broker, message: MessageProxy, exception: BaseException) -> None:
        options = broker.get_actor(message.actor_name).options
        attempts, throws = message.options["retries"], options.get("throws")
        hopeless = throws is not None and isinstance(exception, throws)
        cap = options.get("max_backoff", self.max_backoff)
        least = options.get("min_backoff", self.min_backoff)
        _, delay = compute_backoff(attempts - 1, factor=least, max_backoff=cap)
        if hopeless or attempts > options.get("max_retries", self.max_retries):
            if self._bury(message):
                return
            delay = cap
        told = {"attempts": attempts, "error": message.options["error"], "delay_ms": delay}
        log.warning("task_retried", actor=message.actor_name, task=message.message_id, **told)
        send_again(broker, message, delay)

    def _bury(self, message: MessageProxy) -> bool:
        """Whether it is dead now: not while the program can't record that it is."""
        failed = failed_task(message)
        try:
            self._tell(failed)
        except Exception as error:  # noqa: BLE001 - the program's; whatever it is, it is told
            TASK_DEAD_HOOK_FAILURES.labels(failed.actor).inc()
            log.warning("task_not_given_up", actor=failed.actor, error=in_one_line(error))
            return False
        told = {"attempts": failed.attempts, "error": failed.error, "args": failed.args}
        log.error("task_dead", actor=failed.actor, task=failed.id, **told)
        message.fail()
        return True

    def _tell(self, failed: FailedTask) -> None:
        loop = get_event_loop_thread()
        if self._on_dead is not None and loop is not None:
            loop.run_coroutine(self._on_dead(failed))


def send_again(broker: Broker, message: Message[Any] | MessageProxy, delay: int | None) -> None:
    """Enqueue it once more, however long the broker is away: then it is acknowledged.

    A process that ends meanwhile leaves it unacknowledged, and it comes again by itself.
    """
    while True:
        try:
            broker.enqueue(message, delay=delay)  # type: ignore[arg-type]  # a proxy does
        except BrokerConnectionError as error:
            log.warning("task_broker_away", error=in_one_line(error))
            time.sleep(AWAY_SECONDS)
        else:
            return

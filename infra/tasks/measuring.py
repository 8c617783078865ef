"""Puts tasks into the metrics: attempts, their time, and how deep the queues are."""

from __future__ import annotations

import threading
import time

import structlog
from dramatiq import Broker, Worker
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Middleware

from infra.metrics import SECONDS, counter, gauge, histogram
from infra.tasks.errors import BrokerAway, Postponed
from infra.tasks.letters import TaskQueues
from infra.tasks.stopping import was_interrupted

log = structlog.get_logger(__name__)

DEPTH_SECONDS = 5.0

TASKS = counter(
    "backlot_tasks",
    "Attempts at tasks, by actor and outcome (done, retried, postponed, returned, dead, skipped).",
    ("actor", "outcome"),
)
TASK_SECONDS = histogram(
    "backlot_task_seconds",
    "How long an attempt at a task takes, by actor.",
    ("actor",),
    buckets=(*SECONDS, 30.0, 60.0, 120.0),
)
TASKS_RUNNING = gauge(
    "backlot_tasks_running",
    "Tasks that this process runs right now, by actor.",
    ("actor",),
)
TASK_QUEUE = gauge(
    "backlot_task_queue",
    "Tasks in a queue of the broker, by state (waiting, taken, delayed, dead).",
    ("queue", "state"),
)


class Measured(Middleware):
    """Counts attempts. It stands before Retries, so that it comes after it on the way out."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        self._started[message.message_id] = time.perf_counter()
        TASKS_RUNNING.labels(message.actor_name).inc()

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: object = None,
        exception: BaseException | None = None,
    ) -> None:
        self._ended(message)
        if not message.failed:
            TASKS.labels(message.actor_name, _outcome(exception)).inc()

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        self._ended(message)
        TASKS.labels(message.actor_name, "skipped").inc()

    def after_nack(self, broker: Broker, message: MessageProxy) -> None:
        # Here also come the messages that no actor takes.
        known = message.actor_name in broker.actors
        TASKS.labels(message.actor_name if known else "unknown", "dead").inc()

    def _ended(self, message: MessageProxy) -> None:
        started = self._started.pop(message.message_id, None)
        if started is not None:
            TASKS_RUNNING.labels(message.actor_name).dec()
            TASK_SECONDS.labels(message.actor_name).observe(time.perf_counter() - started)


def _outcome(exception: BaseException | None) -> str:
    if exception is None:
        return "done"
    if was_interrupted(exception):
        return "returned"
    return "postponed" if isinstance(exception, Postponed) else "retried"


class QueueGauges(Middleware):
    """Looks at the queues every few seconds while a worker runs."""

    def __init__(self, queues: TaskQueues) -> None:
        self._queues = queues
        self._stopping = threading.Event()

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        threading.Thread(target=self._watch, name="task-queue-gauges", daemon=True).start()

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        self._stopping.set()

    def _watch(self) -> None:
        while True:
            try:
                for depth in self._queues.depths():
                    for state, count in depth.by_state().items():
                        TASK_QUEUE.labels(depth.queue, state).set(count)
            except BrokerAway as error:
                log.warning("task_queues_not_seen", error=str(error))
            if self._stopping.wait(DEPTH_SECONDS):
                return

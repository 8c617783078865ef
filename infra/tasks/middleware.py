"""What goes on around each task: its event loop, what tasks share, their metrics and retries."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import structlog
from dramatiq import Broker, Message, Worker
from dramatiq.asyncio import EventLoopThread, get_event_loop_thread, set_event_loop_thread
from dramatiq.broker import MessageProxy
from dramatiq.common import compute_backoff
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import AsyncIO, Middleware, Shutdown, raise_thread_exception
from dramatiq.middleware import Retries as StockRetries

from infra.cancellation import cancel, together
from infra.errors import OperatorError
from infra.logging import CORRELATION_ID
from infra.metrics import SECONDS, counter, gauge, histogram
from infra.settings.adapters import TaskSettings
from infra.tasks.queues import (
    NOWHERE,
    ORIGIN,
    QUEUES,
    BrokerAway,
    OnDead,
    Postponed,
    ResourcesUnavailable,
    TaskQueues,
    UnknownQueue,
    failed_task,
    in_one_line,
    origin_of,
)

log = structlog.get_logger(__name__)

# How long the tasks' event loop may take to start.
START_SECONDS = 10.0
# How long what tasks share may take to be opened, and to be closed.
OPEN_SECONDS, CLOSE_SECONDS = 60.0, 30.0
# How often the gauges look at the queues.
DEPTH_SECONDS = 5.0
# The pause before a broker that is away is tried again.
AWAY_SECONDS = 1.0
# The pause between two interruptions: longer than Dramatiq waits for an interrupted coroutine.
AGAIN_SECONDS = 2.0

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
    "backlot_tasks_running", "Tasks that this process runs right now, by actor.", ("actor",)
)
TASK_QUEUE = gauge(
    "backlot_task_queue",
    "Tasks in a queue of the broker, by state (waiting, taken, delayed, dead).",
    ("queue", "state"),
)
TASK_DEAD_HOOK_FAILURES = counter(
    "backlot_task_dead_hook_failures",
    "Times that giving up a task could not be recorded; it is tried again instead.",
    ("actor",),
)

R = TypeVar("R")
T = TypeVar("T")

Failure = BaseException | None


class KnownQueues(Middleware):
    """Refuses an actor whose queue is not named here."""

    def before_declare_queue(self, broker: Broker, queue_name: str) -> None:
        if queue_name not in QUEUES:
            raise UnknownQueue(f"{queue_name!r} is none of the queues {', '.join(QUEUES)}")


class TaskLoop(EventLoopThread):
    """Runs coroutines of tasks; one that is interrupted is cancelled until it is done.

    The stock loop cancels it once: if that is lost, it runs beside its repetition.
    """

    def run_coroutine(self, coro: Awaitable[R]) -> R:
        return super().run_coroutine(_whole(coro))


async def _whole(work: Awaitable[R]) -> R:
    async def awaited() -> R:
        return await work

    (result,) = await together(awaited())
    return result


class EventLoop(AsyncIO):
    """As AsyncIO; with `loop`, tasks share connections with what else runs on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__()
        self._loop = loop

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Raise ResourcesUnavailable: the stock one would go on without a loop."""
        thread = TaskLoop(self.logger)
        if self._loop is not None:
            # Somebody else started it, and will stop it.
            thread.loop.close()
            thread.loop = self._loop
        else:
            # A process whose worker could not start must end, or nobody starts another.
            thread.daemon = True
            try:
                thread.start(timeout=START_SECONDS)
            except RuntimeError as error:
                raise ResourcesUnavailable(str(error)) from error
        set_event_loop_thread(thread)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if self._loop is None:
            super().after_worker_shutdown(broker, worker)
        else:
            set_event_loop_thread(None)


class Resources(Middleware, Generic[T]):
    """One value for all tasks of this process, such as pools, for as long as its worker runs.

    It is opened once, on the tasks' loop, after the fork and before the first task, and closed
    after the last.
    """

    def __init__(self, open_them: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._open = open_them
        self._value: T | None = None
        self._closing: asyncio.Event | None = None
        self._holding: Future[None] | None = None
        self._task: asyncio.Task[Any] | None = None

    def get(self) -> T:
        """Return the opened value. Raise ResourcesUnavailable where no worker runs."""
        if self._value is None:
            raise ResourcesUnavailable("a task asked for its resources outside of a worker")
        return self._value

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        opened: Future[T] = Future()
        loop = _event_loop().loop
        self._holding = asyncio.run_coroutine_threadsafe(self._hold(opened), loop)
        try:
            self._value = opened.result(OPEN_SECONDS)
        except Exception as error:
            if self._task is not None:
                asyncio.run_coroutine_threadsafe(cancel(self._task), loop)
            if isinstance(error, OperatorError):
                # One line, which Dramatiq would put behind a traceback.
                sys.exit(f"workers.app: {error}")
            raise ResourcesUnavailable(f"{type(error).__name__}: {error}") from error

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if self._holding is None or self._closing is None:
            return
        self._value = None
        _event_loop().loop.call_soon_threadsafe(self._closing.set)
        self._holding.result(CLOSE_SECONDS)
        self._holding = None

    async def _hold(self, opened: Future[T]) -> None:
        """Open and close in one task, as context managers with task groups or scopes demand."""
        self._task, self._closing = asyncio.current_task(), asyncio.Event()
        try:
            async with self._open() as value:
                opened.set_result(value)
                await self._closing.wait()
        except Exception as error:
            if opened.done():
                log.exception("task_resources_not_closed")
            else:
                opened.set_exception(error)


def _event_loop() -> EventLoopThread:
    thread = get_event_loop_thread()
    if thread is None:
        raise ResourcesUnavailable("the tasks' event loop does not run")
    return thread


def was_interrupted(exception: Failure) -> bool:
    """Return whether the task ended because its process stops, at once or after a slow clean-up."""
    ended = (exception, exception.__cause__ if exception is not None else None)
    return any(isinstance(each, Shutdown) for each in ended)


class GraceThenInterrupt(Middleware):
    """Raises Shutdown in running tasks after a grace; Retries puts those back at once.

    Dramatiq's ShutdownNotifications interrupts at once, or never.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._busy: set[int] = set()
        self._timer: threading.Timer | None = None

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        self._busy.add(threading.get_ident())

    def after_process_message(self, broker: Broker, message: MessageProxy, **_: object) -> None:
        self._busy.discard(threading.get_ident())

    after_skip_message = after_process_message

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        self._interrupt_in(self._grace_seconds)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _interrupt_in(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._interrupt)
        self._timer.daemon = True
        self._timer.start()

    def _interrupt(self) -> None:
        for thread_id in tuple(self._busy):
            raise_thread_exception(thread_id, Shutdown)
        # An exception that is raised in the midst of anything may be lost, as in a `__del__`.
        self._interrupt_in(AGAIN_SECONDS)


class Correlation(Middleware):
    """Sets the origin while a task runs: all its log lines carry the correlation id.

    A coroutine starts with a copy of the variables of the thread that submits it.
    """

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        origin = origin_of(message.options)
        ORIGIN.set(origin)
        CORRELATION_ID.set(origin.correlation_id)

    def after_process_message(self, broker: Broker, message: MessageProxy, **_: object) -> None:
        ORIGIN.set(NOWHERE)
        CORRELATION_ID.set(None)

    after_skip_message = after_process_message


class Measured(Middleware):
    """Counts attempts. It stands before Retries, so that it comes after it on the way out."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        self._started[message.message_id] = time.perf_counter()
        TASKS_RUNNING.labels(message.actor_name).inc()

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, exception: Failure = None, **_: object
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


def _outcome(exception: Failure) -> str:
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
        self, broker: Broker, message: MessageProxy, *, exception: Failure = None, **_: object
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
            self._failed(broker, message, exception)

    def _failed(self, broker: Broker, message: MessageProxy, exception: BaseException) -> None:
        attempts = message.options["retries"] = message.options.get("retries", 0) + 1
        message.options["error"] = in_one_line(exception)
        message.options["failed_at"] = round(time.time() * 1000)
        options = broker.get_actor(message.actor_name).options
        hopeless = isinstance(exception, options.get("throws") or ())
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
        """Return whether it is dead now: not while the program can't record that it is."""
        failed = failed_task(message)
        loop = get_event_loop_thread()
        try:
            if self._on_dead is not None and loop is not None:
                loop.run_coroutine(self._on_dead(failed))
        except Exception as error:  # noqa: BLE001 - the program's; whatever it is, it is told
            TASK_DEAD_HOOK_FAILURES.labels(failed.actor).inc()
            log.warning("task_not_given_up", actor=failed.actor, error=in_one_line(error))
            return False
        told = {"attempts": failed.attempts, "error": failed.error, "args": failed.args}
        log.error("task_dead", actor=failed.actor, task=failed.id, **told)
        message.fail()
        return True


def send_again(broker: Broker, message: Message[Any] | MessageProxy, delay: int | None) -> None:
    """Enqueue a message once more, however long the broker is away.

    A process that ends meanwhile leaves the message unacknowledged: it comes again by itself.
    """
    while True:
        try:
            broker.enqueue(message, delay=delay)  # type: ignore[arg-type]  # a proxy does
        except BrokerConnectionError as error:
            log.warning("task_broker_away", error=in_one_line(error))
            time.sleep(AWAY_SECONDS)
        else:
            return

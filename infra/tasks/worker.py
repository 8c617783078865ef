"""A Dramatiq worker, inside this process or in one of its own, and what its tasks share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar
from wsgiref.simple_server import WSGIServer

import dramatiq
import structlog
from dramatiq import Broker, Worker
from dramatiq.asyncio import EventLoopThread, get_event_loop_thread
from dramatiq.middleware import Middleware
from prometheus_client import start_http_server

from infra.cancellation import cancel
from infra.logging import configure_logging
from infra.metrics import REGISTRY
from infra.settings import Settings
from infra.settings.adapters import TaskSettings
from infra.tasks.broker import make_broker
from infra.tasks.messages import ResourcesUnavailable
from infra.tasks.queues import OnDead

log = structlog.get_logger(__name__)

# Beyond the grace: for interrupted tasks to clean up, and to be put back.
MARGIN_SECONDS = 5.0
OPEN_SECONDS = 60.0
CLOSE_SECONDS = 30.0

T = TypeVar("T")


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


class TaskWorker:
    """One for each process and broker; start and stop block, so call them in a thread.

    Actors are declared before it starts.
    """

    def __init__(self, broker: Broker, settings: TaskSettings) -> None:
        self._broker = broker
        self._worker = Worker(broker, worker_threads=settings.threads)
        self._stop_seconds = settings.stop_seconds + MARGIN_SECONDS

    def start(self) -> None:
        """Take tasks from now on. Raise ResourcesUnavailable."""
        self._broker.emit_after("process_boot")
        self._worker.start()

    def stop(self) -> None:
        """Take no more, let the running ones end within the grace, and give back the rest."""
        self._worker.stop(timeout=round(self._stop_seconds * 1000))
        self._broker.close()


def configure(
    settings: Settings, *, on_dead: OnDead | None = None, resources: Resources[Any] | None = None
) -> Broker:
    """Return the broker that `dramatiq` finds; set up logs, and metrics at the setting's port."""
    configure_logging(settings.logs)
    broker = make_broker(settings.tasks, on_dead=on_dead, resources=resources)
    broker.add_middleware(MetricsPage(settings.server.host, settings.server.port))
    dramatiq.set_broker(broker)
    return broker


class MetricsPage(Middleware):
    """Serves the metrics of the first worker process; run one process per container."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._server: WSGIServer | None = None

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        try:
            self._server, _ = start_http_server(self._port, self._host, REGISTRY)
        except OSError as error:
            log.warning("metrics_not_served", port=self._port, error=str(error))

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

"""The resources that the tasks of a process share, such as pools: opened once, on their loop.

Opened after the fork, and before the first task; closed after the last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import structlog
from dramatiq import Broker, Worker
from dramatiq.asyncio import EventLoopThread, get_event_loop_thread
from dramatiq.middleware import Middleware

from infra.cancellation import cancel
from infra.tasks.errors import ResourcesUnavailable

log = structlog.get_logger(__name__)

OPEN_SECONDS = 60.0
CLOSE_SECONDS = 30.0

T = TypeVar("T")


class Resources(Middleware, Generic[T]):
    """One value for all tasks of this process, for as long as its worker runs."""

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

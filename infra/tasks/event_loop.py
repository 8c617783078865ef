"""The event loop that async actors run on: a thread's own, or the one that the program has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TypeVar

from dramatiq import Broker, Worker
from dramatiq.asyncio import EventLoopThread, set_event_loop_thread
from dramatiq.middleware import AsyncIO

from infra.cancellation import together
from infra.tasks.errors import ResourcesUnavailable

R = TypeVar("R")

START_SECONDS = 10.0


class TaskLoop(EventLoopThread):
    """Runs coroutines of tasks; one that is interrupted is cancelled until it is done.

    The stock one cancels it once, and runs it beside its repetition if that is lost.
    """

    def run_coroutine(self, coro: Awaitable[R]) -> R:
        return super().run_coroutine(_whole(coro))


async def _whole(work: Awaitable[R]) -> R:
    async def awaited() -> R:
        return await work

    (result,) = await together(awaited())
    return result


class BorrowedLoop(TaskLoop):
    """Runs coroutines on a loop that somebody else started, and will stop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(logging.getLogger(__name__))
        self.loop.close()
        self.loop = loop


class EventLoop(AsyncIO):
    """As AsyncIO; with `loop`, tasks share connections with what else runs on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__()
        self._loop = loop

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """Raises ResourcesUnavailable: the stock one would go on without a loop."""
        if self._loop is not None:
            set_event_loop_thread(BorrowedLoop(self._loop))
            return
        thread = TaskLoop(self.logger)
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

"""The end of tasks and threads: asked for until they are done, up to a deadline that is logged.

One request is not enough. `asyncio.wait_for` of Python 3.11 swallows a cancellation that arrives
just as its inner wait ends, and so may any library; the task then goes on as if nobody had asked.
Nothing else in this program calls `cancel` on a task (a test sees to that).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from threading import Thread
from typing import Any, TypeVar

import structlog
from anyio import CancelScope

from infra.metrics import counter

log = structlog.get_logger(__name__)

# Longer than a clean-up takes, as a rule; what has to be finished runs `to_the_end`.
AGAIN_SECONDS = 0.5
END_SECONDS = 15.0

STOPS_OVERDUE = counter(
    "backlot_stops_overdue",
    "Tasks and threads that did not end in time when they were asked to; the log names them.",
    ("kind",),
)

T = TypeVar("T")


async def cancel(*tasks: asyncio.Task[Any], seconds: float = END_SECONDS) -> bool:
    """Cancel tasks again and again until all are done; False when one outlasts `seconds`.

    That one is counted and logged, and left alone. How the others ended stays with them: nothing
    of it is raised here. A cancellation of the caller is raised once this is over.
    """
    return await to_the_end(_cancel(tasks, time.monotonic() + seconds))


async def _cancel(tasks: tuple[asyncio.Task[Any], ...], deadline: float) -> bool:
    pending = {task for task in tasks if not task.done()}
    while pending and (left := deadline - time.monotonic()) > 0:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=min(AGAIN_SECONDS, left))
    for task in pending:
        _tell_overdue("task", getattr(task.get_coro(), "__qualname__", task.get_name()))
    for task in tasks:
        _look_at(task)
    return not pending


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """Return the results of all, which run at once; end all when one fails or this is cancelled.

    Raise what the first of those that failed did. `asyncio.TaskGroup` cancels its tasks only
    once, however often it is cancelled itself.
    """
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        if tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        await cancel(*tasks)
    for error in filter(None, map(_look_at, tasks)):
        raise error
    return [task.result() for task in tasks]


@asynccontextmanager
async def alongside(*work: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Run work that has no end beside the block, and cancel it when the block ends."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        yield
    finally:
        await cancel(*tasks)


async def to_the_end(work: Awaitable[T]) -> T:
    """Return the result of `work`; raise a cancellation that comes meanwhile once it has ended."""
    task = asyncio.ensure_future(work)
    try:
        # By far most often nobody cancels: what is dear comes behind that.
        return await asyncio.shield(task)
    except asyncio.CancelledError as error:
        cancelled = error
    # The scope is for those of anyio, which come again in every turn of the loop.
    with CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    if (failure := _look_at(task)) is not None:
        log.warning("cancelled_work_failed", error=repr(failure))
    raise cancelled


def join(thread: Thread, seconds: float = END_SECONDS) -> bool:
    """Wait for a thread that was asked to stop; False when it outlasts `seconds`.

    That is counted and logged, and the thread is left alone. A thread that never began has ended.
    """
    if thread.is_alive():
        thread.join(seconds)
    if thread.is_alive():
        _tell_overdue("thread", thread.name)
    return not thread.is_alive()


def _look_at(task: asyncio.Future[Any]) -> BaseException | None:
    """Return what a task failed with; asyncio complains of an error that nobody has looked at."""
    return task.exception() if task.done() and not task.cancelled() else None


def _tell_overdue(kind: str, name: str) -> None:
    STOPS_OVERDUE.labels(kind).inc()
    log.error("stop_overdue", kind=kind, name=name)

"""Jobs: what a process does every so often, declared as data and run by one loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import structlog
from prometheus_client import Counter

from infra.cancellation import END_SECONDS, cancel
from infra.metrics import counter

log = structlog.get_logger(__name__)

JOBS_BROKEN = counter(
    "backlot_jobs_broken",
    "Background jobs that ended by an error of their own, and run no more until a restart.",
)

Run = Callable[[], Awaitable[float | None]]
"""One run of a job; it may return the seconds until the next one."""

Session = Callable[[], AbstractAsyncContextManager[Run]]
"""Opens what the runs of a job share, such as its leader lock, and gives what runs each time."""


@dataclass(frozen=True)
class Outage:
    """Errors that pass: each is logged as a warning and counted, and the job is tried again."""

    event: str
    errors: tuple[type[Exception], ...]
    failures: Counter | None = None


@dataclass(frozen=True)
class Job:
    """Work that is done every `every` seconds.

    The first run comes at once, or after that time unless `at_once`. After an outage the session is
    opened anew. Any other error ends the job.
    """

    name: str
    every: float
    session: Session
    outage: Outage | None = None
    at_once: bool = True


def repeat(run: Run) -> Session:
    """Return the session of a job whose runs share nothing."""
    return lambda: nullcontext(run)


async def run_job(job: Job) -> None:
    """Run a job again and again until cancelled; a run that is under way then is finished."""
    pause = 0.0 if job.at_once else job.every
    errors = job.outage.errors if job.outage else ()
    while True:
        try:
            async with job.session() as run:
                while True:
                    await asyncio.sleep(pause)
                    asked = await run()
                    pause = job.every if asked is None else asked
        except errors as error:
            if job.outage and job.outage.failures:
                job.outage.failures.inc()
            if job.outage:
                text = " ".join(str(error).split())
                log.warning(job.outage.event, error=f"{type(error).__name__}: {text}")
            await asyncio.sleep(job.every)
            pause = 0.0


def in_background(
    work: Coroutine[Any, Any, None],
    stack: AsyncExitStack,
    *,
    name: str | None = None,
    seconds: float = END_SECONDS,
) -> None:
    """Run work without an end until `stack` is closed; if it breaks, that is logged at once."""
    task = asyncio.create_task(work, name=name or getattr(work, "__qualname__", None))
    task.add_done_callback(_tell_broken)
    stack.push_async_callback(cancel, task, seconds=seconds)


def _tell_broken(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        JOBS_BROKEN.inc()
        log.error("job_broke", job=task.get_name(), exc_info=error)


def schedule(jobs: Iterable[Job], stack: AsyncExitStack) -> None:
    """Run jobs until the stack is closed."""
    for job in jobs:
        in_background(run_job(job), stack, name=job.name)

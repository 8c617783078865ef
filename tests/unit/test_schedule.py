"""Jobs that run every so often, whatever fails between two runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from threading import Event

import pytest
from prometheus_client import CollectorRegistry, Counter
from structlog.testing import capture_logs

from engine.connections import in_thread
from engine.schedule import Job, Outage, Run, repeat, run_job
from tests.support import ended

pytestmark = pytest.mark.anyio

HOUR = 3600.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Work:
    """Runs that end as they are told to, the last of them again and again."""

    def __init__(self, *ends: float | Exception | None) -> None:
        self.ends = list(ends)
        self.runs = 0
        self.sessions = 0
        self.open = 0

    async def __call__(self) -> float | None:
        end = self.ends[min(self.runs, len(self.ends) - 1)]
        self.runs += 1
        if isinstance(end, Exception):
            raise end
        return end

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Run]:
        self.sessions, self.open = self.sessions + 1, self.open + 1
        try:
            yield self
        finally:
            self.open -= 1


async def run_until(job: Job, holds: Callable[[], bool]) -> None:
    task = asyncio.create_task(run_job(job))
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - the job tells nobody
            await asyncio.sleep(0.001)
    await ended(task)


async def test_the_first_run_comes_at_once_and_others_after_the_time() -> None:
    work = Work(None)
    await run_until(Job("job", HOUR, repeat(work)), lambda: work.runs == 1)
    again = Work(None)
    await run_until(Job("job", 0.001, repeat(again)), lambda: again.runs == 5)


async def test_a_job_may_begin_with_the_pause() -> None:
    work = Work(None)
    task = asyncio.create_task(run_job(Job("job", HOUR, repeat(work), at_once=False)))
    await asyncio.sleep(0.05)
    await ended(task)
    assert work.runs == 0


async def test_a_run_may_say_when_the_next_one_is_due() -> None:
    work = Work(0.0, 0.0, 0.001, None)
    await run_until(Job("job", HOUR, work.session), lambda: work.runs == 4)
    assert (work.sessions, work.open) == (1, 0)


async def test_after_an_outage_the_session_is_opened_anew() -> None:
    registry = CollectorRegistry()
    failures = Counter("failures", "Of this test.", registry=registry)
    work = Work(OSError("away\n for now"), None)
    outage = Outage("job_postponed", (OSError, LookupError), failures)
    with capture_logs() as logs:
        await run_until(Job("job", 0.001, work.session, outage), lambda: work.runs == 3)
    assert (work.sessions, work.open) == (2, 0)
    assert registry.get_sample_value("failures_total") == 1
    told = {"event": "job_postponed", "error": "OSError: away for now", "log_level": "warning"}
    assert logs == [told]


@pytest.mark.parametrize("outage", [None, Outage("job_postponed", (OSError,))])
async def test_any_other_error_ends_the_job(outage: Outage | None) -> None:
    work = Work(ValueError("a defect"))
    with pytest.raises(ValueError, match="a defect"):
        await run_job(Job("job", 0.001, work.session, outage))
    assert work.open == 0


async def test_a_thread_that_works_is_waited_for() -> None:
    began, may_end, done = Event(), Event(), Event()

    def work() -> None:
        began.set()
        may_end.wait(60)
        done.set()

    def run() -> Awaitable[None]:
        return in_thread(work)

    task = asyncio.create_task(run_job(Job("job", HOUR, repeat(run))))
    await asyncio.to_thread(began.wait, 60)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    may_end.set()
    await ended(task)
    assert done.is_set()

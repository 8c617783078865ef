"""Connections of work that goes on in the background, and the lock that lets one process lead.

Their work is done in threads, so that the event loop serves everybody else meanwhile. Who leads
holds its lock on the connection that it works with: a process that lost the lock can't write
either, because the right and the means end at the same moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar

from psycopg import Connection, InterfaceError, OperationalError
from psycopg.rows import TupleRow

from infra.advisory_locks import AdvisoryLock, job_lock, try_lock, unlock
from infra.cancellation import to_the_end
from infra.key_encryption import KeyEncryptionFailed
from infra.postgres.connection import open_connection

P = ParamSpec("P")
R = TypeVar("R")

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0
TAKEOVER_SECONDS = 1.0
"""How often a process looks whether the lead is free."""
# Each connection does one thing at a time, so that this is enough for as many connections. The
# threads that asyncio gives to everybody are six on two cores, and one may take minutes here.
THREADS: Final = ThreadPoolExecutor(max_workers=64, thread_name_prefix="engine")

# A crash may lose the last commits of a subscription, and then it loses rows and checkpoint
# together: they are applied again, and each event still counts exactly once. Waiting for the disk
# would buy nothing. Every query is keyed, and the planner must not think otherwise while a table
# is small. What takes longer than the timeouts is stuck, and has to show as an interruption. The
# last three let the server notice a vanished machine, and free its lock, within a minute.
SESSION = b"""
SET synchronous_commit = off;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SET lock_timeout = '30s';
SET statement_timeout = '5min';
SET tcp_keepalives_idle = 10;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 4
"""


def connect(database_url: str, purpose: str) -> Connection[TupleRow]:
    """Return a connection in autocommit mode, named after its purpose; raise OperationalError."""
    connection = open_connection(database_url, purpose)
    connection.execute(SESSION)
    return connection


def is_outage(error: BaseException) -> bool:
    """Return whether the database, or the key that it takes to read it, is at fault, not an event:
    then trying again helps.
    """
    # SQLSTATE class 54, a program limit exceeded, such as a value too large for an index.
    too_big = str(getattr(error, "sqlstate", None)).startswith("54")
    away = isinstance(error, OperationalError | InterfaceError | KeyEncryptionFailed)
    return away and not too_big


class ThreadedConnection:
    """A connection whose work is done in threads, one call at a time."""

    def __init__(self, conn: Connection[TupleRow]) -> None:
        self._conn = conn
        self._free = asyncio.Lock()

    async def do(
        self,
        work: Callable[Concatenate[Connection[TupleRow], P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Return what `work` returns on the connection; it ends even when this is cancelled."""
        async with self._free:
            return await in_thread(work, self._conn, *args, **kwargs)


async def in_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Return what `work` returns in a thread; it ends even when this is cancelled."""
    call = partial(work, *args, **kwargs)
    return await to_the_end(asyncio.get_running_loop().run_in_executor(THREADS, call))


@asynccontextmanager
async def connected(database_url: str, purpose: str) -> AsyncIterator[ThreadedConnection]:
    """Open a connection that is worked with in threads; raise OperationalError.

    Who has only that leads nothing: see `leading`.
    """
    opened: list[Connection[TupleRow]] = []
    try:
        await in_thread(lambda: opened.append(connect(database_url, purpose)))
        yield ThreadedConnection(opened[0])
    finally:
        for conn in opened:
            await in_thread(conn.close)


class Backoff:
    """Growing pauses, in seconds: doubled after each failure, short again after a success."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE_SECONDS

    def next(self) -> float:
        """Return the pause before the next attempt."""
        pause = self._pause
        self._pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        return pause

    def reset(self) -> None:
        """Begin with a short pause again."""
        self._pause = FIRST_PAUSE_SECONDS


class Leader(Protocol):
    """Who may work: asked on the connection that works."""

    def take(self, conn: Connection[TupleRow]) -> bool:
        """Return whether this process leads from now on."""

    def release(self, conn: Connection[TupleRow]) -> None:
        """Let another process lead."""


class LeaderLock:
    """One process leads at a time: the one whose connection holds an advisory lock."""

    def __init__(self, lock: AdvisoryLock) -> None:
        self._lock = lock

    @classmethod
    def of_job(cls, job: str) -> LeaderLock:
        """Return the lock of a job by its name, which must never change."""
        return cls(job_lock(job))

    def take(self, conn: Connection[TupleRow]) -> bool:
        return try_lock(conn, self._lock)

    def release(self, conn: Connection[TupleRow]) -> None:
        unlock(conn, self._lock)


class EveryProcess:
    """All processes work at once: what each of them does may be done twice."""

    def take(self, conn: Connection[TupleRow]) -> bool:
        return True

    def release(self, conn: Connection[TupleRow]) -> None:
        """Nothing is held."""


@asynccontextmanager
async def leading(database_url: str, job: str) -> AsyncIterator[ThreadedConnection]:
    """Wait until no other process does that job, and lead it.

    Raise psycopg.OperationalError when the database is away.
    """
    lock = LeaderLock.of_job(job)
    async with connected(database_url, job) as conn:
        while True:
            if await conn.do(lock.take):
                break
            await asyncio.sleep(TAKEOVER_SECONDS)
        yield conn

"""One active process for a job: the one that holds its lock, on the connection that it works with.

A process that lost the lock can't write either: the right and the means end at the same moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from psycopg import Connection
from psycopg.rows import TupleRow

from engine.connections import ThreadedConnection, connected
from infra.advisory_locks import AdvisoryLock, job_lock, try_lock, unlock

TAKEOVER_SECONDS = 1.0
"""How often a process looks whether the lead is free."""


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

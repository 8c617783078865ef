"""One active process for a job: whoever holds its lock, on the connection that it works with.

A process that lost the lock can't write either: the right and the means end at the same moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Concatenate, ParamSpec, TypeVar
from zlib import crc32

from psycopg import Connection
from psycopg.rows import TupleRow

from infra.cancellation import to_the_end
from projections.connecting import connect

P = ParamSpec("P")
R = TypeVar("R")

LOCK_CLASS = 0x776F726B  # "work": our class of advisory locks, beside those of the projections.
TAKEOVER_SECONDS = 1.0


class Lead:
    """The connection of the active process; its work is done in threads, one call at a time."""

    def __init__(self, conn: Connection[TupleRow]) -> None:
        self._conn = conn
        self._free = asyncio.Lock()

    async def do(
        self,
        work: Callable[Concatenate[Connection[TupleRow], P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """The result of `work` on the connection; it is finished even when this is cancelled."""
        async with self._free:
            return await to_the_end(asyncio.to_thread(work, self._conn, *args, **kwargs))


@asynccontextmanager
async def connected(database_url: str, purpose: str) -> AsyncIterator[Lead]:
    """A connection that is worked with in threads; whoever has only that leads nothing.

    Raises psycopg.OperationalError when the database is away.
    """
    opened: list[Connection[TupleRow]] = []

    def open_one() -> None:
        opened.append(connect(database_url, purpose))

    try:
        await to_the_end(asyncio.to_thread(open_one))
        yield Lead(opened[0])
    finally:
        for conn in opened:
            await to_the_end(asyncio.to_thread(conn.close))


@asynccontextmanager
async def leading(database_url: str, job: str) -> AsyncIterator[Lead]:
    """Wait until no other process does that job, and be the one that does it.

    Raises psycopg.OperationalError when the database is away.
    """
    async with connected(database_url, job) as lead:
        await _take_lead(lead, job)
        yield lead


async def _take_lead(lead: Lead, job: str) -> None:
    while True:
        if await lead.do(_try_lock, job):
            return
        await asyncio.sleep(TAKEOVER_SECONDS)


def _try_lock(conn: Connection[TupleRow], job: str) -> bool:
    key = crc32(job.encode()) & 0x7FFFFFFF
    row = conn.execute("SELECT pg_try_advisory_lock(%s, %s)", (LOCK_CLASS, key)).fetchone()
    return row is not None and bool(row[0])

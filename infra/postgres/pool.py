"""The read API's connections to the database, given out alive."""

from __future__ import annotations

import select
from functools import partial

from psycopg import AsyncConnection, OperationalError
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from infra.postgres.connection import (
    RECONNECT_SECONDS,
    SHORT_WORK,
    Limits,
    LiveAsyncConnection,
    begin_async,
    breaker_of,
    parameters,
)


class LivePool(AsyncConnectionPool[LiveAsyncConnection[TupleRow]]):
    """A pool whose clients don't notice that the server was restarted while they were idle.

    Who wants a connection of a silent server is told so at once.

    The library's own check costs every query a round trip, and pauses for a second after each lost
    connection.
    """

    async def getconn(  # the library's signature
        self,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> LiveAsyncConnection[TupleRow]:
        breaker_of(self.conninfo).check()
        while True:
            conn = await super().getconn(timeout)
            if not await _is_lost(conn):
                return conn
            await conn.close()
            await self.putconn(conn)


async def _is_lost(conn: AsyncConnection[TupleRow]) -> bool:
    try:
        # On a lost connection the socket has something to say; only then is the server asked.
        poller = select.poll()
        poller.register(conn.fileno(), select.POLLIN)
        if poller.poll(0):
            await conn.execute("")
    except OperationalError:
        return True
    return False


def make_pool(database_url: str, *, max_size: int = 10, limits: Limits = SHORT_WORK) -> LivePool:
    """Not opened yet: `await pool.open()` in the application's event loop.

    A query that gets no connection within the limit has PoolTimeout, and one that gets no answer
    another OperationalError.
    """
    return LivePool(
        database_url,
        connection_class=LiveAsyncConnection,
        kwargs=parameters("queries", limits),
        configure=partial(begin_async, limits=limits),
        min_size=min(2, max_size),
        max_size=max_size,
        timeout=limits.pool,
        reconnect_timeout=RECONNECT_SECONDS,
        open=False,
    )

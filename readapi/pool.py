"""The read API's connections to the database, given out alive."""

from __future__ import annotations

import select

from psycopg import AsyncConnection, OperationalError
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool


class LivePool(AsyncConnectionPool[AsyncConnection[TupleRow]]):
    """A pool whose clients don't notice that the server was restarted while they were idle.

    The library's own check costs every query a round trip, and pauses for a second after each lost
    connection.
    """

    async def getconn(  # the library's signature
        self,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncConnection[TupleRow]:
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


def make_pool(database_url: str, *, max_size: int = 10, timeout_seconds: float = 5.0) -> LivePool:
    """Not opened yet: `await pool.open()` in the application's event loop.

    A query waits up to `timeout_seconds` for a connection; then the pool raises PoolTimeout.
    """
    return LivePool(
        database_url,
        min_size=min(2, max_size),
        max_size=max_size,
        timeout=timeout_seconds,
        # After an outage of any length, the next query tries again at once.
        reconnect_timeout=3.0,
        open=False,
        kwargs={"autocommit": True, "application_name": "backlot queries", "connect_timeout": 5},
    )

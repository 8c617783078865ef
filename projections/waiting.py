"""Lets a query wait until the read models show what its client has already been told.

One poller serves everybody who waits in this process, and only while somebody waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from psycopg import Error
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from infra.connecting import LiveAsyncConnection
from projections.log import CHANNEL, HURRY

Pool = AsyncConnectionPool[LiveAsyncConnection[TupleRow]]

POLL_SECONDS = 0.01
# Even who does not want to wait gets one look.
SHORTEST_WAIT_SECONDS = 0.1
CALL = b"SELECT pg_notify(%s, %s)"
POSITIONS = b"SELECT schema, position FROM projections.state"


class ReadModelBehind(Exception):
    """The position was not reached in time. `positions` says how far each projection is."""

    def __init__(self, wanted: int, positions: Mapping[str, int]) -> None:
        super().__init__("The read model has not come that far yet; try again.")
        self.wanted = wanted
        self.positions = dict(positions)


@dataclass(slots=True, eq=False)
class Wait:
    """Somebody who waits for all of `names` to reach `position`."""

    names: Collection[str]
    position: int
    reached: asyncio.Future[None]


class Waiting:
    """Waits for positions; to be used from one event loop."""

    def __init__(self, pool: Pool, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._pool = pool
        self._poll_seconds = poll_seconds
        self._waits: set[Wait] = set()
        self._positions: dict[str, int] = {}
        self._poller: asyncio.Task[None] | None = None
        # Whether somebody has begun to wait since the runners were told to hurry.
        self._uncalled = False

    async def until(self, names: Collection[str], position: int, timeout_seconds: float) -> None:
        """Return when every projection in `names` (by schema) has applied `position`.

        Raises ReadModelBehind after the timeout, and what the database raises when it is away.
        """
        wait = Wait(names, position, asyncio.get_running_loop().create_future())
        self._waits.add(wait)
        self._uncalled = True
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            async with asyncio.timeout(max(timeout_seconds, SHORTEST_WAIT_SECONDS)):
                await wait.reached
        except TimeoutError as error:
            known = {name: self._positions.get(name, 0) for name in names}
            raise ReadModelBehind(position, known) from error
        finally:
            self._waits.discard(wait)

    async def _poll(self) -> None:
        try:
            while self._waits:
                await self._look()
                if self._waits:
                    await asyncio.sleep(self._poll_seconds)
        except Error as error:
            self._fail(error)
        finally:
            self._poller = None

    async def _look(self) -> None:
        async with self._pool.connection() as conn:
            rows = await conn.execute(POSITIONS)
            self._positions = dict(await rows.fetchall())
            self._release()
            if self._uncalled and self._waits:
                self._uncalled = False
                await conn.execute(CALL, (CHANNEL, HURRY))

    def _release(self) -> None:
        for wait in list(self._waits):
            if all(self._positions.get(name, -1) >= wait.position for name in wait.names):
                self._waits.discard(wait)
                if not wait.reached.done():
                    wait.reached.set_result(None)

    def _fail(self, error: Error) -> None:
        for wait in self._waits:
            if not wait.reached.done():
                wait.reached.set_exception(error)

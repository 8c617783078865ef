"""Lets a query wait until what it is made from holds what its client has already been told.

One poller serves everybody who waits in this process, and only while somebody waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from psycopg import AsyncConnection, Error
from psycopg.errors import UndefinedTable
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from infra.position import BEGINNING, Position
from projections.log import CHANNEL, HURRY

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]

POLL_SECONDS = 0.01
# Even who does not want to wait gets one look.
SHORTEST_WAIT_SECONDS = 0.1
# A call may come just before what is waited for can be read (from Kafka, say): hence again.
CALL_SECONDS = 0.1
CALL = b"SELECT pg_notify(%s, %s)"
READ_MODELS = b"SELECT schema, position, 0 FROM projections.state"


class ReadModelBehind(Exception):
    """A position was not reached in time.

    `wanted` and `positions` say how far everything that was waited for should be, and is.
    """

    def __init__(self, wanted: Mapping[str, Position], positions: Mapping[str, Position]) -> None:
        super().__init__("The read model has not come that far yet; try again.")
        self.wanted = dict(wanted)
        self.positions = dict(positions)


@dataclass(frozen=True, slots=True)
class Freshness:
    """What an answer has to include, and until when it may wait for that (by `time.monotonic`)."""

    position: Position = BEGINNING
    deadline: float = 0.0

    @property
    def is_asked(self) -> bool:
        """Whether the client said so, rather than take what there is."""
        return self.position != BEGINNING

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


WHATEVER_THERE_IS = Freshness()


@dataclass(slots=True, eq=False)
class Wait:
    """Somebody who waits for each of these names to reach its position."""

    wanted: Mapping[str, Position]
    reached: asyncio.Future[None]


class Waiting:
    """Waits for read models, or for consumers; to be used from one event loop."""

    def __init__(
        self,
        pool: Pool,
        *,
        query: bytes = READ_MODELS,
        log_pool: Pool | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """`query` says on `pool` how far each is; they are called where the log is."""
        self._pool = pool
        self._query = query
        self._log_pool = log_pool or pool
        self._poll_seconds = poll_seconds
        self._waits: set[Wait] = set()
        self._positions: Mapping[str, Position] = {}
        self._poller: asyncio.Task[None] | None = None
        # Whether somebody has begun to wait since they were told to hurry, and when that was.
        self._uncalled = False
        self._called = float("-inf")

    async def until(self, wanted: Mapping[str, Position], timeout_seconds: float) -> None:
        """Return when each of these (by schema, or by consumer) has taken its position in.

        Raises ReadModelBehind after the timeout, and what the database raises when it is away.
        """
        wait = Wait(wanted, asyncio.get_running_loop().create_future())
        self._waits.add(wait)
        self._uncalled = True
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            async with asyncio.timeout(max(timeout_seconds, SHORTEST_WAIT_SECONDS)):
                await wait.reached
        except TimeoutError as error:
            known = {name: self._positions.get(name, BEGINNING) for name in wanted}
            raise ReadModelBehind(wanted, known) from error
        finally:
            self._waits.discard(wait)

    async def _poll(self) -> None:
        try:
            while self._waits:
                self._positions = await positions(self._pool, self._query)
                self._release()
                await self._call()
                if self._waits:
                    await asyncio.sleep(self._poll_seconds)
        except Error as error:
            self._fail(error)
        finally:
            self._poller = None

    async def _call(self) -> None:
        """Have what is waited for hurry."""
        if self._waits and (self._uncalled or time.monotonic() - self._called >= CALL_SECONDS):
            self._uncalled, self._called = False, time.monotonic()
            async with self._log_pool.connection() as conn:
                await conn.execute(CALL, (CHANNEL, HURRY))

    def _release(self) -> None:
        for wait in list(self._waits):
            if covers(self._positions, wait.wanted):
                self._waits.discard(wait)
                if not wait.reached.done():
                    wait.reached.set_result(None)

    def _fail(self, error: Error) -> None:
        for wait in self._waits:
            if not wait.reached.done():
                wait.reached.set_exception(error)


async def positions(pool: Pool, query: bytes) -> dict[str, Position]:
    """How far each is; none where none has ever begun. Raises psycopg.Error."""
    async with pool.connection() as conn:
        try:
            cursor = await conn.execute(query)
        except UndefinedTable:
            return {}
        return {name: Position(*numbers) for name, *numbers in await cursor.fetchall()}


def covers(positions: Mapping[str, Position], wanted: Mapping[str, Position]) -> bool:
    """Whether each of those wanted has come as far."""
    return all(
        name in positions and positions[name].covers(position) for name, position in wanted.items()
    )

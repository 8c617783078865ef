"""Lets a query wait until the read models show what its client has already been told.

One poller serves everybody who waits in this process, and only while somebody waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import structlog
from psycopg import Error
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from infra import metrics
from infra.connecting import LiveAsyncConnection
from projections.log import CHANNEL, HURRY
from projections.overview import ACTIVE
from projections.positions import LOCK_CLASS, lock_key
from projections.projection import Projection

log = structlog.get_logger(__name__)

Pool = AsyncConnectionPool[LiveAsyncConnection[TupleRow]]

POLL_SECONDS = 0.01
# Even who does not want to wait gets one look.
SHORTEST_WAIT_SECONDS = 0.1
CALL = b"SELECT pg_notify(%s, %s)"
POSITIONS = b"SELECT schema, position, version FROM projections.state"
# A process of the release before that takes over from another one needs less.
UNFED_SECONDS = 2.0


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

    def __init__(
        self,
        pool: Pool,
        projections: Iterable[Projection] = (),
        *,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """`projections` are those of this program: it can tell which copies it can't feed.

        Whatever else is waited for is taken to be fed by somebody.
        """
        self._pool = pool
        self._versions = {each.schema: each.versions for each in projections}
        # Copies of versions that this program can't feed, and since when nobody else does either.
        self._unfed: dict[str, float] = {}
        self._poll_seconds = poll_seconds
        self._waits: set[Wait] = set()
        self._positions: dict[str, int] = {}
        self._poller: asyncio.Task[None] | None = None
        # Whether somebody has begun to wait since the runners were told to hurry.
        self._uncalled = False

    async def until(
        self, names: Collection[str], position: int, timeout_seconds: float
    ) -> int | None:
        """Return when every projection in `names` (by schema) has applied `position`.

        A copy that no process can feed until its replay has ended is not waited for: then this
        returns how far the one that is farthest behind has come; otherwise None. Raises
        ReadModelBehind after the timeout, and what the database raises when it is away.
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
            if not self._is_over(wait, self._unfed):
                known = {name: self._positions.get(name, 0) for name in names}
                raise ReadModelBehind(position, known) from error
        finally:
            self._waits.discard(wait)
        reached = min((self._positions.get(name, 0) for name in names), default=position)
        if reached >= position:
            return None
        metrics.STALE_ANSWERS.inc()
        return reached

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
            rows = await (await conn.execute(POSITIONS)).fetchall()
            self._positions = {schema: position for schema, position, _ in rows}
            foreign = [schema for schema, _, version in rows if self._lacks(schema, version)]
            self._unfed = await self._without_runner(conn, foreign) if foreign else {}
            self._release()
            if self._uncalled and self._waits:
                self._uncalled = False
                await conn.execute(CALL, (CHANNEL, HURRY))

    def _lacks(self, schema: str, version: int) -> bool:
        """Whether it is a copy of a projection of this program that this one can't feed."""
        return schema in self._versions and version not in self._versions[schema]

    async def _without_runner(
        self, conn: LiveAsyncConnection[TupleRow], schemas: Collection[str]
    ) -> dict[str, float]:
        """Those copies that no process runs, with the moment at which that was seen first."""
        held = {key for (key,) in await (await conn.execute(ACTIVE, (LOCK_CLASS,))).fetchall()}
        now = time.monotonic()
        unfed = {s: self._unfed.get(s, now) for s in schemas if lock_key(s) not in held}
        for schema in unfed.keys() - self._unfed.keys():
            log.warning("read_model_unfed", projection=schema, position=self._positions[schema])
        return unfed

    def _release(self) -> None:
        long_ago = time.monotonic() - UNFED_SECONDS
        standing = {schema for schema, since in self._unfed.items() if since <= long_ago}
        for wait in list(self._waits):
            if self._is_over(wait, standing):
                self._waits.discard(wait)
                if not wait.reached.done():
                    wait.reached.set_result(None)

    def _is_over(self, wait: Wait, standing: Collection[str]) -> bool:
        """Whether each of its projections has come as far as is wanted, or stands still."""
        return all(
            self._positions.get(name, -1) >= wait.position or name in standing
            for name in wait.names
        )

    def _fail(self, error: Error) -> None:
        for wait in self._waits:
            if not wait.reached.done():
                wait.reached.set_exception(error)

"""Freshness: a query waits until its read models include the position that its client has seen.

One poller serves all waiting queries of a process, and runs only while there are some.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import structlog
from psycopg import Error
from psycopg.errors import UndefinedTable
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from engine.overview import ACTIVE
from engine.projection import Projection
from engine.subscription import EVENTS, HURRY, NOTIFY
from infra.advisory_locks import LockClass, copy_lock
from infra.http.shapes import BEGINNING, Position
from infra.metrics import counter
from infra.postgres.connection import LiveAsyncConnection

log = structlog.get_logger(__name__)

Pool = AsyncConnectionPool[LiveAsyncConnection[TupleRow]]

POLL_SECONDS = 0.01
# A query with no time left still gets one look.
SHORTEST_WAIT_SECONDS = 0.1
# A call may come just before what is waited for can be read (from Kafka, say): hence again.
CALL_SECONDS = 0.1
READ_MODELS = b"""
SELECT subscription, position, 0, version FROM backlot_checkpoints WHERE kind = 'projection'
"""
# A process of the release before that takes over from another one needs less.
UNFED_SECONDS = 2.0

STALE_ANSWERS = counter(
    "backlot_stale_answers",
    "Answers older than was asked for, since no process can feed a read model before its replay.",
)


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
    """What an answer has to include, and until when it may wait for that (by `time.monotonic`).

    `admit` hears how far in the log the answer is, where that is less and can't be changed.
    """

    position: Position = BEGINNING
    deadline: float = 0.0
    admit: Callable[[int], None] = lambda position: None

    @property
    def is_asked(self) -> bool:
        """Return whether the client named a position."""
        return self.position != BEGINNING

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


WHATEVER_THERE_IS = Freshness()


@dataclass(slots=True, eq=False)
class Wait:
    """A query that waits for each of these names to reach its position."""

    wanted: Mapping[str, Position]
    reached: asyncio.Future[None]


class Waiting:
    """Waits for read models, or for consumers; to be used from one event loop."""

    def __init__(
        self,
        pool: Pool,
        projections: Iterable[Projection] = (),
        *,
        query: bytes = READ_MODELS,
        log_pool: Pool | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """`query` says on `pool` how far each is; they are called where the log is.

        `projections` are those of this program: it can tell which copies it can't feed. Whatever
        else is waited for is assumed to be fed by some process.
        """
        self._pool = pool
        self._query = query
        self._log_pool = log_pool or pool
        self._versions = {each.schema: each.versions for each in projections}
        # Copies of versions that this program can't feed, and since when none does.
        self._unfed: dict[str, float] = {}
        self._poll_seconds = poll_seconds
        self._waits: set[Wait] = set()
        self._positions: Mapping[str, Position] = {}
        self._poller: asyncio.Task[None] | None = None
        # Whether a query has begun to wait since the last call to hurry, and when that call was.
        self._uncalled = False
        self._called = float("-inf")

    async def until(self, wanted: Mapping[str, Position], timeout_seconds: float) -> int | None:
        """Return when each of these (by schema, or by consumer) has taken its position in.

        A copy that no process can feed until its replay has ended is not waited for: then this
        returns how far in the log the one that is farthest behind has come; otherwise None. Raise
        ReadModelBehind after the timeout, and what the database raises when it is away.
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
            if not self._is_over(wait, self._unfed):
                raise ReadModelBehind(wanted, {name: self._at(name) for name in wanted}) from error
        finally:
            self._waits.discard(wait)
        behind = [self._at(name).events for name in wanted if not self._covers(name, wanted[name])]
        if not behind:
            return None
        STALE_ANSWERS.inc()
        return min(behind)

    async def _poll(self) -> None:
        try:
            while self._waits:
                await self._look()
                self._release()
                await self._call()
                if self._waits:
                    await asyncio.sleep(self._poll_seconds)
        except Error as error:
            for wait in self._waits:
                if not wait.reached.done():
                    wait.reached.set_exception(error)
        finally:
            self._poller = None

    async def _look(self) -> None:
        async with self._pool.connection() as conn:
            try:
                rows = await (await conn.execute(self._query)).fetchall()
            except UndefinedTable:
                # None of them has ever begun.
                rows = []
            self._positions = {name: Position(*numbers) for name, *numbers, _ in rows}
            # Copies of read models of this program, of versions that it can't feed.
            fed = self._versions
            foreign = [name for name, *_, at in rows if name in fed and at not in fed[name]]
            self._unfed = await self._without_runner(conn, foreign) if foreign else {}

    async def _call(self) -> None:
        """Have what is waited for hurry."""
        if self._waits and (self._uncalled or time.monotonic() - self._called >= CALL_SECONDS):
            self._uncalled, self._called = False, time.monotonic()
            async with self._log_pool.connection() as conn:
                await conn.execute(NOTIFY, (EVENTS, HURRY))

    async def _without_runner(
        self, conn: LiveAsyncConnection[TupleRow], schemas: Collection[str]
    ) -> dict[str, float]:
        """Return the copies that no process runs, with the time of the first look."""
        active = await conn.execute(ACTIVE, (int(LockClass.PROJECTION),))
        held = {key for (key,) in await active.fetchall()}
        now = time.monotonic()
        unfed = {s: self._unfed.get(s, now) for s in schemas if copy_lock(s).key not in held}
        for schema in unfed.keys() - self._unfed.keys():
            position = self._at(schema).events
            log.warning("read_model_unfed", projection=schema, position=position)
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
        """Return whether each that is waited for has come as far as is wanted, or stands still."""
        return all(
            name in standing or self._covers(name, position)
            for name, position in wait.wanted.items()
        )

    def _covers(self, name: str, position: Position) -> bool:
        return name in self._positions and self._positions[name].covers(position)

    def _at(self, name: str) -> Position:
        return self._positions.get(name, BEGINNING)

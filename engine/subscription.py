"""Subscriptions: what projections, consumers, the relay, counters and operations run on.

A subscription takes the lead, reads from its source behind its checkpoint and hands each batch to
its handler, which moves the checkpoint (in the transaction of its rows, where its work is rows). It
goes on after whatever stopped it. The connection that works is the one that holds the leader lock.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from enum import StrEnum
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from psycopg import Connection
from psycopg.rows import TupleRow

from engine.connections import Backoff, ThreadedConnection, connected
from engine.leader_lock import TAKEOVER_SECONDS, Leader
from engine.messages import Place
from engine.sources import Source
from infra.cancellation import to_the_end, together
from infra.errors import describe

LOOK_SECONDS = 1.0
"""How often a handler looks at what is beside its batches."""

B = TypeVar("B")


class State(StrEnum):
    """What a subscription does in this process."""

    STARTING = "starting"
    STANDBY = "standby"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    OUTDATED = "outdated"
    UNAVAILABLE = "unavailable"


class Resting(Exception):
    """A checkpoint that this process can't go on from, in which state that is, and why."""

    def __init__(self, state: State, detail: str | None = None) -> None:
        super().__init__(detail)
        self.state = state
        self.detail = detail


class Restart(Exception):
    """Begin again at the checkpoint, after a pause in seconds; this process leads on."""

    def __init__(self, pause_seconds: float = 0.0) -> None:
        super().__init__()
        self.pause_seconds = pause_seconds


class CheckpointReader(Protocol):
    """How far a subscription has come; it lies where its work does, and its handler moves it."""

    def prepare(self, conn: Connection[TupleRow]) -> None:
        """Make what the checkpoint needs, where it is missing."""

    def look(self, conn: Connection[TupleRow]) -> Mapping[Place, int]:
        """Return the places behind which to go on; raise Resting where that is not allowed here."""


class NoCheckpoint:
    """The checkpoint of a handler that knows by itself what there is to do."""

    def prepare(self, conn: Connection[TupleRow]) -> None:
        """It needs nothing."""

    def look(self, conn: Connection[TupleRow]) -> Mapping[Place, int]:
        return {}


class Handler(ABC, Generic[B]):
    """What is done about batches; it moves the checkpoint when a batch is dealt with."""

    async def start(self, conn: ThreadedConnection) -> None:
        """Get ready for the first batch behind the checkpoint."""

    @abstractmethod
    async def handle(self, conn: ThreadedConnection, batch: B) -> None:
        """Deal with a batch; raise Restart to be given it again from the checkpoint on."""

    async def look_aside(self, conn: ThreadedConnection) -> None:
        """Do once a second what need not be done for every batch."""

    async def stop(self) -> None:
        """Let go of what `start` opened; safe before it and again."""

    def beside(self, conn: ThreadedConnection) -> Sequence[Coroutine[Any, Any, None]]:
        """Return what goes on beside the batches while this process leads; it has no end."""
        return ()

    def enter(self, state: State, detail: str | None = None) -> None:
        """Hear that the subscription does not follow its source now, and why."""


class Subscription(Generic[B]):
    """One handler on its source, active in one process at a time, or in each."""

    def __init__(
        self,
        database_url: str,
        name: str,
        *,
        source: Source[B],
        checkpoint: CheckpointReader,
        handler: Handler[B],
        on_error: Callable[[Exception], None],
        leader: Leader,
        reading_url: str | None = None,
        poll_seconds: float = 1.0,
    ) -> None:
        """`name` is that of its connection, to the database of its checkpoint.

        `on_error` gets each error that stopped it, before it goes on. With `reading_url` the source
        has a connection of its own there. `poll_seconds` is how late it may be where a
        notification was lost.
        """
        self.name = name
        self._database_url = database_url
        self._source = source
        self._checkpoint = checkpoint
        self._handler = handler
        self._on_error = on_error
        self._leader = leader
        self._reading_url = reading_url
        self._poll_seconds = poll_seconds
        self._backoff = Backoff()

    async def run(self) -> NoReturn:
        """Follow the source until cancelled."""
        while True:
            try:
                async with connected(self._database_url, self.name) as conn:
                    await conn.do(self._checkpoint.prepare)
                    await self._compete(conn)
            # Whatever it is, the subscription has to go on once it is over.
            except Exception as error:  # noqa: BLE001 - `on_error` logs it
                self._on_error(error)
                self._handler.enter(State.UNAVAILABLE, describe(error))
                await asyncio.sleep(self._backoff.next())

    async def _compete(self, conn: ThreadedConnection) -> NoReturn:
        """Take the lead whenever it is free and the checkpoint is one to go on from."""
        while True:
            try:
                await conn.do(self._checkpoint.look)
                if await conn.do(self._leader.take):
                    await self._lead(conn)
                self._handler.enter(State.STANDBY)
            except Resting as rest:
                self._handler.enter(rest.state, rest.detail)
            self._backoff.reset()
            await asyncio.sleep(TAKEOVER_SECONDS)

    async def _lead(self, conn: ThreadedConnection) -> None:
        try:
            await together(self._keep_following(conn), *self._handler.beside(conn))
        except Resting:
            await conn.do(self._leader.release)
            raise

    async def _keep_following(self, conn: ThreadedConnection) -> None:
        while True:
            places = await conn.do(self._checkpoint.look)
            try:
                async with self._reading(conn) as reader:
                    await self._follow(conn, reader, places)
            except Restart as wish:
                await asyncio.sleep(wish.pause_seconds)

    def _reading(self, conn: ThreadedConnection) -> AbstractAsyncContextManager[ThreadedConnection]:
        """Return the connection that the source reads with."""
        if self._reading_url is None:
            return nullcontext(conn)
        return connected(self._reading_url, f"{self.name}, reading")

    async def _follow(
        self, conn: ThreadedConnection, reader: ThreadedConnection, places: Mapping[Place, int]
    ) -> NoReturn:
        looked = float("-inf")
        try:
            await self._source.start(reader, places)
            await self._handler.start(conn)
            while True:
                batch = await self._source.fetch(self._poll_seconds)
                self._backoff.reset()
                await self._handler.handle(conn, batch)
                if time.monotonic() - looked >= LOOK_SECONDS:
                    looked = time.monotonic()
                    await self._handler.look_aside(conn)
        finally:
            await to_the_end(self._stop())

    async def _stop(self) -> None:
        try:
            await self._source.stop()
        finally:
            await self._handler.stop()

"""Subscriptions: what projections, consumers, the relay, counters and operations run on.

A subscription takes the lead, reads from its source behind its checkpoint and hands each batch to
its handler, which moves the checkpoint (in the transaction of its rows, where its work is rows). It
goes on after whatever stopped it. The connection that works is the one that holds the leader lock.

One LISTEN connection of a process wakes every subscription in it. A notification `hurry` comes from
a query that waits for a read model. It also ends the time in which a subscription lets events
gather.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import nullcontext, suppress
from enum import StrEnum
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import structlog
from psycopg import AsyncConnection, Connection, Cursor, InterfaceError, OperationalError
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from engine import telemetry
from engine.connections import TAKEOVER_SECONDS, Backoff, Leader, ThreadedConnection, connected
from engine.event_store import EVENTS_CHANNEL
from infra.cancellation import cancel, to_the_end, together
from infra.errors import describe
from infra.postgres.connection import open_async_connection

log = structlog.get_logger(__name__)

Place = tuple[str, int]
"""A source and its partition: `("events", 0)`, or a topic of Kafka and its partition."""

EVENTS = EVENTS_CHANNEL
"""The channel of the event log, and of what operators change about its subscriptions."""
CHANNELS = (EVENTS, telemetry.CHANNEL)
HURRY = "hurry"
"""The payload that a waiting query sends on the channel of the event log."""
NOTIFY = b"SELECT pg_notify(%s, %s)"

# What is notified within this time after subscribers were woken is told to them together.
GATHER_SECONDS = 0.01
LOOK_SECONDS = 1.0
"""How often a handler looks at what is beside its batches."""

B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)
L = TypeVar("L", bound="Lagging")


def notify(conn: Connection[Any] | Cursor[Any]) -> None:
    """Wake every subscription of every process, once the transaction is committed."""
    conn.execute(NOTIFY, (EVENTS, ""))


class Notifications:
    """Sets the subscribed events at each notification; a lost one costs only a poll's delay.

    To be used from one event loop.
    """

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._subscribers: dict[str, list[asyncio.Event]] = defaultdict(list)
        self._hurried: list[asyncio.Event] = []
        # When subscribers of a channel were woken last, and the channels where they soon will be.
        self._woken: dict[str, float] = {}
        self._soon: set[str] = set()

    def subscribe(self, *channels: str) -> asyncio.Event:
        """Return an event that is set when something came in these channels, or in any."""
        wake = asyncio.Event()
        for channel in channels or CHANNELS:
            self._subscribers[channel].append(wake)
        return wake

    def hurried(self) -> asyncio.Event:
        """Return an event that is set when a query waits; after those of `subscribe` are."""
        hurry = asyncio.Event()
        self._hurried.append(hurry)
        return hurry

    async def run(self) -> None:
        """Listen until cancelled, again and again where the database goes away."""
        backoff = Backoff()
        while True:
            try:
                async with await open_async_connection(self._database_url, "listener") as conn:
                    await self._listen(conn, backoff)
            except (OperationalError, InterfaceError) as error:
                log.warning("listener_disconnected", error=" ".join(str(error).split()))
                await asyncio.sleep(backoff.next())

    async def _listen(self, conn: AsyncConnection[TupleRow], backoff: Backoff) -> None:
        # All channels: subscribers may come later.
        for channel in CHANNELS:
            await conn.execute(SQL("LISTEN {}").format(Identifier(channel)))
        backoff.reset()
        # Something may have been recorded while there was no listener.
        for channel in CHANNELS:
            self._wake(channel)
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[None] = loop.create_future()

        def read() -> None:
            try:
                conn.pgconn.consume_input()
                while note := conn.pgconn.notifies():
                    self._take(note.relname.decode(), note.extra.decode(), loop)
            except (OperationalError, InterfaceError) as error:
                loop.remove_reader(socket)
                if not lost.done():
                    lost.set_exception(error)

        # Without psycopg's own way of waiting: under load this happens hundreds of times a second.
        socket = conn.fileno()
        loop.add_reader(socket, read)
        try:
            read()
            await lost
        finally:
            loop.remove_reader(socket)

    def _take(self, channel: str, payload: str, loop: asyncio.AbstractEventLoop) -> None:
        if payload == HURRY:
            self._wake(channel)
            for event in self._hurried:
                event.set()
        elif channel not in self._soon:
            pause = self._woken.get(channel, float("-inf")) + GATHER_SECONDS - loop.time()
            if pause > 0:
                self._soon.add(channel)
                loop.call_later(pause, self._wake, channel)
            else:
                self._wake(channel)

    def _wake(self, channel: str) -> None:
        self._soon.discard(channel)
        self._woken[channel] = asyncio.get_running_loop().time()
        for wake in self._subscribers[channel]:
            wake.set()


async def happened(event: asyncio.Event, at_most_seconds: float) -> None:
    """Return when it is set, or after that time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(at_most_seconds):
            await event.wait()


async def woken(wake: asyncio.Event, at_most_seconds: float) -> None:
    """Return when it is set, or after that time; clear it."""
    await happened(wake, at_most_seconds)
    wake.clear()


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


class Source(Protocol[B_co]):
    """Where batches come from, in order."""

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        """Begin behind these places; at the beginning where there is none."""

    async def fetch(self, at_most_seconds: float) -> B_co:
        """Return what comes next; empty when nothing came in that time."""

    async def stop(self) -> None:
        """Let go of what `start` opened; safe before it and again."""


class Lagging(Protocol):
    """A batch that says how much lies behind it."""

    @property
    def lag(self) -> int: ...


class Prefetch(Source[L]):
    """A source that reads on while what it gave is dealt with, wherever more waits.

    The database answers the one and stores the other. Places go with their batch: what was read
    ahead and not yet handed over is in none.
    """

    def __init__(self, source: Source[L]) -> None:
        self._source = source
        self._next: asyncio.Task[L] | None = None

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        await self._source.start(conn, places)

    async def fetch(self, at_most_seconds: float) -> L:
        reading, self._next = self._next, None
        fetched = await (reading or self._source.fetch(at_most_seconds))
        if fetched.lag:
            self._next = asyncio.create_task(self._source.fetch(at_most_seconds))
        return fetched

    async def stop(self) -> None:
        """Forget what was read ahead: the next start begins behind the checkpoint."""
        reading, self._next = self._next, None
        if reading is not None:
            await cancel(reading)
            ended = reading.done() and not reading.cancelled()
            error = reading.exception() if ended else None
            if isinstance(error, Exception):
                log.info("read_ahead_failed", error=describe(error))
        await self._source.stop()


class Wakeups:
    """A source that only says when to look; its handler finds out by itself what there is."""

    def __init__(self, wake: asyncio.Event) -> None:
        self._wake = wake

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        """Look at once: something may have happened before."""
        self._wake.set()

    async def fetch(self, at_most_seconds: float) -> None:
        await woken(self._wake, at_most_seconds)

    async def stop(self) -> None:
        """It holds nothing."""


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
            url, purpose = self._reading_url, f"{self.name}, reading"
            try:
                async with connected(url, purpose) if url else nullcontext(conn) as reader:
                    await self._follow(conn, reader, places)
            except Restart as wish:
                await asyncio.sleep(wish.pause_seconds)

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

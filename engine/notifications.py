"""Notifications: one LISTEN connection of a process wakes every subscription in it.

A notification `hurry` comes from a query that waits for a read model. It also ends the time in
which a subscription lets events gather.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from typing import Any

import structlog
from psycopg import AsyncConnection, Connection, Cursor, InterfaceError, OperationalError
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from engine import telemetry
from engine.connections import Backoff
from engine.event_store import EVENTS_CHANNEL
from infra.postgres.connection import open_async_connection

log = structlog.get_logger(__name__)

EVENTS = EVENTS_CHANNEL
"""The channel of the event log, and of what operators change about its subscriptions."""
CHANNELS = (EVENTS, telemetry.CHANNEL)
HURRY = "hurry"
"""The payload that a waiting query sends on the channel of the event log."""
NOTIFY = b"SELECT pg_notify(%s, %s)"

# Notifications that arrive within this time after one are answered together.
GATHER_SECONDS = 0.005
LOOK_UP_SECONDS = 5.0


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
        while True:
            hurry = False
            async for note in conn.notifies(timeout=LOOK_UP_SECONDS, stop_after=1):
                self._wake(note.channel)
                hurry |= note.payload == HURRY
            if hurry:
                for event in self._hurried:
                    event.set()
            else:
                await asyncio.sleep(GATHER_SECONDS)

    def _wake(self, channel: str) -> None:
        for wake in self._subscribers[channel]:
            wake.set()


async def woken(wake: asyncio.Event, at_most_seconds: float) -> None:
    """Return when it is set, or after that time; clear it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(at_most_seconds):
            await wake.wait()
    wake.clear()

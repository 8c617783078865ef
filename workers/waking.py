"""Wakes the followers of this process when something was recorded: one connection for all.

A notification that says `hurry` comes from somebody who waits for what a follower makes: then it
also cuts short the time in which it lets events gather.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog
from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from infra import telemetry
from infra.connecting import open_async_connection
from projections.connecting import Backoff
from projections.log import CHANNEL, HURRY

log = structlog.get_logger(__name__)

# Notifications that arrive within this time after one are answered together.
GATHER_SECONDS = 0.005
LOOK_UP_SECONDS = 5.0


class Waker:
    """Sets the subscribed events at each notification; a lost one costs only a poll's delay."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._subscribers: list[asyncio.Event] = []
        self._hurried: list[asyncio.Event] = []

    def subscribe(self) -> asyncio.Event:
        """An event that is set when something was recorded."""
        wake = asyncio.Event()
        self._subscribers.append(wake)
        return wake

    def hurried(self) -> asyncio.Event:
        """An event that is set when somebody waits; by then those that were subscribed are, too."""
        hurry = asyncio.Event()
        self._hurried.append(hurry)
        return hurry

    async def run(self) -> None:
        """Listen until cancelled, again and again where the database goes away."""
        backoff = Backoff()
        while True:
            try:
                async with await open_async_connection(self._database_url, "waker") as conn:
                    await self._listen(conn, backoff)
            except (OperationalError, InterfaceError) as error:
                log.warning("waker_disconnected", error=" ".join(str(error).split()))
                await asyncio.sleep(backoff.next())

    async def _listen(self, conn: AsyncConnection[TupleRow], backoff: Backoff) -> None:
        for channel in (CHANNEL, telemetry.CHANNEL):
            await conn.execute(SQL("LISTEN {}").format(Identifier(channel)))
        backoff.reset()
        # Something may have been recorded while nobody listened.
        self._wake_all()
        while True:
            async for note in conn.notifies(timeout=LOOK_UP_SECONDS, stop_after=1):
                self._wake_all()
                if note.payload == HURRY:
                    for hurry in self._hurried:
                        hurry.set()
            await asyncio.sleep(GATHER_SECONDS)

    def _wake_all(self) -> None:
        for wake in self._subscribers:
            wake.set()


async def woken(wake: asyncio.Event, at_most_seconds: float) -> None:
    """Return when it is set, or after that time; clears it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(at_most_seconds):
            await wake.wait()
    wake.clear()

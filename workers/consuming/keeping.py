"""Runs one keeper: what it stores and how far it is change in one transaction.

What comes again after a crash was either stored with the places, or not at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.metrics import CONSUMER_FAILURES
from projections.poison import describe
from workers.consuming.ahead import Ahead
from workers.consuming.messages import Dead, Fetched, Keeper, Place, Poison, Received, Source
from workers.consuming.running import Runner, Write
from workers.leading import Lead, connected

# What is taken at once where more waits: a larger batch costs less per message.
BEHIND_EVENTS = 10_000


class KeeperRunner(Runner):
    """A keeper on its source; its places lie in the database of its rows."""

    def __init__(
        self,
        database_url: str,
        keeper: Keeper,
        source: Source,
        *,
        log_url: str,
        batch_events: int,
        flush_seconds: float,
        poll_seconds: float = 1.0,
        hurried: asyncio.Event | None = None,
    ) -> None:
        """A batch ends with `batch_events` messages, or `flush_seconds` after its first one.

        It ends at once while somebody waits for it, which `hurried` tells.
        `database_url` is where the rows are kept, `log_url` where the event log is.
        """
        super().__init__(
            database_url, keeper.name, Ahead(source), poll_seconds=poll_seconds, hurried=hurried
        )
        self._keeper = keeper
        self._log_url = log_url
        self._batch_events = batch_events
        self._flush_seconds = flush_seconds

    async def _prepare(self, lead: Lead) -> None:
        await super()._prepare(lead)
        await lead.do(self._keeper.prepare)

    def _reading(self, lead: Lead) -> AbstractAsyncContextManager[Lead]:
        # Not the one that stores, even where both are in one database: it reads on meanwhile.
        return connected(self._log_url, f"consumer {self._name}, reading")

    async def _next(self) -> Fetched:
        fetched = await super()._next()
        flush_at = time.monotonic() + self._flush_seconds
        while not (fetched.is_empty or self._hurried.is_set()):
            wanted = max(self._batch_events, BEHIND_EVENTS if fetched.lag else 0)
            left = flush_at - time.monotonic()
            if left <= 0 or len(fetched.received) + len(fetched.dead) >= wanted:
                break
            more = await self._source.fetch(min(left, self._poll_seconds))
            fetched = joined(fetched, more)
        return fetched

    async def _work(
        self, lead: Lead, received: Sequence[Received], dead: Sequence[Dead], write: Write
    ) -> tuple[Sequence[Received], Sequence[Dead]]:
        fresh = {each.id: each for each in received}
        buried = list(dead)
        await self._bury(buried)
        while True:
            try:
                await lead.do(self._store, list(fresh.values()), buried, write)
                break
            except Poison as poison:
                found = [Dead(fresh.pop(poison.message.id).raw, poison.reason, poison.message.id)]
            except (psycopg.DataError, psycopg.IntegrityError):
                found = await self._culprits(lead, fresh)
            CONSUMER_FAILURES.labels(self._name, "handler").inc()
            await self._bury(found)
            buried += found
        await self._keeper.stored(lead)
        return list(fresh.values()), buried

    def _store(
        self,
        conn: Connection[TupleRow],
        messages: Sequence[Received],
        dead: Sequence[Dead],
        write: Write,
    ) -> None:
        with conn.transaction():
            self._keeper.store(conn, messages)
            # Whether a message is known the rows themselves say.
            write(conn, (), dead)

    async def _culprits(self, lead: Lead, fresh: dict[UUID, Received]) -> list[Dead]:
        """Take out those that the database does not take even alone; raises when there is none."""
        found: list[Dead] = []
        for message in list(fresh.values()):
            try:
                await lead.do(self._try, message)
            except (psycopg.DataError, psycopg.IntegrityError) as error:
                found.append(Dead(message.raw, describe(error), message.id))
                del fresh[message.id]
        if not found:
            raise RuntimeError(f"{self._name}: a batch can't be stored, each of its messages can")
        return found

    def _try(self, conn: Connection[TupleRow], message: Received) -> None:
        with conn.transaction(force_rollback=True):
            self._keeper.store(conn, [message])


def joined(one: Fetched, more: Fetched) -> Fetched:
    """Two stretches, the second behind the first, as one."""
    places: dict[Place, int] = {**one.places, **more.places}
    return Fetched(
        [*one.received, *more.received],
        [*one.dead, *more.dead],
        places,
        more.lag,
        max(one.lag_seconds, more.lag_seconds),
    )

"""What every runner of a consumer does: lead, read, have the work done, look aside, go on."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.metrics import (
    CONSUMED,
    CONSUMER_DEAD,
    CONSUMER_DIED,
    CONSUMER_FAILURES,
    CONSUMER_LAG,
    CONSUMER_LAG_SECONDS,
)
from infra.cancellation import to_the_end
from projections.connecting import Backoff, is_outage
from projections.poison import describe
from workers.consuming import ledger
from workers.consuming.messages import Dead, Fetched, Place, Raw, Received, Source, Unreadable
from workers.leading import Lead, leading

log = structlog.get_logger(__name__)

# How often positions are written down where nothing was wanted, and redrives are looked for.
LOOK_SECONDS = 1.0
REDRIVE_MESSAGES = 100

Write = Callable[[Connection[TupleRow], Iterable[Received], Iterable[Dead]], None]
"""Writes down what became of messages: those that were handled, and the dead ones."""


class Runner(ABC):
    """One consumer on its source, active in one process at a time."""

    def __init__(
        self,
        database_url: str,
        name: str,
        source: Source,
        *,
        poll_seconds: float = 1.0,
        hurried: asyncio.Event | None = None,
    ) -> None:
        """`poll_seconds` is how late it may be where a notification was lost.

        `hurried` is set while somebody waits for what is made of what was recorded.
        """
        self._database_url = database_url
        self._name = name
        self._source = source
        self._poll_seconds = min(poll_seconds, LOOK_SECONDS)
        self._hurried = hurried or asyncio.Event()
        self._backoff = Backoff()
        self._looked = 0.0
        self._unwritten: dict[Place, int] = {}

    async def run(self) -> None:
        """Consume until cancelled; goes on by itself after whatever stopped it."""
        while True:
            try:
                async with leading(self._database_url, f"consumer {self._name}") as lead:
                    await self._follow(lead)
            # Whatever it is, the consumer has to go on once it is over.
            except Exception as error:
                log.warning("consumer_interrupted", exc_info=shown(error), **self._failed(error))
                await asyncio.sleep(self._backoff.next())

    @abstractmethod
    async def _work(
        self, lead: Lead, received: Sequence[Received], dead: Sequence[Dead], write: Write
    ) -> tuple[Sequence[Received], Sequence[Dead]]:
        """Have messages handled and what became of them written; returns it, `dead` included."""

    async def _prepare(self, lead: Lead) -> None:
        """What has to be there before the first message."""
        await lead.do(ledger.install)

    def _reading(self, lead: Lead) -> AbstractAsyncContextManager[Lead]:
        """The connection that the source reads with."""
        return nullcontext(lead)

    async def _next(self) -> Fetched:
        """The next messages."""
        return await self._source.fetch(self._poll_seconds)

    async def _follow(self, lead: Lead) -> None:
        await self._prepare(lead)
        places = await lead.do(ledger.places, self._name)
        self._unwritten, self._looked = {}, 0.0
        async with self._reading(lead) as reader:
            try:
                await self._source.start(reader, places)
                log.info("consumer_active", consumer=self._name, source=self._source.kind)
                while True:
                    fetched = await self._next()
                    hurried = self._hurried.is_set()
                    self._hurried.clear()
                    self._backoff.reset()
                    await self._deal_with(lead, fetched)
                    if hurried:
                        await self._write_places(lead)
                    if time.monotonic() - self._looked >= LOOK_SECONDS:
                        await self._look_aside(lead)
            finally:
                await to_the_end(self._source.stop())
                self._withdraw()

    async def _deal_with(self, lead: Lead, fetched: Fetched) -> None:
        CONSUMER_LAG.labels(self._name).set(fetched.lag + len(fetched.received))
        CONSUMER_LAG_SECONDS.labels(self._name).set(fetched.lag_seconds)
        self._unwritten |= fetched.places
        if not fetched.is_empty:
            moved = dict(self._unwritten)

            def write(
                conn: Connection[TupleRow], handled: Iterable[Received], dead: Iterable[Dead]
            ) -> None:
                ledger.settle(conn, self._name, handled, dead, moved)

            handled, dead = await self._work(lead, fetched.received, fetched.dead, write)
            self._unwritten = {}
            self._count(handled, dead)
        CONSUMER_LAG.labels(self._name).set(fetched.lag)
        if fetched.lag == 0:
            CONSUMER_LAG_SECONDS.labels(self._name).set(0)

    async def _look_aside(self, lead: Lead) -> None:
        """What need not be done for every batch: redrives, positions without messages, a gauge."""
        self._looked = time.monotonic()
        wanted = await lead.do(ledger.wanted, self._name, REDRIVE_MESSAGES)
        if wanted:
            await self._redrive(lead, wanted)
        await self._write_places(lead)
        CONSUMER_DEAD.labels(self._name).set(await lead.do(ledger.count_dead, self._name))

    async def _write_places(self, lead: Lead) -> None:
        if self._unwritten:
            await lead.do(ledger.settle, self._name, (), (), self._unwritten)
            self._unwritten = {}

    async def _redrive(self, lead: Lead, wanted: Sequence[Raw]) -> None:
        readable: list[Received] = []
        unreadable: list[Dead] = []
        for raw in wanted:
            try:
                readable.append(await self._source.reread(raw))
            except Unreadable as error:
                unreadable.append(Dead(raw, str(error)))

        def write(
            conn: Connection[TupleRow], handled: Iterable[Received], dead: Iterable[Dead]
        ) -> None:
            dead = list(dead)
            # Those that were handled before, however they died, need not be kept either.
            poisonous = {each.id for each in dead if each.id is not None}
            revived = [each for each in readable if each.id not in poisonous]
            ledger.settle_redriven(conn, self._name, revived, dead)

        handled, dead = await self._work(lead, readable, unreadable, write)
        log.info("consumer_redrove", consumer=self._name, handled=len(handled))
        self._count(handled, dead)

    async def _bury(self, dead: Sequence[Dead]) -> None:
        if not dead:
            return
        for each in dead:
            log.error(
                "message_dead",
                consumer=self._name,
                topic=each.raw.topic,
                position=each.raw.offset,
                id=str(each.id),
                reason=each.reason,
            )
        await self._source.bury(self._name, dead)

    def _failed(self, error: Exception, step: str = "source") -> dict[str, str]:
        """Count a failure; returns what the log is to say of it."""
        CONSUMER_FAILURES.labels(self._name, step).inc()
        return {"consumer": self._name, "step": step, "error": describe(error)}

    def _withdraw(self) -> None:
        """Whoever is active next tells how far the consumer is."""
        for gauge in (CONSUMER_LAG, CONSUMER_LAG_SECONDS, CONSUMER_DEAD):
            gauge.remove(self._name)

    def _count(self, handled: Sequence[Received], dead: Sequence[Dead]) -> None:
        for topic, count in Counter(message.topic for message in handled).items():
            CONSUMED.labels(self._name, topic).inc(count)
        for topic, count in Counter(each.raw.topic for each in dead).items():
            CONSUMER_DIED.labels(self._name, topic).inc(count)


def shown(error: Exception) -> Exception | None:
    """The traceback, of what is more than an outage."""
    return None if is_outage(error) else error

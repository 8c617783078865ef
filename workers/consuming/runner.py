"""Runs one consumer: handles each message once for all that is known, and loses none.

What is handled is written down together with how far the consumer is; a crash before that makes
the same messages come again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog

from infra import metrics
from projections.connecting import Backoff, is_outage
from projections.poison import describe
from workers.consuming import ledger
from workers.consuming.messages import (
    Consumer,
    Dead,
    Fetched,
    Place,
    Poison,
    Raw,
    Received,
    Source,
    Unreadable,
)
from workers.leading import Lead, leading

log = structlog.get_logger(__name__)

# How often positions are written down where nothing was wanted, and redrives are looked for.
LOOK_SECONDS = 1.0
REDRIVE_MESSAGES = 100


class ConsumerRunner:
    """One consumer on its source, active in one process at a time."""

    def __init__(
        self, database_url: str, consumer: Consumer, source: Source, *, poll_seconds: float = 1.0
    ) -> None:
        """`poll_seconds` is how late it may be where a notification was lost."""
        self._database_url = database_url
        self._consumer = consumer
        self._source = source
        self._poll_seconds = min(poll_seconds, LOOK_SECONDS)
        self._backoff = Backoff()
        self._looked = 0.0
        self._unwritten: dict[Place, int] = {}

    async def run(self) -> None:
        """Consume until cancelled; goes on by itself after whatever stopped it."""
        while True:
            try:
                async with leading(self._database_url, f"consumer {self._consumer.name}") as lead:
                    await self._follow(lead)
            # Whatever it is, the consumer has to go on once it is over.
            except Exception as error:
                log.warning("consumer_interrupted", exc_info=_shown(error), **self._failed(error))
                await asyncio.sleep(self._backoff.next())

    async def _follow(self, lead: Lead) -> None:
        name = self._consumer.name
        await lead.do(ledger.install)
        places = await lead.do(ledger.places, name)
        self._unwritten, self._looked = {}, 0.0
        try:
            await self._source.start(lead, places)
            log.info("consumer_active", consumer=name, source=self._source.kind)
            while True:
                fetched = await self._source.fetch(self._poll_seconds)
                self._backoff.reset()
                await self._deal_with(lead, fetched)
                if time.monotonic() - self._looked >= LOOK_SECONDS:
                    await self._look_aside(lead)
        finally:
            await self._source.stop()
            self._withdraw()

    async def _deal_with(self, lead: Lead, fetched: Fetched) -> None:
        name = self._consumer.name
        metrics.CONSUMER_LAG.labels(name).set(fetched.lag + len(fetched.received))
        metrics.CONSUMER_LAG_SECONDS.labels(name).set(fetched.lag_seconds)
        self._unwritten |= fetched.places
        if not fetched.is_empty:
            handled, dead = await self._handle(lead, fetched.received)
            dead = [*fetched.dead, *dead]
            await self._bury(dead)
            await lead.do(ledger.settle, name, handled, dead, self._unwritten)
            self._unwritten = {}
            _count(name, handled, dead)
        metrics.CONSUMER_LAG.labels(name).set(fetched.lag)
        if fetched.lag == 0:
            metrics.CONSUMER_LAG_SECONDS.labels(name).set(0)

    async def _handle(
        self, lead: Lead, received: Sequence[Received]
    ) -> tuple[list[Received], list[Dead]]:
        """Have what is new handled, however long that takes; returns it, and what is poison."""
        known = await lead.do(ledger.known, self._consumer.name, [each.id for each in received])
        fresh = {each.id: each for each in received if each.id not in known}
        dead: list[Dead] = []
        while fresh:
            try:
                await self._consumer.handle(list(fresh.values()))
                break
            except Poison as poison:
                culprit = fresh.pop(poison.message.id)
                dead.append(Dead(culprit.raw, poison.reason, culprit.id))
            except Exception as error:
                told = self._failed(error, "handler")
                log.warning("consumer_interrupted", exc_info=_shown(error), **told)
                await asyncio.sleep(self._backoff.next())
        return list(fresh.values()), dead

    async def _look_aside(self, lead: Lead) -> None:
        """What need not be done for every batch: redrives, positions without messages, a gauge."""
        name = self._consumer.name
        self._looked = time.monotonic()
        wanted = await lead.do(ledger.wanted, name, REDRIVE_MESSAGES)
        if wanted:
            await self._redrive(lead, wanted)
        if self._unwritten:
            await lead.do(ledger.settle, name, (), (), self._unwritten)
            self._unwritten = {}
        metrics.CONSUMER_DEAD.labels(name).set(await lead.do(ledger.count_dead, name))

    async def _redrive(self, lead: Lead, wanted: Sequence[Raw]) -> None:
        readable: list[Received] = []
        dead: list[Dead] = []
        for raw in wanted:
            try:
                readable.append(await self._source.reread(raw))
            except Unreadable as error:
                dead.append(Dead(raw, str(error)))
        handled, poison = await self._handle(lead, readable)
        dead += poison
        # Those that were handled before, however they died, need not be kept either.
        poisonous = {each.id for each in poison}
        revived = [each for each in readable if each.id not in poisonous]
        await self._bury(dead)
        await lead.do(ledger.settle_redriven, self._consumer.name, revived, dead)
        log.info("consumer_redrove", consumer=self._consumer.name, handled=len(handled))
        _count(self._consumer.name, handled, dead)

    async def _bury(self, dead: Sequence[Dead]) -> None:
        if not dead:
            return
        for each in dead:
            log.error(
                "message_dead",
                consumer=self._consumer.name,
                topic=each.raw.topic,
                position=each.raw.offset,
                id=str(each.id),
                reason=each.reason,
            )
        await self._source.bury(self._consumer.name, dead)

    def _failed(self, error: Exception, step: str = "source") -> dict[str, str]:
        """Count a failure; returns what the log is to say of it."""
        metrics.CONSUMER_FAILURES.labels(self._consumer.name, step).inc()
        return {"consumer": self._consumer.name, "step": step, "error": describe(error)}

    def _withdraw(self) -> None:
        """Whoever is active next tells how far the consumer is."""
        for gauge in (metrics.CONSUMER_LAG, metrics.CONSUMER_LAG_SECONDS, metrics.CONSUMER_DEAD):
            gauge.remove(self._consumer.name)


def _shown(error: Exception) -> Exception | None:
    """The traceback, of what is more than an outage."""
    return None if is_outage(error) else error


def _count(consumer: str, handled: Sequence[Received], dead: Sequence[Dead]) -> None:
    for message in handled:
        metrics.CONSUMED.labels(consumer, message.topic).inc()
    for each in dead:
        metrics.CONSUMER_DIED.labels(consumer, each.raw.topic).inc()

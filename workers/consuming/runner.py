"""Runs one consumer: handles each message once for all that is known, and loses none.

What is handled is written down together with how far the consumer is; a crash before that makes
the same messages come again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from workers.consuming import ledger
from workers.consuming.messages import Consumer, Dead, Poison, Received, Source
from workers.consuming.running import Runner, Write, shown
from workers.leading import Lead

log = structlog.get_logger(__name__)


class ConsumerRunner(Runner):
    """A consumer whose work lies outside of the database of its places."""

    def __init__(
        self, database_url: str, consumer: Consumer, source: Source, *, poll_seconds: float = 1.0
    ) -> None:
        """`poll_seconds` is how late it may be where a notification was lost."""
        super().__init__(database_url, consumer.name, source, poll_seconds=poll_seconds)
        self._consumer = consumer

    async def _work(
        self, lead: Lead, received: Sequence[Received], dead: Sequence[Dead], write: Write
    ) -> tuple[Sequence[Received], Sequence[Dead]]:
        handled, poison = await self._handle(lead, received)
        dead = [*dead, *poison]
        await self._bury(dead)
        await lead.do(write, handled, dead)
        return handled, dead

    async def _handle(
        self, lead: Lead, received: Sequence[Received]
    ) -> tuple[list[Received], list[Dead]]:
        """Have what is new handled, however long that takes; returns it, and what is poison."""
        known = await lead.do(ledger.known, self._name, [each.id for each in received])
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
                log.warning("consumer_interrupted", exc_info=shown(error), **told)
                await asyncio.sleep(self._backoff.next())
        return list(fresh.values()), dead

"""Reads on while what was read is dealt with: the database answers the one and stores the other."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from infra.cancellation import cancel
from projections.poison import describe
from workers.consuming.messages import Dead, Fetched, Place, Raw, Received, Source
from workers.leading import Lead

log = structlog.get_logger(__name__)


class Ahead:
    """A source that is one stretch ahead wherever more waits behind the last one.

    Places go with their stretch: what was read ahead and not yet handed over is in none.
    """

    def __init__(self, source: Source) -> None:
        self.kind = source.kind
        self._source = source
        self._next: asyncio.Task[Fetched] | None = None

    async def start(self, lead: Lead, places: Mapping[Place, int]) -> None:
        await self._source.start(lead, places)

    async def fetch(self, at_most_seconds: float) -> Fetched:
        reading, self._next = self._next, None
        fetched = await (reading or self._source.fetch(at_most_seconds))
        if fetched.lag:
            self._next = asyncio.create_task(self._source.fetch(at_most_seconds))
        return fetched

    async def reread(self, raw: Raw) -> Received:
        return await self._source.reread(raw)

    async def bury(self, consumer: str, dead: Sequence[Dead]) -> None:
        await self._source.bury(consumer, dead)

    async def stop(self) -> None:
        """Forget what was read ahead: whoever starts again begins behind what is written down."""
        reading, self._next = self._next, None
        if reading is not None:
            await cancel(reading)
            ended = reading.done() and not reading.cancelled()
            error = reading.exception() if ended else None
            if isinstance(error, Exception):
                log.info("read_ahead_failed", source=self.kind, error=describe(error))
        await self._source.stop()

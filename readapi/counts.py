"""How many like a video: from its counter in Redis, or from the read model while that is away."""

from __future__ import annotations

import time
from collections.abc import Sequence
from uuid import UUID

import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from redis import RedisError

from infra.counters import GONE, AsyncCounters, Counter
from infra.metrics import counter
from projections.counters import COUNTER_FAILURES, counted_async
from projections.likes import Likes

log = structlog.get_logger(__name__)

# After a failure Redis is left alone for so long: then a dead one costs a query nothing.
REST_SECONDS = 1.0

COUNTER_READS = counter(
    "backlot_like_counter_reads",
    "Counts asked for, by where the answer came from (redis, filled, database).",
    ("source",),
)


class LikeCounts:
    """The counts of one process; to be used from one event loop."""

    def __init__(self, likes: Likes, counters: AsyncCounters | None) -> None:
        """Without counters every count comes from the read model."""
        self._likes = likes
        self._counters = counters
        self._rest_until = 0.0

    async def hot(self, videos: Sequence[UUID], position: int = 0) -> dict[UUID, int]:
        """What Redis knows: the counts of those videos whose counter includes `position`."""
        if self._counters is None or time.monotonic() < self._rest_until:
            return {}
        try:
            held, published = await self._counters.get(videos)
        except (RedisError, OSError) as error:
            self._rest(error)
            return {}
        if published < position:
            return {}
        pairs = zip(videos, held, strict=True)
        found = {video: counter.likes for video, counter in pairs if counter is not None}
        COUNTER_READS.labels("redis").inc(len(found))
        return {video: count for video, count in found.items() if count != GONE}

    async def read(
        self, conn: AsyncConnection[TupleRow], videos: Sequence[UUID]
    ) -> dict[UUID, int]:
        """The counts of these videos in the read model; missing counters are filled on the way."""
        _, counters = await counted_async(conn, self._likes, videos)
        for video, count in counters.items():
            filled = await self._fill(video, count)
            COUNTER_READS.labels("filled" if filled else "database").inc()
        return {video: max(0, counter.likes) for video, counter in counters.items()}

    async def _fill(self, video: UUID, counter: Counter) -> bool:
        if self._counters is None or time.monotonic() < self._rest_until:
            return False
        try:
            return await self._counters.fill(video, counter)
        except (RedisError, OSError) as error:
            self._rest(error)
            return False

    def _rest(self, error: Exception) -> None:
        self._rest_until = time.monotonic() + REST_SECONDS
        COUNTER_FAILURES.inc()
        log.warning("like_counters_unavailable", error=f"{type(error).__name__}: {error}")

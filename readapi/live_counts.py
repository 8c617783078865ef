"""Live counts for pages: server-sent events with a video's likes, until it is removed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar
from uuid import UUID

import orjson
import structlog
from psycopg import AsyncConnection, Error
from psycopg.rows import TupleRow
from psycopg_pool import PoolTimeout
from redis import RedisError

from engine.freshness import Pool
from infra.cancellation import cancel
from infra.http.problems import Problem
from infra.metrics import counter, gauge
from projections.catalog import Catalog
from projections.like_counters import COUNTER_FAILURES, GONE, AsyncCounters, read_counters_async
from projections.likes import Likes

log = structlog.get_logger(__name__)

T = TypeVar("T")

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
        """Return what Redis knows: the counts of videos whose counter includes `position`."""
        held, published = await self._ask(lambda counters: counters.get(videos)) or ((), -1)
        if published < position:
            return {}
        pairs = zip(videos, held, strict=True)
        found = {video: counter.likes for video, counter in pairs if counter is not None}
        COUNTER_READS.labels("redis").inc(len(found))
        return {video: count for video, count in found.items() if count != GONE}

    async def read(
        self, conn: AsyncConnection[TupleRow], videos: Sequence[UUID]
    ) -> dict[UUID, int]:
        """Return the counts of these videos in the read model; fill missing counters on the way."""
        _, counters = await read_counters_async(conn, self._likes, videos)
        for video, count in counters.items():
            filled = await self._ask(partial(AsyncCounters.fill, video_id=video, counter=count))
            COUNTER_READS.labels("filled" if filled else "database").inc()
        return {video: max(0, counter.likes) for video, counter in counters.items()}

    async def _ask(self, question: Callable[[AsyncCounters], Awaitable[T]]) -> T | None:
        """Return the answer of Redis; None without one, and for a second after a failure."""
        if self._counters is None or time.monotonic() < self._rest_until:
            return None
        try:
            return await question(self._counters)
        except (RedisError, OSError) as error:
            self._rest_until = time.monotonic() + REST_SECONDS
            COUNTER_FAILURES.inc()
            log.warning("like_counters_unavailable", error=f"{type(error).__name__}: {error}")
            return None


# A client gets at most one event in this time, with the newest count.
COALESCE_SECONDS = 0.3
# So that proxies and clients know a silent connection from a dead one.
HEARTBEAT_SECONDS = 15.0
RETRY_MS = 2_000
MAX_WATCHERS = 10_000

LIVE_WATCHERS = gauge(
    "backlot_live_watchers", "Clients that follow a video's counts as they change."
)


@dataclass(frozen=True, slots=True)
class LiveLimits:
    """How many streams one user, and one address, may have open in this process."""

    per_user: int = MAX_WATCHERS
    per_address: int = MAX_WATCHERS


@dataclass(eq=False)
class Watch:
    """One client's view of one video: the newest count or its end, and whether that was told.

    `slots` are the names under which the stream is counted.
    """

    video_id: UUID
    slots: tuple[str, ...] = ()
    count: int | None = None
    removed: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class LiveCounts:
    """Looks at all watched videos together, a few times a second, while anybody watches."""

    def __init__(
        self, pool: Pool, catalog: Catalog, counts: LikeCounts, limits: LiveLimits | None = None
    ) -> None:
        self._pool = pool
        self._catalog = catalog
        self._counts = counts
        self._limits = limits or LiveLimits()
        self._watches: set[Watch] = set()
        self._slots: Counter[str] = Counter()
        self._poller: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def close(self) -> None:
        """End every stream; clients come back to whoever serves then."""
        self._closing.set()
        for watch in self._watches:
            watch.changed.set()
        if self._poller is not None:
            await cancel(self._poller)

    def watch(self, video_id: UUID, user_id: str | None = None, address: str = "") -> Watch:
        """Begin to follow a video; `leave` has to end it.

        Raise Problem 503 when too many clients do, 429 when the user or the address has as many
        streams as one may.
        """
        if len(self._watches) >= MAX_WATCHERS or self._closing.is_set():
            detail = "Too many clients follow counts here; ask for the count now and then instead."
            raise Problem(503, "unavailable", detail, headers={"Retry-After": "30"})
        slots = {f"address {address}": self._limits.per_address}
        if user_id is not None:
            slots[f"user {user_id}"] = self._limits.per_user
        if any(self._slots[name] >= most for name, most in slots.items()):
            detail = "So many streams are open already from here; close some, or share one."
            raise Problem(429, "too-many-streams", detail, headers={"Retry-After": "30"})
        watch = Watch(video_id, tuple(slots))
        self._slots.update(slots.keys())
        self._watches.add(watch)
        LIVE_WATCHERS.set(len(self._watches))
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        return watch

    def leave(self, watch: Watch) -> None:
        """Give the client's place to others; once is enough."""
        if watch in self._watches:
            self._watches.discard(watch)
            LIVE_WATCHERS.set(len(self._watches))
            self._slots.subtract(watch.slots)
            for name in watch.slots:
                if not self._slots[name]:
                    del self._slots[name]

    async def stream(self, watch: Watch) -> AsyncGenerator[bytes, None]:
        """Yield the events of a client until it goes, its video is removed, or the server stops."""
        try:
            yield f"retry: {RETRY_MS}\n\n".encode()
            while not self._closing.is_set():
                try:
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        await watch.changed.wait()
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                watch.changed.clear()
                if watch.removed:
                    yield _event("removed", {"videoId": watch.video_id})
                    return
                if watch.count is not None and not self._closing.is_set():
                    yield _event("likes", {"likesCount": watch.count})
        finally:
            self.leave(watch)

    async def _poll(self) -> None:
        try:
            while self._watches:
                try:
                    await self._look()
                except (Error, PoolTimeout) as error:
                    # The clients keep what they know; the counts go on when the part is back.
                    log.warning("live_counts_interrupted", error=str(error))
                await asyncio.sleep(COALESCE_SECONDS)
        finally:
            self._poller = None

    async def _look(self) -> None:
        videos = list({watch.video_id for watch in self._watches})
        counts = await self._counts.hot(videos)
        # Videos whose counter is gone, with the video or with Redis.
        missing = [video for video in videos if video not in counts]
        removed: set[UUID] = set()
        if missing:
            async with self._pool.connection() as conn:
                counts |= await self._counts.read(conn, missing)
                removed = set(missing) - (await self._catalog.videos(conn, missing)).keys()
        for watch in list(self._watches):
            count = counts.get(watch.video_id, watch.count)
            watch.removed |= watch.video_id in removed
            if watch.removed or count != watch.count:
                watch.count = count
                watch.changed.set()


def _event(kind: str, data: Mapping[str, object]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"

"""Live counts for pages: server-sent events with a video's likes as they change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import orjson
import structlog
from psycopg import Error
from psycopg_pool import PoolTimeout

from infra import metrics
from infra.cancellation import cancel
from infra.http import Problem
from projections.waiting import Pool
from readapi.counts import LikeCounts

log = structlog.get_logger(__name__)

# A client gets at most one event in this time, with the newest count.
COALESCE_SECONDS = 0.3
# So that proxies and clients know a silent connection from a dead one.
HEARTBEAT_SECONDS = 15.0
RETRY_MS = 2_000
MAX_WATCHERS = 10_000


class Watch:
    """One client's view of one video: the newest count, and whether it has been told."""

    def __init__(self, video_id: UUID) -> None:
        self.video_id = video_id
        self.count: int | None = None
        self.changed = asyncio.Event()

    def tell(self, count: int) -> None:
        if count != self.count:
            self.count = count
            self.changed.set()


class LiveCounts:
    """Looks at all watched videos together, a few times a second, while anybody watches."""

    def __init__(self, pool: Pool, counts: LikeCounts) -> None:
        self._pool = pool
        self._counts = counts
        self._watches: set[Watch] = set()
        self._poller: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def close(self) -> None:
        """End every stream; clients come back to whoever serves then."""
        self._closing.set()
        for watch in self._watches:
            watch.changed.set()
        if self._poller is not None:
            await cancel(self._poller)

    def watch(self, video_id: UUID) -> Watch:
        """Begin to follow a video; raises Problem 503 when too many do. End with `leave`."""
        if len(self._watches) >= MAX_WATCHERS or self._closing.is_set():
            detail = "Too many clients follow counts here; ask for the count now and then instead."
            raise Problem(503, "unavailable", detail, headers={"Retry-After": "30"})
        watch = Watch(video_id)
        self._watches.add(watch)
        metrics.LIVE_WATCHERS.set(len(self._watches))
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        return watch

    def leave(self, watch: Watch) -> None:
        self._watches.discard(watch)
        metrics.LIVE_WATCHERS.set(len(self._watches))

    async def stream(self, watch: Watch) -> AsyncIterator[bytes]:
        """The events of one client, until it goes or the server stops."""
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
                if watch.count is not None and not self._closing.is_set():
                    data = orjson.dumps({"likesCount": watch.count})
                    yield b"event: likes\ndata: " + data + b"\n\n"
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
        missing = [video for video in videos if video not in counts]
        if missing:
            async with self._pool.connection() as conn:
                counts |= await self._counts.read(conn, missing)
        for watch in list(self._watches):
            watch.tell(counts.get(watch.video_id, 0))

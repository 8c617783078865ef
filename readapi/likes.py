"""The likes of a video: now, as they change, and whether the caller's is among them.

Pages follow the counts by server-sent events, until their video is removed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import orjson
import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from psycopg import Error
from psycopg_pool import PoolTimeout
from redis import RedisError
from starlette.types import Receive, Scope, Send

from domain.upload import VideoViewer, Visibility
from engine.tail import LogTail
from infra.cancellation import cancel
from infra.http.app import TOKEN_OPTIONAL, hot, wire
from infra.http.auth import MaybeCaller
from infra.http.problems import Problem, problems
from infra.http.requests import client_address, subscriber
from infra.http.shapes import LikeState
from infra.metrics import counter, gauge
from projections.like_counters import (
    COUNTER_FAILURES,
    GONE,
    AsyncCounters,
    Counter,
)
from readapi.freshness import Fresh
from readapi.queries import Asked, Read, asked, person_of, viewer_of
from readapi.video_cache import Found, VideoCache

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

    def __init__(self, counters: AsyncCounters | None) -> None:
        """Without counters every count comes from the read model."""
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

    async def fill(self, video_id: UUID, held: Counter) -> None:
        """Put what was read from the read model into the counter, where that is missing."""
        filled = await self._ask(partial(AsyncCounters.fill, video_id=video_id, counter=held))
        COUNTER_READS.labels("filled" if filled else "database").inc()

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
    viewer: VideoViewer
    slots: tuple[str, ...] = ()
    count: int | None = None
    removed: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class LiveCounts:
    """Tells all who watch of what changes, a few times a second, while anybody watches.

    What changed is in memory by then: however many watch, the log is asked once.
    """

    def __init__(self, tail: LogTail, cache: VideoCache, limits: LiveLimits | None = None) -> None:
        self._tail = tail
        self._cache = cache
        self._limits = limits or LiveLimits()
        self._watches: set[Watch] = set()
        self._slots: dict[str, int] = {}
        self._poller: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def close(self) -> None:
        """End every stream; clients come back to whoever serves then."""
        self._closing.set()
        for watch in self._watches:
            watch.changed.set()
        if self._poller is not None:
            await cancel(self._poller)

    def watch(self, video_id: UUID, viewer: VideoViewer, address: str = "") -> Watch:
        """Begin to follow a video; `leave` has to end it.

        Raise Problem 503 when too many clients do, 429 when the user or the address has as many
        streams as one may.
        """
        if len(self._watches) >= MAX_WATCHERS or self._closing.is_set():
            detail = "Too many clients follow counts here; ask for the count now and then instead."
            raise Problem(503, "unavailable", detail, headers={"Retry-After": "30"})
        slots = {f"address {address}": self._limits.per_address}
        if viewer.user_id is not None:
            slots[f"user {viewer.user_id}"] = self._limits.per_user
        if any(self._slots.get(name, 0) >= most for name, most in slots.items()):
            detail = "So many streams are open already from here; close some, or share one."
            raise Problem(429, "too-many-streams", detail, headers={"Retry-After": "30"})
        watch = Watch(video_id, viewer, tuple(slots))
        for name in slots:
            self._slots[name] = self._slots.get(name, 0) + 1
        self._watches.add(watch)
        LIVE_WATCHERS.set(len(self._watches))
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        return watch

    def leave(self, watch: Watch) -> None:
        """Give the client's place to others; once is enough."""
        if watch not in self._watches:
            return
        self._watches.discard(watch)
        LIVE_WATCHERS.set(len(self._watches))
        for name in watch.slots:
            self._slots[name] -= 1
            if not self._slots[name]:
                del self._slots[name]

    async def stream(self, watch: Watch) -> AsyncGenerator[bytes, None]:
        """Yield the events of a client until it goes, or the server stops.

        They end, too, when the video is removed, or private and the client's viewer may not see it.
        """
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
        await self._tail.confirm()
        watched = list({watch.video_id for watch in self._watches})
        found = dict(zip(watched, await self._cache.videos(watched), strict=True))
        for watch in list(self._watches):
            video = found.get(watch.video_id)
            if isinstance(video, Found):
                if video.behind:
                    # The read models are on their way: next time.
                    continue
                video = video.video
            elif video is None:
                continue
            watch.removed |= video is None or not video.visible_to(watch.viewer)
            count = watch.count if video is None else video.likes
            if watch.removed or count != watch.count:
                watch.count = count
                watch.changed.set()


def _event(kind: str, data: Mapping[str, object]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"


router = APIRouter(tags=["likes"])
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": 'Server-sent events `likes`, with data such as `{"likesCount": 5}`, '
        "and a last one, `removed`, when the video is, or is private by now",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    **problems(401, 404, 422, 429, 503),
}


class EventStream(StreamingResponse):
    """Server-sent events of one client, whose place is free however the answer ends.

    That is also after a HEAD, and where the client was gone before the first event.
    """

    media_type = "text/event-stream"

    def __init__(self, live: LiveCounts, watch: Watch, headers: Mapping[str, str]) -> None:
        self._live, self._watch = live, watch
        self._events = live.stream(watch)
        super().__init__(self._events, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)
        finally:
            self._live.leave(self._watch)


async def show_like(video_id: UUID, request: Request) -> Response | None:
    """Answer who wants the likes of a video."""
    known = await asked(request)
    return None if known is None else await _get_like(known, video_id)


@router.get(
    "/videos/{video_id}/like",
    response_model=LikeState,
    responses=problems(401, 404, 422, 503),
    openapi_extra=TOKEN_OPTIONAL,
    summary="How many like the video, and whether the caller does",
)
@hot(show_like)
async def get_like(video_id: UUID, queries: Read, fresh: Fresh, caller: MaybeCaller) -> Response:
    return await _get_like(Asked(queries, fresh, caller), video_id)


async def _get_like(known: Asked, video_id: UUID) -> Response:
    queries, fresh, caller = known
    await queries.confirm(fresh, queries.catalog, queries.likes)
    in_memory = video_id in queries.cache
    if caller is None and not in_memory:
        # For everybody: what another process has counted is enough, if it knows as much.
        counts = await queries.counts.hot([video_id], queries.cache.changed_at(video_id))
        if video_id in counts:
            return wire(LikeState(likes_count=counts[video_id]))
    parts = (queries.catalog, queries.likes)
    videos = await queries.shown(fresh, (video_id,), person_of(caller), parts)
    video = videos.require(caller)
    if not in_memory and video_id in queries.cache:
        held = GONE if video.row.visibility == Visibility.PRIVATE else video.likes
        await queries.counts.fill(video_id, Counter(held, video.likes_at))
    return wire(LikeState(has_liked=videos.has_liked(video), likes_count=video.likes))


@router.get(
    "/videos/{video_id}/events",
    response_class=StreamingResponse,
    responses=EVENT_STREAM,
    openapi_extra=TOKEN_OPTIONAL,
    summary="Follow the number of likes as it changes",
)
async def follow(
    video_id: UUID, request: Request, queries: Read, fresh: Fresh, caller: MaybeCaller
) -> EventStream:
    await queries.require(fresh, video_id, caller)
    live = queries.live
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    address = subscriber(client_address(request.scope))
    return EventStream(live, live.watch(video_id, viewer_of(caller), address), headers)

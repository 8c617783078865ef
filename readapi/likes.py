"""The likes of a video, and whether the caller's is among them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar
from uuid import UUID

import structlog
from fastapi import APIRouter, Request, Response
from redis import RedisError

from domain.upload import Visibility
from infra.http.app import hot
from infra.http.auth import MaybeCaller
from infra.http.openapi import TOKEN_OPTIONAL
from infra.http.problems import problems
from infra.http.responses import NOT_MODIFIED, conditional
from infra.http.shapes import LikeState
from infra.metrics import counter
from projections.like_counters import (
    COUNTER_FAILURES,
    GONE,
    AsyncCounters,
    Counter,
)
from readapi.pages import IfNoneMatch
from readapi.queries import Asked, Fresh, Read, asked, person_of

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


router = APIRouter(tags=["likes"])


async def show_like(video_id: UUID, request: Request) -> Response | None:
    """Answer who wants the likes of a video."""
    known = await asked(request)
    return None if known is None else await _get_like(request, known, video_id)


@router.get(
    "/videos/{video_id}/like",
    response_model=LikeState,
    responses=problems(401, 404, 422, 503) | NOT_MODIFIED,
    openapi_extra=TOKEN_OPTIONAL,
    summary="How many like the video, and whether the caller does",
)
@hot(show_like)
async def get_like(
    video_id: UUID,
    request: Request,
    queries: Read,
    fresh: Fresh,
    caller: MaybeCaller,
    if_none_match: IfNoneMatch = None,
) -> Response:
    return await _get_like(request, Asked(queries, fresh, caller), video_id)


async def _get_like(request: Request, known: Asked, video_id: UUID) -> Response:
    queries, fresh, caller = known
    await queries.confirm(fresh, queries.catalog, queries.likes)
    in_memory = video_id in queries.cache
    if caller is None and not in_memory:
        # For everybody: what another process has counted is enough, if it knows as much.
        counts = await queries.counts.hot([video_id], queries.cache.changed_at(video_id))
        if video_id in counts:
            state = LikeState(likes_count=counts[video_id])
            return conditional(request.scope, state.to_json(), private=False)
    parts = (queries.catalog, queries.likes)
    videos = await queries.shown(fresh, (video_id,), person_of(caller), parts)
    video = videos.require(caller)
    if not in_memory and video_id in queries.cache:
        held = GONE if video.row.visibility == Visibility.PRIVATE else video.likes
        await queries.counts.fill(video_id, Counter(held, video.likes_at))
    state = LikeState(has_liked=videos.has_liked(video), likes_count=video.likes)
    return conditional(request.scope, state.to_json(), private=caller is not None)

"""The likes of a video: now, as they change, and whether the caller's is among them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from infra.http.addresses import subscriber
from infra.http.app import TOKEN_OPTIONAL, MaybeCaller, client_address, header, hot, wire
from infra.http.problems import problems
from infra.http.shapes import LikeState
from readapi.catalog import require_video
from readapi.live_counts import LiveCounts, Watch
from readapi.queries import Fresh, Queries, Read

router = APIRouter(tags=["likes"])
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": 'Server-sent events `likes`, with data such as `{"likesCount": 5}`, '
        "and a last one, `removed`, when the video is",
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


# What makes an answer depend on more than the counter.
ASKS_MORE = (b"authorization", b"backlot-min-position", b"backlot-timeout-ms")


async def hot_count(video_id: UUID, request: Request) -> Response | None:
    """Return the count alone, from its counter, where nothing else is asked for."""
    if any(header(request.scope, name) is not None for name in ASKS_MORE):
        return None
    queries: Queries = request.app.state.queries
    counts = await queries.counts.hot([video_id])
    return wire(LikeState(likes_count=counts[video_id])) if video_id in counts else None


@router.get(
    "/videos/{video_id}/like",
    response_model=LikeState,
    responses=problems(401, 404, 422, 503),
    openapi_extra=TOKEN_OPTIONAL,
    summary="How many like the video, and whether the caller does",
)
@hot(hot_count)
async def get_like(video_id: UUID, queries: Read, fresh: Fresh, caller: MaybeCaller) -> Response:
    if caller is None:
        counts = await queries.counts.hot([video_id], fresh.position.events)
        if video_id in counts:
            return wire(LikeState(likes_count=counts[video_id]))
    async with queries.reading(fresh, queries.catalog, queries.likes) as conn:
        await require_video(queries, conn, video_id)
        # With a caller both come from the read model: a liked video never has no likes.
        count = (await queries.counts.read(conn, [video_id]))[video_id]
        liked = caller and await queries.likes.liked(conn, caller.user_id, [video_id])
    return wire(LikeState(has_liked=None if liked is None else bool(liked), likes_count=count))


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
    async with queries.reading(fresh, queries.catalog, queries.likes) as conn:
        await require_video(queries, conn, video_id)
    live = queries.live
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    user_id = caller.user_id if caller else None
    watch = live.watch(video_id, user_id, subscriber(client_address(request.scope)))
    return EventStream(live, watch, headers)

"""The likes of a video, and whether the caller's is among them."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Response

from infra.contract import LikeState
from infra.http import TOKEN_OPTIONAL, MaybeCaller, problems, wire
from readapi.catalog import require_video
from readapi.queries import Fresh, Read

router = APIRouter(tags=["likes"])


@router.get(
    "/videos/{video_id}/like",
    response_model=LikeState,
    responses=problems(401, 404, 422, 503),
    openapi_extra=TOKEN_OPTIONAL,
    summary="How many like the video, and whether the caller does",
)
async def get_like(video_id: UUID, queries: Read, fresh: Fresh, caller: MaybeCaller) -> Response:
    async with queries.reading(fresh, queries.catalog, queries.likes) as conn:
        await require_video(queries, conn, video_id)
        count = (await queries.likes.counts(conn, [video_id])).get(video_id, 0)
        liked = caller and await queries.likes.liked(conn, caller.user_id, [video_id])
    return wire(LikeState(has_liked=None if liked is None else bool(liked), likes_count=count))

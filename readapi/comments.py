"""The comments of a video."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Response

from infra.http.app import wire
from infra.http.problems import problems
from infra.http.shapes import Comment
from readapi.catalog import require_video
from readapi.paging import DEFAULT_LIMIT, Cursor, Limit, Page, cut, decode_cursor
from readapi.queries import Fresh, Read

router = APIRouter(tags=["comments"])


@router.get(
    "/videos/{video_id}/comments",
    response_model=Page[Comment],
    responses=problems(404, 422, 503),
    summary="The video's comments, newest first",
)
async def list_comments(
    video_id: UUID, queries: Read, fresh: Fresh, cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT
) -> Response:
    before = decode_cursor("comments", cursor)
    async with queries.reading(fresh, queries.catalog, queries.comments) as conn:
        await require_video(queries, conn, video_id)
        rows = await queries.comments.page(conn, video_id, before, limit + 1)
    shown, following = cut("comments", rows, limit, lambda row: row.position)
    items = [Comment(**row._asdict(), user_id=row.author) for row in shown]
    return wire(Page[Comment](items=items, next_cursor=following))

"""The comments of a video."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from domain.moderation import Standing
from engine.freshness import Freshness
from infra.http.app import TOKEN_OPTIONAL, MaybeCaller, require_identity, wire
from infra.http.auth import Identity
from infra.http.problems import Problem, problems, request_id_of
from infra.http.shapes import Comment
from projections.catalog import VideoRow
from projections.translation import TranslationRow, Translations
from readapi.catalog import require_video
from readapi.moderation import present_hidden
from readapi.paging import DEFAULT_LIMIT, Cursor, Limit, Page, cut, decode_cursor
from readapi.queries import Fresh, Queries, Read
from readapi.translation import Lang, ReadRequest

HIDDEN = "Those that are held, or removed; for the video's owner and moderators."

router = APIRouter(tags=["comments"])


@router.get(
    "/videos/{video_id}/comments",
    response_model=Page[Comment],
    responses=problems(401, 403, 404, 422, 503),
    openapi_extra=TOKEN_OPTIONAL,
    summary="The video's comments, newest first",
)
async def list_comments(
    video_id: UUID,
    request: Request,
    queries: Read,
    fresh: Fresh,
    caller: MaybeCaller,
    lang: Lang = None,
    status: Annotated[Literal["held", "removed"] | None, Query(description=HIDDEN)] = None,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """With translations into `lang`, or else into the language that `Accept-Language` likes best
    among those that comments are translated to. What is asked for the first time is `pending`.
    What of the caller's own not everybody sees is among them, with its `status`.
    """
    if status is not None:
        await require_identity(request)
        return await _list_hidden(queries, fresh, caller, video_id, Standing(status), cursor, limit)
    before = decode_cursor("comments", cursor)
    choice = queries.requests.choice(request, lang)
    translations = queries.models[Translations]
    models = [queries.catalog, queries.comments, *([translations] if choice.on_demand else [])]
    async with queries.reading(fresh, *models) as conn:
        await require_video(queries, conn, video_id, caller)
        rows = await queries.comments.page(conn, video_id, before, limit + 1)
        own = []
        if caller is not None:
            own = await queries.comments.hidden_page(
                conn, before, limit + 1, video_id=video_id, author=caller.user_id
            )
        hidden = {each.comment.comment_id: each for each in own}
        rows += (each.comment for each in own)
        rows = sorted(rows, key=lambda row: row.position, reverse=True)[: limit + 1]
        shown, following = cut("comments", rows, limit, lambda row: row.position)
        found: dict[UUID, TranslationRow] = {}
        if choice.on_demand is not None:
            ids = [row.comment_id for row in shown]
            found = await translations.of_comments(conn, ids, choice.on_demand)
    read = ReadRequest(caller, request_id_of(request.scope))
    posted = [row for row in shown if row.comment_id not in hidden]
    told = queries.requests.shown(posted, found, choice.on_demand, read)
    seen = {each.comment_id: each for each in told}
    items = [
        seen.get(row.comment_id) or present_hidden(hidden[row.comment_id], decides=False)
        for row in shown
    ]
    return wire(Page[Comment](items=items, next_cursor=following), headers=choice.headers)


async def _list_hidden(
    queries: Queries,
    fresh: Freshness,
    caller: Identity | None,
    video_id: UUID,
    standing: Standing,
    cursor: str | None,
    limit: int,
) -> Response:
    """Return what waits for approval on a video, or was removed, to those who decide about it."""
    kind = f"comments-{standing}"
    before = decode_cursor(kind, cursor)
    async with queries.reading(fresh, queries.catalog, queries.comments) as conn:
        _require_deciding(caller, await require_video(queries, conn, video_id, caller))
        rows = await queries.comments.hidden_page(
            conn, before, limit + 1, video_id=video_id, standing=standing
        )
    shown, following = cut(kind, rows, limit, lambda row: row.comment.position)
    items = [present_hidden(row, decides=True) for row in shown]
    return wire(Page[Comment](items=items, next_cursor=following))


def _require_deciding(caller: Identity | None, video: VideoRow) -> None:
    if caller is None or not (caller.is_moderator or caller.user_id == video.owner):
        raise Problem(403, "forbidden", "Only the video's owner and moderators see these.")

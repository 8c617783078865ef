"""The comments of a video."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Request, Response

from infra.http.app import TOKEN_OPTIONAL, MaybeCaller, wire
from infra.http.problems import problems, request_id_of
from infra.http.shapes import Comment
from projections.translation import TranslationRow, Translations
from readapi.catalog import require_video
from readapi.paging import DEFAULT_LIMIT, Cursor, Limit, Page, cut, decode_cursor
from readapi.queries import Fresh, Read
from readapi.translation import Lang, ReadRequest

router = APIRouter(tags=["comments"])


@router.get(
    "/videos/{video_id}/comments",
    response_model=Page[Comment],
    responses=problems(401, 404, 422, 503),
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
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """With translations into `lang`, or else into the language that `Accept-Language` likes best
    among those that comments are translated to. What is asked for the first time is `pending`.
    """
    before = decode_cursor("comments", cursor)
    choice = queries.requests.choice(request, lang)
    translations = queries.models[Translations]
    models = [queries.catalog, queries.comments, *([translations] if choice.on_demand else [])]
    async with queries.reading(fresh, *models) as conn:
        await require_video(queries, conn, video_id, caller)
        rows = await queries.comments.page(conn, video_id, before, limit + 1)
        shown, following = cut("comments", rows, limit, lambda row: row.position)
        found: dict[UUID, TranslationRow] = {}
        if choice.on_demand is not None:
            ids = [row.comment_id for row in shown]
            found = await translations.of_comments(conn, ids, choice.on_demand)
    read = ReadRequest(caller, request_id_of(request.scope))
    items = queries.requests.shown(shown, found, choice.on_demand, read)
    return wire(Page[Comment](items=items, next_cursor=following), headers=choice.headers)

"""Comments that nobody could translate, for moderators."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from fastapi import APIRouter, Request, Response

from engine.log import END_OF_LOG
from infra.http.auth import Moderator
from infra.http.problems import problems
from infra.http.responses import NOT_MODIFIED, conditional_wire
from infra.http.shapes import Time, UserId, Wire
from readapi.pages import IfNoneMatch, Page, Paged, decode_place, encode_cursor
from readapi.queries import Fresh, Read

KIND = "failed-translations"
EPOCH = datetime.fromtimestamp(0, UTC)
MICROSECOND = timedelta(microseconds=1)
# Later than any text: the year 2286.
LATEST = 10**16


class FailedTranslation(Wire):
    """A comment whose translation failed, and the reason: one of those that metrics know, too."""

    comment_id: UUID
    video_id: UUID
    user_id: UserId
    content: str
    language: str | None = None
    reason: str | None = None
    written_at: Time


router = APIRouter(prefix="/admin/translations", tags=["translation"])


@router.get(
    "/failed",
    response_model=Page[FailedTranslation],
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="Comments whose translation failed, the newest text first",
)
async def list_failed_translations(
    request: Request,
    queries: Read,
    caller: Moderator,
    fresh: Fresh,
    page: Paged,
    if_none_match: IfNoneMatch = None,
) -> Response:
    micros, position = decode_place(KIND, page.cursor, LATEST, END_OF_LOG)
    before = EPOCH + min(micros, LATEST) * MICROSECOND, position
    async with queries.reading(fresh, queries.comments) as conn:
        rows = await queries.comments.not_translated(conn, before, page.rows)
    shown, following = rows[: page.limit], None
    if len(rows) > page.limit:
        last = shown[-1]
        following = encode_cursor(KIND, (last.written_at - EPOCH) // MICROSECOND, last.position)
    items = [
        FailedTranslation(
            comment_id=each.comment_id,
            video_id=each.video_id,
            user_id=each.author,
            content=each.content,
            language=each.language,
            reason=each.reason,
            written_at=each.written_at.astimezone(UTC),
        )
        for each in shown
    ]
    return await conditional_wire(
        request, Page[FailedTranslation](items=items, next_cursor=following)
    )

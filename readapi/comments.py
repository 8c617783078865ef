"""The comments of a video and the replies to them, in the language that their reader asks for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.moderation import Standing
from engine.log import END_OF_LOG
from infra.http.app import hot
from infra.http.auth import Identity, MaybeCaller, require_identity
from infra.http.openapi import TOKEN_OPTIONAL, Json, reads, sends
from infra.http.problems import Problem, problems
from infra.http.requests import request_id_of
from infra.http.responses import NOT_MODIFIED, conditional, conditional_wire
from infra.http.shapes import Comment, LikeState
from projections.catalog import VideoRow
from projections.comment_order import CommentOrder, CommentPlace
from projections.comments import CommentRow, HiddenComment
from projections.translation import TranslationRow, Translations
from readapi.comment_cache import MOST_COMMENTS
from readapi.moderation import present_hidden
from readapi.pages import (
    IfNoneMatch,
    Page,
    Paged,
    PageRequest,
    decode_place,
    encode_cursor,
    page_of,
    plain_page,
)
from readapi.queries import Asked, Fresh, Read, asked, require_video
from readapi.translation import Choice, Lang, ReadRequest

HIDDEN = "Those that are held, or removed; for the video's owner and moderators."
SORT = "`top`: by likes, of which twice as many make up for 30 days of age."

# What cursors are of, and where the first page begins.
LISTS: Mapping[CommentOrder, tuple[str, CommentPlace]] = {
    CommentOrder.NEWEST: ("comments", CommentPlace(END_OF_LOG)),
    CommentOrder.OLDEST: ("comments-oldest", CommentPlace(0)),
    CommentOrder.TOP: ("comments-top", CommentPlace(END_OF_LOG, END_OF_LOG)),
    CommentOrder.REPLIES: ("replies", CommentPlace(0)),
}
DESCENDING = (CommentOrder.NEWEST, CommentOrder.TOP)

router = APIRouter(tags=["comments"])


async def show_comments(video_id: UUID, request: Request) -> Response | None:
    """Answer who wants the newest comments, in the usual language."""
    page, known = plain_page(request.scope), await asked(request)
    if page is None or known is None:
        return None
    choice = known.queries.requests.choice(request, None)
    return await _list_newest(request, known, video_id, page, choice)


IN_A_LANGUAGE: Json = {"headers": sends("Content-Language", "Vary")}
ACCEPT_LANGUAGE = reads(
    "Accept-Language", "Chooses the language of the translations where `lang` does not."
)


@router.get(
    "/videos/{video_id}/comments",
    response_model=Page[Comment],
    responses=problems(401, 403, 404, 422, 503)
    | {200: IN_A_LANGUAGE, 304: NOT_MODIFIED[304] | IN_A_LANGUAGE},
    openapi_extra=TOKEN_OPTIONAL | {"parameters": [ACCEPT_LANGUAGE]},
    summary="The video's comments, newest first",
)
@hot(show_comments)
async def list_comments(
    video_id: UUID,
    request: Request,
    queries: Read,
    fresh: Fresh,
    caller: MaybeCaller,
    page: Paged,
    lang: Lang = None,
    status: Annotated[Literal["held", "removed"] | None, Query(description=HIDDEN)] = None,
    sort: Annotated[Literal["newest", "oldest", "top"], Query(description=SORT)] = "newest",
    if_none_match: IfNoneMatch = None,
) -> Response:
    """With translations into `lang`, or else into the language that `Accept-Language` likes best
    among those that comments are translated to. What is asked for the first time is `pending`.
    What of the caller's own not everybody sees is among them, with its `status`. Replies are not.
    """
    order = CommentOrder(sort)
    if status is not None:
        await require_identity(request)
        known = Asked(queries, fresh, caller)
        return await _list_hidden(request, known, video_id, Standing(status), page)
    known, choice = Asked(queries, fresh, caller), queries.requests.choice(request, lang)
    at_once = None
    if order is CommentOrder.NEWEST:
        at_once = await _list_newest(request, known, video_id, page, choice)
    return at_once or await _list_page(request, known, order, video_id, page, choice)


@router.get(
    "/comments/{comment_id}/replies",
    response_model=Page[Comment],
    responses=problems(401, 404, 422, 503)
    | {200: IN_A_LANGUAGE, 304: NOT_MODIFIED[304] | IN_A_LANGUAGE},
    openapi_extra=TOKEN_OPTIONAL | {"parameters": [ACCEPT_LANGUAGE]},
    summary="The replies to a comment, oldest first",
)
async def list_replies(
    comment_id: UUID,
    request: Request,
    queries: Read,
    fresh: Fresh,
    caller: MaybeCaller,
    page: Paged,
    lang: Lang = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """With translations, and with the caller's own that not everybody sees, as the comments of a
    video. A reply has none itself.
    """
    known, choice = Asked(queries, fresh, caller), queries.requests.choice(request, lang)
    return await _list_page(request, known, CommentOrder.REPLIES, comment_id, page, choice)


@router.get(
    "/comments/{comment_id}",
    response_model=Comment,
    responses=problems(401, 404, 422, 503)
    | {200: IN_A_LANGUAGE, 304: NOT_MODIFIED[304] | IN_A_LANGUAGE},
    openapi_extra=TOKEN_OPTIONAL | {"parameters": [ACCEPT_LANGUAGE]},
    summary="One comment, or reply",
)
async def get_comment(
    comment_id: UUID,
    request: Request,
    queries: Read,
    fresh: Fresh,
    caller: MaybeCaller,
    lang: Lang = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """What is held or removed is there for its author, the video's owner and moderators. A reply
    is there while the comment is that it replies to.
    """
    known, choice = Asked(queries, fresh, caller), queries.requests.choice(request, lang)
    models = [queries.catalog, queries.comments, *_translations(known, choice)]
    hidden: Mapping[UUID, HiddenComment] = {}
    found: Mapping[UUID, TranslationRow] = {}
    async with queries.reading(fresh, *models) as conn:
        row = await queries.comments.shown(conn, comment_id)
        if row is None:
            hidden = await queries.comments.hidden_found(conn, [comment_id])
        else:
            found = await _found(conn, known, choice, [row])
    if row is None:
        told = await _hidden_for(known, hidden.get(comment_id))
    else:
        await _require_there(known, row)
        (told,) = await _told(request, known, choice, [row], found)
    private = caller is not None
    return await conditional_wire(request, told, private=private, headers=choice.headers)


@router.get(
    "/comments/{comment_id}/like",
    response_model=LikeState,
    responses=problems(401, 404, 422, 503) | NOT_MODIFIED,
    openapi_extra=TOKEN_OPTIONAL,
    summary="How many like the comment, and whether the caller does",
)
async def get_comment_like(
    comment_id: UUID,
    request: Request,
    queries: Read,
    fresh: Fresh,
    caller: MaybeCaller,
    if_none_match: IfNoneMatch = None,
) -> Response:
    known = Asked(queries, fresh, caller)
    async with queries.reading(fresh, queries.catalog, queries.comments) as conn:
        row = await queries.comments.shown(conn, comment_id)
    if row is None:
        raise no_such_comment()
    await _require_there(known, row)
    liked = await queries.liked_comments(fresh, caller, [comment_id])
    has_liked = None if liked is None else comment_id in liked
    state = LikeState(has_liked=has_liked, likes_count=row.like_count or 0)
    return conditional(request.scope, state.to_json(), private=caller is not None)


async def _list_newest(
    request: Request, known: Asked, video_id: UUID, page: PageRequest, choice: Choice
) -> Response | None:
    """Return the newest comments as they are for everybody; None where other ones are wanted."""
    queries, fresh, caller = known
    if choice.on_demand is not None or page.cursor is not None or page.limit > MOST_COMMENTS:
        return None
    await queries.require(fresh, video_id, caller)
    newest = await queries.newest_comments(fresh, video_id)
    if newest.hidden and caller is not None:
        return None
    liked = await queries.liked_comments(fresh, caller, [each.comment_id for each in newest.items])
    shown = newest.items[: page.limit]
    more = newest.more or len(shown) < len(newest.items)
    following = encode_cursor("comments", shown[-1].position) if more else None
    told = (each.told(None if liked is None else each.comment_id in liked) for each in shown)
    body, private = page_of(told, following), caller is not None
    return conditional(request.scope, body, private=private, headers=choice.headers)


async def _list_page(
    request: Request,
    known: Asked,
    order: CommentOrder,
    of: UUID,
    page: PageRequest,
    choice: Choice,
) -> Response:
    """Return a page of a video's comments, or of the replies to a comment."""
    queries, fresh, caller = known
    comments, behind = queries.comments, _place_of(order, page.cursor)
    models = [queries.catalog, comments, *_translations(known, choice)]
    parent = None
    async with queries.reading(fresh, *models) as conn:
        if order is CommentOrder.REPLIES:
            parent = await comments.shown(conn, of)
        else:
            await require_video(queries, conn, of, caller)
        rows, own = await comments.page(conn, order, of, behind, page.rows), []
        if caller is not None:
            own = await comments.own_hidden(conn, order, of, behind, page.rows, caller.person)
        hidden = {each.comment.comment_id: each for each in own}
        rows += (each.comment for each in own)
        rows.sort(key=lambda row: row.place(order)[::-1], reverse=order in DESCENDING)
        shown = rows[: page.limit]
        posted = [row for row in shown if row.comment_id not in hidden]
        found = await _found(conn, known, choice, posted)
    if order is CommentOrder.REPLIES:
        await _require_there(known, parent)
    following = _cursor_of(order, shown[-1]) if len(rows) > page.limit else None
    told = await _told(request, known, choice, posted, found)
    seen = {each.comment_id: each for each in told}
    items = [
        seen.get(row.comment_id) or present_hidden(hidden[row.comment_id], decides=False)
        for row in shown
    ]
    body = Page[Comment](items=items, next_cursor=following)
    private = caller is not None
    return await conditional_wire(request, body, private=private, headers=choice.headers)


def _place_of(order: CommentOrder, cursor: str | None) -> CommentPlace:
    """Return the place behind which a page begins; raise InvalidCursor."""
    kind, first = LISTS[order]
    if order is CommentOrder.TOP:
        score, position = decode_place(kind, cursor, first.score, first.position)
        return CommentPlace(position, score)
    return CommentPlace(*decode_place(kind, cursor, first.position))


def _cursor_of(order: CommentOrder, last: CommentRow) -> str:
    kind, place = LISTS[order][0], last.place(order)
    if order is CommentOrder.TOP:
        return encode_cursor(kind, place.score, place.position)
    return encode_cursor(kind, place.position)


def _translations(known: Asked, choice: Choice) -> list[Translations]:
    """Return the read model of translations, where the reader wants some that are not usual."""
    return [known.queries.models[Translations]] if choice.on_demand else []


async def _found(
    conn: AsyncConnection[TupleRow], known: Asked, choice: Choice, rows: list[CommentRow]
) -> Mapping[UUID, TranslationRow]:
    """Return the translations that the reader wants, as far as there are any."""
    if choice.on_demand is None:
        return {}
    ids = [row.comment_id for row in rows]
    return await known.queries.models[Translations].of_comments(conn, ids, choice.on_demand)


async def _told(
    request: Request,
    known: Asked,
    choice: Choice,
    rows: list[CommentRow],
    found: Mapping[UUID, TranslationRow],
) -> list[Comment]:
    """Return comments that everybody sees as the reader is told of them."""
    queries, fresh, caller = known
    read = ReadRequest(caller, request_id_of(request.scope))
    told = queries.requests.shown(rows, found, choice.on_demand, read)
    liked = await queries.liked_comments(fresh, caller, [row.comment_id for row in rows])
    if liked is not None:
        for each in told:
            each.has_liked = each.comment_id in liked
    return told


async def _require_there(known: Asked, row: CommentRow | None) -> None:
    """Raise Problem 404 unless everybody sees the comment who sees its video, as the caller does.

    Of a video that the caller may not see, nothing else is said: so that nobody can tell.
    """
    if row is None or await _video_of(known, row) is None:
        raise no_such_comment()


async def _hidden_for(known: Asked, hidden: HiddenComment | None) -> Comment:
    """Return what not everybody sees to who sees it; raise Problem 404 to others."""
    caller = known.caller
    if hidden is None or caller is None:
        raise no_such_comment()
    video = await _video_of(known, hidden.comment)
    decides = video is not None and (caller.is_moderator or caller.person == video.owner)
    if video is None or not (decides or caller.person == hidden.comment.author):
        raise no_such_comment()
    return present_hidden(hidden, decides=decides)


async def _video_of(known: Asked, row: CommentRow) -> VideoRow | None:
    """Return the video of a comment; None where the caller sees none. Confirm first."""
    queries, fresh, caller = known
    found = await queries.shown(fresh, (row.video_id,), parts=(queries.catalog,))
    return found.videos[0].row if found.there_for(caller) else None


def no_such_comment() -> Problem:
    """Return what is said of a comment that is not there, or not for the caller."""
    return Problem(404, "not-found", "There is no such comment.")


async def _list_hidden(
    request: Request, known: Asked, video_id: UUID, standing: Standing, page: PageRequest
) -> Response:
    """Return what waits for approval on a video, or was removed, to those who decide about it."""
    queries, fresh, caller = known
    async with queries.reading(fresh, queries.catalog, queries.comments) as conn:
        _require_deciding(caller, await require_video(queries, conn, video_id, caller))
        hidden = partial(queries.comments.hidden_page, conn, video_id=video_id, standing=standing)
        shown, following = await page.read(
            f"comments-{standing}", hidden, lambda row: row.comment.position
        )
    items = [present_hidden(row, decides=True) for row in shown]
    return await conditional_wire(request, Page[Comment](items=items, next_cursor=following))


def _require_deciding(caller: Identity | None, video: VideoRow) -> None:
    if caller is None or not (caller.is_moderator or caller.person == video.owner):
        raise Problem(403, "forbidden", "Only the video's owner and moderators see these.")

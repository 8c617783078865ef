"""Videos: one, a page of all, and those that the caller likes; and how an upload stands."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AfterValidator

from engine.checkpoints import Freshness
from infra.http.app import hot
from infra.http.auth import Caller, Identity, MaybeCaller, person_named, require_known
from infra.http.openapi import TOKEN_OPTIONAL
from infra.http.problems import Problem, problems
from infra.http.responses import NOT_MODIFIED, conditional, conditional_wire
from infra.http.shapes import ArrivedPart, UploadStatus, Video
from infra.objects.port import NoSuchUpload, ObjectStore, Part
from infra.objects.s3_xml import Field, S3Response, documented
from projections.catalog import UploadRow
from readapi.pages import (
    IfNoneMatch,
    Page,
    Paged,
    PageRequest,
    decode_cursor,
    page_of,
    plain_page,
    storable,
)
from readapi.queries import Asked, Fresh, Queries, Read, asked, person_of, viewer_of
from readapi.video_lists import Listed, ListSegment

Owner = Annotated[
    str | None,
    Query(min_length=1, max_length=128, description="Only this user's; `me`: the caller's own."),
    AfterValidator(storable),
]


async def owner_named(request: Request, caller: MaybeCaller, owner: Owner = None) -> str | None:
    """Return whose videos are asked for; raise Problem 401 for nobody's own."""
    if owner is None:
        return None
    return require_known(caller).person if owner == "me" else await person_named(request, owner)


InCategory = Annotated[
    str | None,
    Query(min_length=1, max_length=50, description="Only of this category."),
    AfterValidator(storable),
]

# So many of a list are read at once: more than any page has.
SEGMENT = 500

router = APIRouter(tags=["videos"])


async def list_newest(request: Request) -> Response | None:
    """Answer who wants a page of all videos."""
    page, known = plain_page(request.scope), await asked(request)
    if page is None or known is None:
        return None
    return await _list_videos(request, known, page, None, None)


@router.get(
    "/videos",
    response_model=Page[Video],
    responses=problems(401, 422, 503) | NOT_MODIFIED,
    openapi_extra=TOKEN_OPTIONAL,
    summary="Videos, newest first",
)
@hot(list_newest)
async def list_videos(
    request: Request,
    queries: Read,
    fresh: Fresh,
    caller: MaybeCaller,
    page: Paged,
    owner: Annotated[str | None, Depends(owner_named)],
    category: InCategory = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Public ones; where callers ask for their own, with those that are not."""
    return await _list_videos(request, Asked(queries, fresh, caller), page, owner, category)


async def _list_videos(
    request: Request, known: Asked, page: PageRequest, owner: str | None, category: str | None
) -> Response:
    queries, fresh, caller = known
    await queries.confirm(fresh, *queries.projections)
    rows = await _read_list(known, page, owner, category)
    shown, following = page.cut("videos", rows, lambda row: row.position)
    videos = await queries.shown(fresh, [row.video_id for row in shown], person_of(caller))
    # Of those that are gone or hidden since, nothing is told.
    body = page_of(videos.listed_for(viewer_of(caller)), following)
    return conditional(request.scope, body, private=caller is not None)


async def _read_list(
    known: Asked, page: PageRequest, owner: str | None, category: str | None
) -> list[Listed]:
    """Return the rows of a page, for a request that has confirmed how far the log is.

    What of them is not in memory is read as a part of a long segment, in which other pages lie.
    """
    queries, fresh, caller = known
    lists, viewer = queries.cache.lists, viewer_of(caller)
    key = owner, owner is not None and owner == viewer.user_id, category
    rows, before = lists.page(key, decode_cursor("videos", page.cursor), page.rows)
    if before is None:
        return rows
    changes = lists.changes
    async with queries.reading(fresh, queries.catalog, confirmed=True) as conn:
        # Before the list is read: what comes to be known meanwhile may not be in it.
        whole = queries.knows_all(queries.catalog)
        read = await queries.catalog.places(conn, viewer, owner, category, before, SEGMENT)
    segment = ListSegment(read, before, SEGMENT)
    if whole:
        lists.put(key, segment, changes)
    return rows + segment.rows(before, page.rows - len(rows))


async def list_newest_likes(request: Request) -> Response | None:
    """Answer who wants a page of what they like."""
    page, known = plain_page(request.scope), await asked(request)
    if page is None or known is None:
        return None
    return await _list_liked(request, known, require_known(known.caller), page)


# Before `/videos/{video_id}`, which would take the word for an id.
@router.get(
    "/videos/liked",
    response_model=Page[Video],
    responses=problems(401, 422, 503) | NOT_MODIFIED,
    summary="Videos that the caller likes, newest like first",
)
@hot(list_newest_likes)
async def list_liked_videos(
    request: Request,
    queries: Read,
    caller: Caller,
    fresh: Fresh,
    page: Paged,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Those that are public, or the caller's own."""
    return await _list_liked(request, Asked(queries, fresh, caller), caller, page)


async def _list_liked(
    request: Request, known: Asked, caller: Identity, page: PageRequest
) -> Response:
    queries, fresh, _ = known
    before = decode_cursor("liked", page.cursor)
    likes = await queries.likes_of(fresh, caller.person, before, page.rows)
    shown, following = page.cut("liked", likes, lambda like: like.position)
    videos = await queries.shown(fresh, [like.video_id for like in shown], caller.person)
    body = page_of(videos.listed_for(caller.viewer), following)
    return conditional(request.scope, body, private=True)


async def show_video(video_id: UUID, request: Request) -> Response | None:
    """Answer who wants a video."""
    known = await asked(request)
    return None if known is None else await _get_video(request, known, video_id)


@router.get(
    "/videos/{video_id}",
    response_model=Video,
    responses=problems(401, 404, 422, 503) | NOT_MODIFIED,
    openapi_extra=TOKEN_OPTIONAL,
    summary="A video",
)
@hot(show_video)
async def get_video(
    video_id: UUID,
    request: Request,
    queries: Read,
    fresh: Fresh,
    caller: MaybeCaller,
    if_none_match: IfNoneMatch = None,
) -> Response:
    return await _get_video(request, Asked(queries, fresh, caller), video_id)


async def _get_video(request: Request, known: Asked, video_id: UUID) -> Response:
    queries, fresh, caller = known
    videos = await queries.show(fresh, (video_id,), person_of(caller))
    video = videos.require(caller)
    body = video.alone(videos.has_liked(video))
    return conditional(request.scope, body, private=caller is not None)


uploads = APIRouter(tags=["uploads"])


@uploads.get(
    "/uploads/{upload_id}",
    response_model=UploadStatus,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED,
    summary="An upload and its arrived parts",
)
async def get_upload(
    upload_id: UUID,
    request: Request,
    queries: Read,
    caller: Caller,
    fresh: Fresh,
    if_none_match: IfNoneMatch = None,
) -> Response:
    found = await _own_upload(upload_id, queries, caller, fresh)
    arrived = await _arrived_parts(found, queries.objects)
    return await conditional_wire(request, _present_upload(found, arrived))


@uploads.get(
    "/uploads/{upload_id}/s3",
    response_class=Response,
    responses=documented("The parts that have arrived; never more to come.")
    | problems(401, 403, 404, 422, 503),
    summary="The arrived parts of an upload, as ListParts of S3",
)
async def list_parts_as_s3(
    upload_id: UUID, queries: Read, caller: Caller, fresh: Fresh
) -> Response:
    found = await _own_upload(upload_id, queries, caller, fresh)
    parts: list[Field] = [
        ("Part", [("PartNumber", part.number), ("ETag", f'"{part.etag}"'), ("Size", part.size)])
        for part in await _arrived_parts(found, queries.objects)
    ]
    upload: list[Field] = [
        ("Key", found.object_key),
        ("UploadId", str(upload_id)),
        ("IsTruncated", "false"),
    ]
    return S3Response.of("ListPartsResult", [*upload, *parts])


async def _own_upload(
    upload_id: UUID, queries: Queries, caller: Identity, fresh: Freshness
) -> UploadRow:
    """Return an upload to its owner or an admin; raise Problem 404 or 403."""
    async with queries.reading(fresh, queries.catalog) as conn:
        found = await queries.catalog.upload(conn, upload_id)
    if found is None or not found.visible_to(caller.viewer):
        raise Problem(404, "not-found", "There is no such upload.")
    if caller.person != found.owner and not caller.is_admin:
        raise Problem(403, "forbidden", "This belongs to another user.")
    return found


async def _arrived_parts(row: UploadRow, store: ObjectStore) -> list[Part]:
    if row.status != "started":
        return []
    try:
        return await store.list_parts(row.object_key, row.store_upload_id)
    except NoSuchUpload:
        # Completed or aborted a moment ago: its event is not projected yet.
        return []


def _present_upload(row: UploadRow, parts: list[Part]) -> UploadStatus:
    """Return a row and the store's parts as the contract wants them."""
    return UploadStatus.model_validate(
        {
            "upload_id": row.upload_id,
            "video_id": row.upload_id,
            "status": row.status,
            "size_bytes": row.size_bytes,
            "part_size_bytes": row.part_size_bytes,
            "part_count": -(-row.size_bytes // row.part_size_bytes),
            "parts": [
                ArrivedPart(number=part.number, etag=part.etag, size_bytes=part.size)
                for part in parts
            ],
        }
    )

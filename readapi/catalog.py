"""Videos: one, a page of all, and those that the caller likes; and how an upload stands."""

from __future__ import annotations

from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AfterValidator

from domain.upload import CommentPolicy
from infra.http.app import TOKEN_OPTIONAL, wire
from infra.http.auth import Caller, MaybeCaller, person_named, require_known
from infra.http.problems import Problem, problems
from infra.http.shapes import ArrivedPart, UploadStatus, Video
from infra.objects.port import NoSuchUpload, ObjectStore, Part
from projections.catalog import UploadRow
from readapi.queries import (
    Fresh,
    Page,
    Paged,
    Read,
    present,
    require_video,
    storable,
    viewer_of,
)

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

router = APIRouter(tags=["videos"])


@router.get(
    "/videos",
    response_model=Page[Video],
    responses=problems(401, 422, 503),
    openapi_extra=TOKEN_OPTIONAL,
    summary="Videos, newest first",
)
async def list_videos(
    queries: Read,
    fresh: Fresh,
    caller: MaybeCaller,
    page: Paged,
    owner: Annotated[str | None, Depends(owner_named)],
    category: InCategory = None,
) -> Response:
    """Public ones; where callers ask for their own, with those that are not."""
    viewer = viewer_of(caller)
    async with queries.reading(fresh, *queries.projections) as conn:
        videos = partial(queries.catalog.page, conn, viewer, owner, category)
        shown, following = await page.read("videos", videos, lambda row: row.completed_position)
        items = await present(queries, conn, shown, caller)
    return wire(Page[Video](items=items, next_cursor=following))


# Before `/videos/{video_id}`, which would take the word for an id.
@router.get(
    "/videos/liked",
    response_model=Page[Video],
    responses=problems(401, 422, 503),
    summary="Videos that the caller likes, newest like first",
)
async def list_liked(queries: Read, caller: Caller, fresh: Fresh, page: Paged) -> Response:
    """Those that are public, or the caller's own."""
    async with queries.reading(fresh, *queries.projections) as conn:
        likes = partial(queries.likes.liked_page, conn, caller.person)
        shown, following = await page.read("liked", likes, lambda like: like.position)
        videos = await queries.catalog.videos(conn, [like.video_id for like in shown])
        rows = [
            row
            for like in shown
            if (row := videos.get(like.video_id)) and row.listed_for(caller.viewer)
        ]
        items = await present(queries, conn, rows, caller)
    return wire(Page[Video](items=items, next_cursor=following))


@router.get(
    "/videos/{video_id}",
    response_model=Video,
    responses=problems(401, 404, 422, 503),
    openapi_extra=TOKEN_OPTIONAL,
    summary="A video",
)
async def get_video(video_id: UUID, queries: Read, fresh: Fresh, caller: MaybeCaller) -> Response:
    async with queries.reading(fresh, *queries.projections) as conn:
        row = await require_video(queries, conn, video_id, caller)
        (item,) = await present(queries, conn, [row], caller)
        policy = await queries.comments.policy(conn, video_id)
    if policy is not CommentPolicy.OPEN:
        item.comment_policy = policy
    return wire(item)


uploads = APIRouter(tags=["uploads"])


@uploads.get(
    "/uploads/{upload_id}",
    response_model=UploadStatus,
    responses=problems(401, 403, 404, 422, 503),
    summary="An upload and its arrived parts",
)
async def get_upload(upload_id: UUID, queries: Read, caller: Caller, fresh: Fresh) -> Response:
    async with queries.reading(fresh, queries.catalog) as conn:
        found = await queries.catalog.upload(conn, upload_id)
    if found is None or not found.visible_to(caller.viewer):
        raise Problem(404, "not-found", "There is no such upload.")
    if caller.person != found.owner and not caller.is_admin:
        raise Problem(403, "forbidden", "This belongs to another user.")
    return wire(_present_upload(found, await _arrived_parts(found, queries.objects)))


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

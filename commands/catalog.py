"""Videos: change their details, remove them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from uuid import UUID

import structlog
from fastapi import APIRouter, Request, Response

from commands.endpoint import TOKEN_FIRST, executor
from commands.likes import LikesOf
from commands.upload_shapes import Category, Description, Title
from domain.model import BEGINNING, Origin
from domain.upload import NOBODY, CommentPolicy, Upload, VideoViewer, Visibility, object_key
from engine.command_bus import Aggregates, Command
from engine.lookups import Lookup
from infra.http.problems import problems
from infra.http.shapes import RequestBody, Video, Wire
from infra.objects.port import ObjectStore, ObjectStoreError

log = structlog.get_logger(__name__)


class ChangeDetails(RequestBody):
    """What is to change; a field that is left out stays, `null` clears description or category."""

    title: Title | None = None
    description: Description | None = None
    category: Category | None = None
    visibility: Visibility | None = None
    comment_policy: CommentPolicy | None = None


class VideoRemoved(Wire):
    """The video is gone from every read."""

    video_id: UUID
    status: Literal["removed"]


class EngagementCounts(NamedTuple):
    """How many comments and views a video has."""

    comments: int
    views: int


@dataclass(frozen=True)
class EngagementOf(Lookup[EngagementCounts]):
    """The engagement with a video beside likes, as its owner gets it back with a change."""

    video_id: UUID

    default = EngagementCounts(0, 0)


@dataclass(frozen=True)
class ChangeVideo(Command[Video]):
    """Set the details named in `changes`, and the visibility."""

    video_id: UUID
    changes: dict[str, str | None]
    visibility: Visibility | None = None
    viewer: VideoViewer = NOBODY
    as_admin: bool = False

    def streams(self) -> Sequence[UUID]:
        return (self.video_id,)

    def lookups(self) -> Sequence[Lookup[Any]]:
        return (EngagementOf(self.video_id), LikesOf(self.video_id))

    def decide(self, aggregates: Aggregates, origin: Origin) -> Video:
        upload = aggregates.get(Upload, self.video_id)
        _require_right(upload, self.viewer, origin, self.as_admin)
        upload.change_details(
            origin,
            title=self.changes.get("title") or upload.title,
            description=self.changes.get("description", upload.description),
            category=self.changes.get("category", upload.category),
        )
        if self.visibility is not None:
            upload.change_visibility(self.visibility, origin)
        if (policy := self.changes.get("comment_policy")) is not None:
            upload.change_comment_policy(CommentPolicy(policy), origin)
        likes = aggregates.look_up(LikesOf(self.video_id))
        return as_seen(upload, likes, aggregates.look_up(EngagementOf(self.video_id)))


@dataclass(frozen=True)
class RemoveVideo(Command[VideoRemoved]):
    """Take the video out of every read."""

    video_id: UUID
    viewer: VideoViewer = NOBODY
    as_admin: bool = False

    def streams(self) -> Sequence[UUID]:
        return (self.video_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> VideoRemoved:
        upload = aggregates.get(Upload, self.video_id)
        _require_right(upload, self.viewer, origin, self.as_admin)
        upload.remove(origin)
        return VideoRemoved(video_id=self.video_id, status="removed")


def _require_right(upload: Upload, viewer: VideoViewer, origin: Origin, as_admin: bool) -> None:
    upload.require_visible(viewer)
    if not as_admin:
        upload.require_owner(origin.actor)


def as_seen(upload: Upload, likes: int, engagement: EngagementCounts) -> Video:
    """Return the video as its owner gets it back after a change."""
    policy = upload.comment_policy
    return Video(
        video_id=upload.id,
        title=upload.title,
        description=upload.description,
        category=upload.category,
        owner_id=upload.owner,
        status="completed",
        visibility=upload.visibility,
        duration_seconds=upload.duration_seconds,
        spoken_language=upload.spoken_language,
        created_at=upload.completed_at or BEGINNING,
        comment_policy=None if policy is CommentPolicy.OPEN else policy,
        likes=likes,
        **engagement._asdict(),
    )


router = APIRouter(tags=["videos"], dependencies=TOKEN_FIRST)


@router.patch(
    "/videos/{video_id}",
    response_model=Video,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
    summary="Change title, description, category, visibility, or who comments",
)
async def change_video(video_id: UUID, body: ChangeDetails, request: Request) -> Response:
    execute = await executor(request)
    changes = body.model_dump(exclude_unset=True, exclude={"visibility"})
    as_admin = execute.identity.is_admin
    command = ChangeVideo(video_id, changes, body.visibility, execute.viewer, as_admin)
    return await execute(command)


@router.delete(
    "/videos/{video_id}",
    response_model=VideoRemoved,
    responses=problems(401, 403, 404, 409, 422, 503),
    summary="Remove the video",
)
async def remove_video(video_id: UUID, request: Request) -> Response:
    execute = await executor(request)
    answer = await execute(RemoveVideo(video_id, execute.viewer, execute.identity.is_admin))
    await drop_object(execute.services.objects, video_id)
    return answer


async def drop_object(objects: ObjectStore, video_id: UUID) -> None:
    """Take the bytes of a removed video out of the store, or log that they remain."""
    try:
        await objects.delete(object_key(video_id))
    except ObjectStoreError as error:
        # The video is gone for everybody all the same; only its bytes still take room.
        log.warning("removed_object_remains", video_id=str(video_id), error=str(error))

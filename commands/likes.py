"""Likes: toggle, set and take back; the answer counts the caller's own action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response

from commands.endpoint import executor
from domain.model import Origin
from domain.upload import NOBODY, Upload, VideoViewer
from domain.video_likes import VideoLikes, stream_id
from engine.command_bus import Aggregates, Command
from engine.lookups import Sum
from infra.http.app import DirectRoute
from infra.http.problems import problems
from infra.http.shapes import LikeState


class Wish(StrEnum):
    """What the viewer wants."""

    LIKE = "like"
    UNLIKE = "unlike"
    TOGGLE = "toggle"


@dataclass(frozen=True)
class LikesOf(Sum):
    """How many viewers like a video, or a comment, by its id."""

    liked_id: UUID

    @property
    def key(self) -> UUID:
        return self.liked_id


@dataclass(frozen=True)
class ChangeLike(Command[LikeState]):
    """One viewer's wish for one video, as whoever may see it."""

    video_id: UUID
    viewer: str
    wish: Wish
    seen_by: VideoViewer = NOBODY
    likes_id: UUID = field(init=False)
    likes: LikesOf = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "likes_id", stream_id(self.video_id, self.viewer))
        object.__setattr__(self, "likes", LikesOf(self.video_id))

    def streams(self) -> Sequence[UUID]:
        return (self.video_id, self.likes_id)

    def lookups(self) -> Sequence[LikesOf]:
        return (self.likes,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> LikeState:
        aggregates.get(Upload, self.video_id).require_visible(self.seen_by)
        likes = aggregates.get(VideoLikes, self.likes_id)
        liked = likes.liked
        getattr(likes, self.wish)(self.video_id, self.viewer, origin)
        count = aggregates.add(self.likes, likes.liked - liked)
        return LikeState(has_liked=likes.liked, likes_count=count)


router = APIRouter(tags=["likes"], route_class=DirectRoute)
answers: dict[str, Any] = {
    "response_model": LikeState,
    "responses": problems(401, 404, 409, 422, 503),
}


@router.post("/videos/{video_id}/like", summary="Like, or take the like back", **answers)
async def toggle_like(video_id: UUID, request: Request) -> Response:
    return await _change(video_id, Wish.TOGGLE, request)


@router.put("/videos/{video_id}/like", summary="Like", **answers)
async def like_video(video_id: UUID, request: Request) -> Response:
    return await _change(video_id, Wish.LIKE, request)


@router.delete("/videos/{video_id}/like", summary="Take the like back", **answers)
async def unlike_video(video_id: UUID, request: Request) -> Response:
    return await _change(video_id, Wish.UNLIKE, request)


async def _change(video_id: UUID, wish: Wish, request: Request) -> Response:
    execute = await executor(request)
    command = ChangeLike(video_id, execute.actor, wish, execute.viewer)
    quotas = execute.services.quotas
    if quotas is not None and wish is not Wish.UNLIKE:
        await quotas.like(execute.actor, command.likes_id)
    return await execute(command)

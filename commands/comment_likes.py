"""Likes of comments: set and take back; the answer counts the caller's own action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from uuid import UUID

from fastapi import APIRouter, Request, Response

from commands.endpoint import executor
from commands.likes import LikesOf, Wish, answers
from domain.comment import UNKNOWN, Comment
from domain.comment_likes import CommentLikes
from domain.model import Origin
from domain.upload import NOBODY, Upload, VideoViewer
from domain.video_likes import stream_id
from engine.command_bus import Aggregates, Command, Query
from infra.http.app import DirectRoute
from infra.http.shapes import LikeState


class Place(NamedTuple):
    """On which video a comment is, and to which comment it is a reply, if to one."""

    video_id: UUID
    parent_id: UUID | None


@dataclass(frozen=True)
class FindPlace(Query[Place]):
    """Return where a comment stands, which never changes; refuse where there is no such one."""

    comment_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.comment_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> Place:
        comment = aggregates.get(Comment, self.comment_id)
        return Place(comment.require_known(), comment.parent_id)


@dataclass(frozen=True)
class ChangeCommentLike(Command[LikeState]):
    """One viewer's wish for one comment, as whoever sees it."""

    comment_id: UUID
    place: Place
    viewer: str
    wish: Literal[Wish.LIKE, Wish.UNLIKE]
    seen_by: VideoViewer = NOBODY
    likes_id: UUID = field(init=False)
    likes: LikesOf = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "likes_id", stream_id(self.comment_id, self.viewer))
        object.__setattr__(self, "likes", LikesOf(self.comment_id))

    def streams(self) -> Sequence[UUID]:
        return (self.place.video_id, *self._comments(), self.likes_id)

    def lookups(self) -> Sequence[LikesOf]:
        return (self.likes,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> LikeState:
        video_id = self.place.video_id
        aggregates.get(Upload, video_id).require_visible(self.seen_by, UNKNOWN)
        for each in self._comments():
            aggregates.get(Comment, each).require_posted()
        likes = aggregates.get(CommentLikes, self.likes_id)
        liked = likes.liked
        getattr(likes, self.wish)(self.comment_id, video_id, self.viewer, origin)
        count = aggregates.add(self.likes, likes.liked - liked)
        return LikeState(has_liked=likes.liked, likes_count=count)

    def _comments(self) -> Sequence[UUID]:
        """Return what everybody has to see: the comment, and the one that it is a reply to."""
        parent = self.place.parent_id
        return (self.comment_id,) if parent is None else (self.comment_id, parent)


router = APIRouter(tags=["comments"], route_class=DirectRoute)


@router.put("/comments/{comment_id}/like", summary="Like a comment", **answers)
async def like_comment(comment_id: UUID, request: Request) -> Response:
    return await _change(comment_id, Wish.LIKE, request)


@router.delete("/comments/{comment_id}/like", summary="Take the like of a comment back", **answers)
async def unlike_comment(comment_id: UUID, request: Request) -> Response:
    return await _change(comment_id, Wish.UNLIKE, request)


async def _change(
    comment_id: UUID, wish: Literal[Wish.LIKE, Wish.UNLIKE], request: Request
) -> Response:
    execute = await executor(request)
    place = await execute.value(FindPlace(comment_id))
    command = ChangeCommentLike(comment_id, place, execute.actor, wish, execute.viewer)
    quotas = execute.services.quotas
    if quotas is not None and wish is Wish.LIKE:
        await quotas.like(execute.actor, command.likes_id)
    return await execute(command)

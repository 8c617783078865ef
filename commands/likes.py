"""Likes: toggle, set and take back; the answer counts the caller's own action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from commands.command import Aggregates, Command
from domain.model import Origin
from domain.upload import Upload
from domain.video_likes import VideoLikes, stream_id
from infra.contract import LikeState


class Wish(StrEnum):
    """What the viewer wants."""

    LIKE = "like"
    UNLIKE = "unlike"
    TOGGLE = "toggle"


@dataclass(frozen=True)
class ChangeLike(Command[LikeState]):
    """One viewer's wish for one video. `found` is the number of likes of all other viewers."""

    video_id: UUID
    viewer: str
    wish: Wish

    def streams(self) -> Sequence[UUID]:
        return (self.video_id, stream_id(self.video_id, self.viewer))

    def decide(self, aggregates: Aggregates, origin: Origin, found: int | None) -> LikeState:
        aggregates.get(Upload, self.video_id).require_video()
        likes = aggregates.get(VideoLikes, stream_id(self.video_id, self.viewer))
        getattr(likes, self.wish)(self.video_id, self.viewer, origin)
        return LikeState(has_liked=likes.liked, likes_count=(found or 0) + likes.liked)

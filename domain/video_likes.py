"""Likes: one stream per viewer and video, so that the stream itself is the unique constraint."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha1
from typing import Annotated, Any, Self
from uuid import UUID

from domain.model import Aggregate, Origin, Personal


def stream_id(video_id: UUID, viewer: str) -> UUID:
    """Return the stream of one viewer's likes of one video: `uuid5(video, viewer)`."""
    digest = sha1(video_id.bytes + viewer.encode(), usedforsecurity=False).digest()
    return UUID(bytes=digest[:16], version=5)


class VideoLikes(Aggregate):
    """One viewer's likes of one video; its stream is the proof that the viewer counts once."""

    TOPIC = "video_likes"

    class Event(Aggregate.Event):
        video_id: UUID
        viewer: Annotated[str, Personal("viewer")]

    class Liked(Event):
        TOPIC = "video_likes.liked.v1"

        def apply(self, likes: VideoLikes) -> None:
            likes.liked = True

    class Unliked(Event):
        TOPIC = "video_likes.unliked.v1"

        def apply(self, likes: VideoLikes) -> None:
            likes.liked = False

    def __init__(self) -> None:
        self.liked = False

    @classmethod
    def stream_of(cls, fields: Mapping[str, Any]) -> UUID:
        return stream_id(UUID(fields["video_id"]), fields["viewer"])

    def like(self, video_id: UUID, viewer: str, origin: Origin) -> Self:
        """Like the video; liking what is liked records nothing."""
        if not self.liked:
            self.record(self.Liked, origin, video_id=video_id, viewer=viewer)
        return self

    def unlike(self, video_id: UUID, viewer: str, origin: Origin) -> Self:
        """Take the like back; without one this records nothing."""
        if self.liked:
            self.record(self.Unliked, origin, video_id=video_id, viewer=viewer)
        return self

    def toggle(self, video_id: UUID, viewer: str, origin: Origin) -> Self:
        """Like what is not liked, unlike what is."""
        verb = self.unlike if self.liked else self.like
        return verb(video_id, viewer, origin)

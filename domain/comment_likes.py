"""Likes of comments: one stream per viewer and comment, as likes of videos have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from domain.model import Aggregate, Origin, Personal
from domain.video_likes import stream_id


class CommentLikes(Aggregate):
    """One viewer's likes of one comment; its stream is the proof that the viewer counts once."""

    TOPIC = "comment_likes"

    class Event(Aggregate.Event):
        comment_id: UUID
        video_id: UUID
        viewer: Annotated[str, Personal("viewer")]

    class Liked(Event):
        TOPIC = "comment_likes.liked.v1"

        def apply(self, likes: CommentLikes) -> None:
            likes.liked = True

    class Unliked(Event):
        TOPIC = "comment_likes.unliked.v1"

        def apply(self, likes: CommentLikes) -> None:
            likes.liked = False

    def __init__(self) -> None:
        self.liked = False

    @classmethod
    def stream_of(cls, fields: Mapping[str, Any]) -> UUID:
        return stream_id(UUID(fields["comment_id"]), fields["viewer"])

    def like(self, comment_id: UUID, video_id: UUID, viewer: str, origin: Origin) -> None:
        """Like the comment, which is on that video; liking what is liked records nothing."""
        if not self.liked:
            self._record(self.Liked, comment_id, video_id, viewer, origin)

    def unlike(self, comment_id: UUID, video_id: UUID, viewer: str, origin: Origin) -> None:
        """Take the like back; without one this records nothing."""
        if self.liked:
            self._record(self.Unliked, comment_id, video_id, viewer, origin)

    def _record(
        self, event: type[Event], comment_id: UUID, video_id: UUID, viewer: str, origin: Origin
    ) -> None:
        self.record(event, origin, comment_id=comment_id, video_id=video_id, viewer=viewer)

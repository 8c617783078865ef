"""Dismissals: a viewer is not interested in a video; one stream per viewer and video."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha1
from typing import Annotated, Any, Self
from uuid import UUID

from domain.model import Aggregate, Origin, Personal


def stream_id(video_id: UUID, viewer: str) -> UUID:
    """Return the stream of one viewer's dismissal of one video: `uuid5(video, NUL + viewer)`.

    No name has a NUL, so that it is never the stream of somebody's likes.
    """
    digest = sha1(video_id.bytes + b"\0" + viewer.encode(), usedforsecurity=False).digest()
    return UUID(bytes=digest[:16], version=5)


class Dismissal(Aggregate):
    """Whether one viewer wants no recommendation of one video."""

    TOPIC = "dismissals"

    class Event(Aggregate.Event):
        video_id: UUID
        viewer: Annotated[str, Personal("viewer")]

    class Dismissed(Event):
        TOPIC = "dismissals.dismissed.v1"

        def apply(self, dismissal: Dismissal) -> None:
            dismissal.stands = True

    class TakenBack(Event):
        TOPIC = "dismissals.taken_back.v1"

        def apply(self, dismissal: Dismissal) -> None:
            dismissal.stands = False

    def __init__(self) -> None:
        self.stands = False

    @classmethod
    def stream_of(cls, fields: Mapping[str, Any]) -> UUID:
        return stream_id(UUID(fields["video_id"]), fields["viewer"])

    def dismiss(self, video_id: UUID, viewer: str, origin: Origin) -> Self:
        """Dismiss the video; dismissing it again records nothing."""
        if not self.stands:
            self.record(self.Dismissed, origin, video_id=video_id, viewer=viewer)
        return self

    def take_back(self, video_id: UUID, viewer: str, origin: Origin) -> Self:
        """Take the dismissal back; without one this records nothing."""
        if self.stands:
            self.record(self.TakenBack, origin, video_id=video_id, viewer=viewer)
        return self

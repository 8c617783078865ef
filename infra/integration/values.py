"""The values of the published topics, named as they are on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import TypeAdapter
from typing_extensions import TypedDict


class Value(TypedDict):
    """What every value has: an id that is the same whenever it is told again."""

    id: UUID


class CommentCreated(Value):
    """A comment was posted by `userId`."""

    commentId: UUID
    videoId: UUID
    content: str
    userId: str
    ts: datetime


class CommentEdited(CommentCreated):
    """A comment has another text."""


class CommentDeletedValue(Value):
    """A comment is gone from every read."""

    commentId: UUID
    videoId: UUID
    userId: str
    ts: datetime


class CommentTranslated(Value):
    """A translation of a comment; `originalLang` is an ISO 639-1 code."""

    commentId: UUID
    originalLang: str
    translatedText: str
    ts: datetime


class LikeChanged(Value):
    """A viewer likes a video, or no longer does."""

    videoId: UUID
    userId: str
    action: Literal["like", "unlike"]
    ts: datetime


class Watched(Value):
    """Something that a viewer did beside deciding; `userId` is null where nobody knows."""

    videoId: UUID
    userId: str | None
    timestamp: datetime


class VideoViewed(Watched):
    """A video was opened to be played."""

    sessionId: UUID


class VideoWatchTime(VideoViewed):
    """Seconds watched since the last report of the session."""

    seconds: float


class VideoShared(Watched, total=False):
    """A video was shared; `channel`, where it is known, says where to."""

    channel: str


class UploadEndedValue(Value):
    """An upload came to an end; `userId` is its owner."""

    uploadId: UUID
    videoId: UUID
    userId: str
    ts: datetime


class UploadCompletedValue(UploadEndedValue):
    """An upload became a video of `sizeBytes`."""

    sizeBytes: int
    etag: str


class UploadAbortedValue(UploadEndedValue):
    """An upload was given up by its owner, or nobody went on with it until it expired."""

    reason: Literal["requested", "expired"]


Adapter = TypeAdapter[Value]


def required(kind: Any) -> frozenset[str]:
    """The fields that a value of that kind can't do without."""
    return frozenset(kind.__required_keys__)


def adapter(kind: type[Value]) -> Adapter:
    """What checks a value that came from outside."""
    return TypeAdapter(kind)

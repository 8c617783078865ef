"""The published messages: the topics, the shape of their values, and how an event becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal, NamedTuple, cast
from uuid import UUID

import orjson
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from domain.comment import Comment
from domain.model import Aggregate
from domain.upload import Upload
from domain.video_likes import VideoLikes
from engine.log import event_id
from engine.telemetry import TelemetryEvent

COMMENT_CREATED = "comment.created"
COMMENT_EDITED = "comment.edited"
COMMENT_DELETED = "comment.deleted"
COMMENT_TRANSLATED = "comment.translated"
VIDEO_LIKED = "video.liked"
VIDEO_UNLIKED = "video.unliked"
VIDEO_VIEWED = "video.viewed"
VIDEO_WATCH_TIME = "video.watch_time"
VIDEO_SHARED = "video.shared"
UPLOAD_COMPLETED = "upload.completed"
UPLOAD_ABORTED = "upload.aborted"

TELEMETRY = frozenset((VIDEO_VIEWED, VIDEO_WATCH_TIME, VIDEO_SHARED))

DLQ = ".dlq"

EVENTS_SOURCE = b"/backlot/events"
TELEMETRY_SOURCE = b"/backlot/telemetry"

SPECVERSION = ("ce_specversion", b"1.0")
CONTENT_TYPE = ("content-type", b"application/json")

Headers = list[tuple[str, bytes]]


class Value(TypedDict):
    """What every value has: an id that is the same whenever the message is published again."""

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


def required_fields(kind: Any) -> frozenset[str]:
    """Return the fields that a value of that kind can't do without."""
    return frozenset(kind.__required_keys__)


def adapter(kind: type[Value]) -> Adapter:
    """Return the check of a value that comes from outside."""
    return TypeAdapter(kind)


TOPICS: dict[str, type[Value]] = {
    COMMENT_CREATED: CommentCreated,
    COMMENT_EDITED: CommentEdited,
    COMMENT_DELETED: CommentDeletedValue,
    COMMENT_TRANSLATED: CommentTranslated,
    VIDEO_LIKED: LikeChanged,
    VIDEO_UNLIKED: LikeChanged,
    VIDEO_VIEWED: VideoViewed,
    VIDEO_WATCH_TIME: VideoWatchTime,
    VIDEO_SHARED: VideoShared,
    UPLOAD_COMPLETED: UploadCompletedValue,
    UPLOAD_ABORTED: UploadAbortedValue,
}


def dead_letters(topic: str) -> str:
    """Return the topic beside a topic, where what a consumer could not read or handle is put."""
    return topic + DLQ


@cache
def adapter_of(topic: str) -> Adapter:
    """Return the check of a topic's values; raise KeyError for a topic that is not published."""
    return adapter(TOPICS[topic])


class NotPublishable(ValueError):
    """What was recorded does not make a message of its topic."""


class Message(NamedTuple):
    """A message to publish; `position` is that in the log, or in the order of the telemetry."""

    topic: str
    id: UUID
    key: str
    value: bytes
    position: int
    at: datetime
    source: bytes
    correlation_id: str | None

    def headers(self) -> Headers:
        """CloudEvents 1.0 in Kafka's binary mode, and ours."""
        told = [
            SPECVERSION,
            ("ce_id", str(self.id).encode()),
            ("ce_type", self.topic.encode()),
            ("ce_source", self.source),
            ("ce_time", orjson.dumps(self.at, option=orjson.OPT_UTC_Z)[1:-1]),
            CONTENT_TYPE,
            ("position", b"%d" % self.position),
        ]
        if self.correlation_id is not None:
            told.append(("correlationId", self.correlation_id.encode()))
        return told


class Told(NamedTuple):
    """How an event is published: its topic, its value, and its key, which orders it."""

    topic: str
    value: Callable[[UUID, Any], Value]
    key: Callable[[Any], UUID]


def _comment_written(id_: UUID, event: Comment.Posted | Comment.Edited) -> CommentCreated:
    return {
        "id": id_,
        "commentId": event.originator_id,
        "videoId": event.video_id,
        "content": event.content,
        "userId": event.author,
        "ts": event.timestamp,
    }


def _comment_deleted(id_: UUID, event: Comment.Deleted) -> CommentDeletedValue:
    return {
        "id": id_,
        "commentId": event.originator_id,
        "videoId": event.video_id,
        "userId": event.author,
        "ts": event.timestamp,
    }


def _comment_translated(id_: UUID, event: Comment.Translated) -> CommentTranslated:
    return {
        "id": id_,
        "commentId": event.originator_id,
        "originalLang": event.original_language,
        "translatedText": event.translated_text,
        "ts": event.timestamp,
    }


def _like_changed(id_: UUID, event: VideoLikes.Event) -> LikeChanged:
    return {
        "id": id_,
        "videoId": event.video_id,
        "userId": event.viewer,
        "action": "like" if isinstance(event, VideoLikes.Liked) else "unlike",
        "ts": event.timestamp,
    }


def _upload_completed(id_: UUID, event: Upload.Completed) -> UploadCompletedValue:
    return {
        "id": id_,
        "uploadId": event.originator_id,
        "videoId": event.originator_id,
        "userId": event.owner,
        "sizeBytes": event.size_bytes,
        "etag": event.etag,
        "ts": event.timestamp,
    }


def _upload_aborted(id_: UUID, event: Upload.Event) -> UploadAbortedValue:
    return {
        "id": id_,
        "uploadId": event.originator_id,
        "videoId": event.originator_id,
        "userId": event.owner,
        "reason": "expired" if isinstance(event, Upload.Expired) else "requested",
        "ts": event.timestamp,
    }


def _own_stream(event: Aggregate.Event) -> UUID:
    return event.originator_id


def _video(event: VideoLikes.Event) -> UUID:
    return event.video_id


PUBLISHED: dict[type[Aggregate.Event], Told] = {
    Comment.Posted: Told(COMMENT_CREATED, _comment_written, _own_stream),
    Comment.Edited: Told(COMMENT_EDITED, _comment_written, _own_stream),
    Comment.Deleted: Told(COMMENT_DELETED, _comment_deleted, _own_stream),
    Comment.Translated: Told(COMMENT_TRANSLATED, _comment_translated, _own_stream),
    VideoLikes.Liked: Told(VIDEO_LIKED, _like_changed, _video),
    VideoLikes.Unliked: Told(VIDEO_UNLIKED, _like_changed, _video),
    Upload.Completed: Told(UPLOAD_COMPLETED, _upload_completed, _own_stream),
    Upload.Aborted: Told(UPLOAD_ABORTED, _upload_aborted, _own_stream),
    # To a reader of the topic, the upload is over in either case.
    Upload.Expired: Told(UPLOAD_ABORTED, _upload_aborted, _own_stream),
}


def events_for(wanted: Iterable[str]) -> list[type[Aggregate.Event]]:
    """Return the events that are published under one of these topics."""
    names = frozenset(wanted)
    return [event for event, told in PUBLISHED.items() if told.topic in names]


def from_event(position: int, event: Aggregate.Event) -> Message:
    """Return the message of an event; raise NotPublishable for one without a topic."""
    told = PUBLISHED.get(type(event))
    if told is None:
        raise NotPublishable(f"No topic tells {type(event).TOPIC}.")
    id_ = event_id(event.originator_id, event.originator_version)
    return Message(
        told.topic,
        id_,
        str(told.key(event)),
        _json(told.value(id_, event)),
        position,
        event.timestamp,
        EVENTS_SOURCE,
        event.correlation_id,
    )


def from_telemetry(position: int, event: TelemetryEvent) -> Message:
    """Return the message of what a viewer did; raise NotPublishable where a field is missing.

    `position` is that in the order of the telemetry.
    """
    at = event.happened_at.astimezone(UTC)
    return Message(
        event.topic,
        event.event_id,
        str(event.video_id),
        _json(_telemetry_value(event, at)),
        position,
        at,
        TELEMETRY_SOURCE,
        event.correlation_id,
    )


def _fields(kind: type[Value]) -> tuple[list[str], list[str]]:
    """Return the required and the optional fields of a value, in the order of the message."""
    required, names = required_fields(kind), kind.__annotations__
    optional = [name for name in names if name not in required]
    return [name for name in names if name in required], optional


# Looked up once: telemetry comes in thousands.
TELEMETRY_FIELDS = {topic: _fields(TOPICS[topic]) for topic in TELEMETRY}


def _telemetry_value(event: TelemetryEvent, at: datetime) -> Value:
    if event.topic not in TELEMETRY_FIELDS:
        raise NotPublishable(f"There is no telemetry named {event.topic!r}.")
    required, optional = TELEMETRY_FIELDS[event.topic]
    told: dict[str, Any] = {
        **event.details,
        "id": event.event_id,
        "videoId": event.video_id,
        "userId": event.user_id,
        "timestamp": at,
    }
    # A promise holds what it names, and nothing that happens to lie beside it.
    try:
        value = {name: told[name] for name in required}
    except KeyError:
        missing = ", ".join(sorted(set(required) - told.keys()))
        raise NotPublishable(f"{event.topic} {event.event_id} lacks {missing}.") from None
    for name in optional:
        if name in told:
            value[name] = told[name]
    return cast("Value", value)


def _json(value: Value) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_UTC_Z)

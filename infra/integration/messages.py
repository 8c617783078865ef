"""From what is recorded to what is published: topic, key, value and headers of a message."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast
from uuid import UUID

import orjson

from domain.comment import Comment
from domain.model import Aggregate
from domain.upload import Upload
from domain.video_likes import VideoLikes
from infra.codec import event_id
from infra.integration import topics, values
from infra.integration.values import Value
from infra.telemetry import TelemetryEvent

EVENTS_SOURCE = b"/backlot/events"
TELEMETRY_SOURCE = b"/backlot/telemetry"

SPECVERSION = ("ce_specversion", b"1.0")
CONTENT_TYPE = ("content-type", b"application/json")

Headers = list[tuple[str, bytes]]


class NotPublishable(ValueError):
    """What was recorded does not make a message of its topic."""


class Message(NamedTuple):
    """What is published; `position` counts in the log, or in the telemetry's order."""

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
    """How an event is told: under which topic, with which value, in whose order."""

    topic: str
    value: Callable[[UUID, Any], Value]
    key: Callable[[Any], UUID]


def _comment_created(id_: UUID, event: Comment.Posted) -> values.CommentCreated:
    return {
        "id": id_,
        "commentId": event.originator_id,
        "videoId": event.video_id,
        "content": event.content,
        "userId": event.author,
        "ts": event.timestamp,
    }


def _comment_edited(id_: UUID, event: Comment.Edited) -> values.CommentEdited:
    return {
        "id": id_,
        "commentId": event.originator_id,
        "videoId": event.video_id,
        "content": event.content,
        "userId": event.author,
        "ts": event.timestamp,
    }


def _comment_deleted(id_: UUID, event: Comment.Deleted) -> values.CommentDeletedValue:
    return {
        "id": id_,
        "commentId": event.originator_id,
        "videoId": event.video_id,
        "userId": event.author,
        "ts": event.timestamp,
    }


def _comment_translated(id_: UUID, event: Comment.Translated) -> values.CommentTranslated:
    return {
        "id": id_,
        "commentId": event.originator_id,
        "originalLang": event.original_language,
        "translatedText": event.translated_text,
        "ts": event.timestamp,
    }


def _like_changed(id_: UUID, event: VideoLikes.Event) -> values.LikeChanged:
    return {
        "id": id_,
        "videoId": event.video_id,
        "userId": event.viewer,
        "action": "like" if isinstance(event, VideoLikes.Liked) else "unlike",
        "ts": event.timestamp,
    }


def _upload_completed(id_: UUID, event: Upload.Completed) -> values.UploadCompletedValue:
    return {
        "id": id_,
        "uploadId": event.originator_id,
        "videoId": event.originator_id,
        "userId": event.owner,
        "sizeBytes": event.size_bytes,
        "etag": event.etag,
        "ts": event.timestamp,
    }


def _upload_aborted(id_: UUID, event: Upload.Event) -> values.UploadAbortedValue:
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
    Comment.Posted: Told(topics.COMMENT_CREATED, _comment_created, _own_stream),
    Comment.Edited: Told(topics.COMMENT_EDITED, _comment_edited, _own_stream),
    Comment.Deleted: Told(topics.COMMENT_DELETED, _comment_deleted, _own_stream),
    Comment.Translated: Told(topics.COMMENT_TRANSLATED, _comment_translated, _own_stream),
    VideoLikes.Liked: Told(topics.VIDEO_LIKED, _like_changed, _video),
    VideoLikes.Unliked: Told(topics.VIDEO_UNLIKED, _like_changed, _video),
    Upload.Completed: Told(topics.UPLOAD_COMPLETED, _upload_completed, _own_stream),
    Upload.Aborted: Told(topics.UPLOAD_ABORTED, _upload_aborted, _own_stream),
    # For whoever reads it the upload is over in either case.
    Upload.Expired: Told(topics.UPLOAD_ABORTED, _upload_aborted, _own_stream),
}


def events_for(wanted: Iterable[str]) -> list[type[Aggregate.Event]]:
    """The events that are told under one of these topics."""
    names = frozenset(wanted)
    return [event for event, told in PUBLISHED.items() if told.topic in names]


def from_event(position: int, event: Aggregate.Event) -> Message:
    """The message that tells an event; raises NotPublishable for one that no topic tells."""
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
    """The message that tells what a viewer did; raises NotPublishable where something is missing.

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


class Fields(NamedTuple):
    """The fields of a value by name, in the order in which they are told."""

    required: tuple[str, ...]
    optional: tuple[str, ...]


def _fields(kind: type[Value]) -> Fields:
    required = values.required(kind)
    names = kind.__annotations__
    return Fields(
        tuple(name for name in names if name in required),
        tuple(name for name in names if name not in required),
    )


# Looked up once: telemetry comes in thousands.
TELEMETRY_FIELDS = {topic: _fields(topics.TOPICS[topic]) for topic in topics.TELEMETRY}


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

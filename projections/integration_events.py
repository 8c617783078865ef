"""The published messages: the topics, the shape of their values, and how an event becomes one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from operator import attrgetter
from typing import Any, Literal, NamedTuple, NotRequired
from uuid import UUID

import orjson
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from domain.comment import Comment
from domain.comment_likes import CommentLikes
from domain.feedback import CHOSEN, SHOWN
from domain.model import Aggregate
from domain.person import Person
from domain.upload import Upload
from domain.video_likes import VideoLikes
from engine.log import event_id
from engine.telemetry import TelemetryEvent

COMMENT_CREATED = "comment.created"
COMMENT_EDITED = "comment.edited"
COMMENT_DELETED = "comment.deleted"
COMMENT_TRANSLATED = "comment.translated"
COMMENT_LIKED = "comment.liked"
COMMENT_UNLIKED = "comment.unliked"
VIDEO_LIKED = "video.liked"
VIDEO_UNLIKED = "video.unliked"
VIDEO_VIEWED = "video.viewed"
VIDEO_WATCH_TIME = "video.watch_time"
VIDEO_SHARED = "video.shared"
UPLOAD_COMPLETED = "upload.completed"
UPLOAD_ABORTED = "upload.aborted"
VISIBILITY_CHANGED = "video.visibility_changed"
USER_FORGOTTEN = "user.forgotten"

TELEMETRY = frozenset((VIDEO_VIEWED, VIDEO_WATCH_TIME, VIDEO_SHARED, SHOWN, CHOSEN))

EVENTS_SOURCE = b"/backlot/events"
TELEMETRY_SOURCE = b"/backlot/telemetry"


class Value(TypedDict):
    """What every value has: an id that is the same whenever the message is published again."""

    id: UUID


class CommentDeletedValue(Value):
    """A comment is gone from every read, with the replies to it; `userId` is its author.

    A reply has a `parentId`: the comment that it answers.
    """

    commentId: UUID
    videoId: UUID
    userId: str
    ts: datetime
    parentId: NotRequired[UUID]


class CommentWritten(CommentDeletedValue):
    """A comment is there for everybody, for the first time or again, or has another text."""

    content: str


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


class CommentLikeChanged(LikeChanged):
    """A viewer likes a comment, or no longer does."""

    commentId: UUID


class Watched(Value):
    """What a viewer did without deciding; `userId` is null where nobody knows."""

    videoId: UUID
    userId: str | None
    timestamp: datetime


class VideoViewed(Watched):
    """A video was opened to be played."""

    sessionId: UUID


class WatchReport(VideoViewed):
    """Seconds watched since the last report of the session."""

    seconds: float


class VideoWatchTime(WatchReport, total=False):
    """Seconds watched; `position`, where it is known, is the second of the video they began at."""

    position: float


class VideoShared(Watched, total=False):
    """A video was shared; `channel`, where it is known, says where to."""

    channel: str


class Recommended(Watched):
    """A video in its place (from 1) among those that were recommended.

    `listId` is all that a user was recommended within the hour that begins `givenAt`; `source` is
    what mainly brought the video there, `variant` by which settings.
    """

    listId: UUID
    givenAt: datetime
    place: int
    source: str
    variant: str


class RecommendationReported(Recommended, total=False):
    """A recommended video was shown to its user, or chosen by them.

    `experiment` is there where the settings of two variants were compared.
    """

    experiment: int


Shown = Literal["public", "unlisted", "private"]


class UploadValue(Value):
    """What is told of an upload, and of the video of the same id; `userId` is its owner."""

    uploadId: UUID
    videoId: UUID
    userId: str
    ts: datetime


class UploadCompletedValue(UploadValue):
    """An upload became a video of `sizeBytes`, for everybody or not.

    Without `visibility`, as older releases published it, it is `public`.
    """

    sizeBytes: int
    etag: str
    visibility: NotRequired[Shown]


class VisibilityChangedValue(UploadValue):
    """Somebody said who may see a video, of `userId`; perhaps before its upload ended."""

    visibility: Shown


class UploadAbortedValue(UploadValue):
    """The owner gave an upload up, or it expired because nobody went on with it."""

    reason: Literal["requested", "expired"]


class UserForgotten(Value):
    """A user was forgotten: whoever has copies removes what names `userId`."""

    userId: str
    ts: datetime


TOPICS: dict[str, type[Value]] = {
    COMMENT_CREATED: CommentWritten,
    COMMENT_EDITED: CommentWritten,
    COMMENT_DELETED: CommentDeletedValue,
    COMMENT_TRANSLATED: CommentTranslated,
    COMMENT_LIKED: CommentLikeChanged,
    COMMENT_UNLIKED: CommentLikeChanged,
    VIDEO_LIKED: LikeChanged,
    VIDEO_UNLIKED: LikeChanged,
    VIDEO_VIEWED: VideoViewed,
    VIDEO_WATCH_TIME: VideoWatchTime,
    VIDEO_SHARED: VideoShared,
    SHOWN: RecommendationReported,
    CHOSEN: RecommendationReported,
    UPLOAD_COMPLETED: UploadCompletedValue,
    UPLOAD_ABORTED: UploadAbortedValue,
    VISIBILITY_CHANGED: VisibilityChangedValue,
    USER_FORGOTTEN: UserForgotten,
}


TEXTS = frozenset(("content", "translatedText", "channel"))
"""Members of values in which somebody has said what they liked."""


def topics_with_texts() -> list[str]:
    """Return the topics in which somebody's texts lie, those of dead messages included."""
    with_texts = [topic for topic, value in TOPICS.items() if TEXTS & value.__annotations__.keys()]
    return [name for topic in with_texts for name in (topic, dead_letters(topic))]


def dead_letters(topic: str) -> str:
    """Return the topic of the messages of `topic` that a consumer could not read or handle."""
    return f"{topic}.dlq"


@cache
def adapter_of(topic: str) -> TypeAdapter[Value]:
    """Return the check of a topic's values; raise KeyError for a topic that is not published."""
    return TypeAdapter(TOPICS[topic])


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

    def headers(self) -> list[tuple[str, bytes]]:
        """Return the headers of CloudEvents 1.0 in Kafka's binary mode, and Backlot's own."""
        # By orjson, which is several times as fast as `str` and `isoformat`.
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", orjson.dumps(self.id)[1:-1]),
            ("ce_type", self.topic.encode()),
            ("ce_source", self.source),
            ("ce_time", orjson.dumps(self.at, option=orjson.OPT_UTC_Z)[1:-1]),
            ("content-type", b"application/json"),
            ("position", b"%d" % self.position),
        ]
        if self.correlation_id is not None:
            headers.append(("correlationId", self.correlation_id.encode()))
        return headers

    def cloud_event(self) -> bytes:
        """Return the message as CloudEvents 1.0 in structured mode; numbers are strings there.

        The format's integers have 32 bits, its names of attributes no capital letters.
        """
        attributes = {
            "specversion": "1.0",
            "id": self.id,
            "type": self.topic,
            "source": self.source.decode(),
            "time": self.at,
            "datacontenttype": "application/json",
            "partitionkey": self.key,
            "position": str(self.position),
        }
        if self.correlation_id is not None:
            attributes["correlationid"] = self.correlation_id
        attributes["data"] = orjson.Fragment(self.value)
        return orjson.dumps(attributes, option=orjson.OPT_UTC_Z)


class Publication:
    """How an event is published: its topic, and the fields of its value between `id` and `ts`.

    `attributes` are fields by the event's attribute. The first of them is the key, which orders.
    The field `optional` comes last, and only where there is a value.
    """

    def __init__(
        self,
        topic: str,
        attributes: Mapping[str, str],
        optional: tuple[str, str] | None = None,
        **constants: str,
    ) -> None:
        self.topic = topic
        self.optional = optional
        # Made once: the relay publishes thousands in a second.
        self.fields = ("id", *attributes, *constants, "ts")
        self.constants = tuple(constants.values())
        names = tuple(attributes.values())
        get = attrgetter(*names)
        self.values_of = get if len(names) > 1 else lambda event: (get(event),)


PARENT = ("parentId", "parent_id")
COMMENT = {"commentId": "originator_id", "videoId": "video_id"}
WRITTEN = {**COMMENT, "content": "content", "userId": "author"}
DELETED = {**COMMENT, "userId": "author"}
TRANSLATED = {
    "commentId": "originator_id",
    "originalLang": "original_language",
    "translatedText": "translated_text",
}
LIKE = {"videoId": "video_id", "userId": "viewer"}
COMMENT_LIKE = {"commentId": "comment_id", **LIKE}
UPLOAD = {"uploadId": "originator_id", "videoId": "originator_id", "userId": "owner"}
COMPLETED = {**UPLOAD, "sizeBytes": "size_bytes", "etag": "etag", "visibility": "visibility"}
SHOWN_TO = {**UPLOAD, "visibility": "visibility"}

PUBLISHED: dict[type[Aggregate.Event], Publication] = {
    Comment.Posted: Publication(COMMENT_CREATED, WRITTEN, PARENT),
    Comment.Edited: Publication(COMMENT_EDITED, WRITTEN, PARENT),
    Comment.Deleted: Publication(COMMENT_DELETED, DELETED, PARENT),
    # To a reader of the topics, a comment is there while everybody sees it.
    Comment.Approved: Publication(COMMENT_CREATED, WRITTEN, PARENT),
    Comment.Restored: Publication(COMMENT_CREATED, WRITTEN, PARENT),
    Comment.Removed: Publication(COMMENT_DELETED, DELETED, PARENT),
    Comment.Withheld: Publication(COMMENT_DELETED, DELETED, PARENT),
    Comment.Translated: Publication(COMMENT_TRANSLATED, TRANSLATED),
    CommentLikes.Liked: Publication(COMMENT_LIKED, COMMENT_LIKE, action="like"),
    CommentLikes.Unliked: Publication(COMMENT_UNLIKED, COMMENT_LIKE, action="unlike"),
    VideoLikes.Liked: Publication(VIDEO_LIKED, LIKE, action="like"),
    VideoLikes.Unliked: Publication(VIDEO_UNLIKED, LIKE, action="unlike"),
    Upload.VisibilityChanged: Publication(VISIBILITY_CHANGED, SHOWN_TO),
    Upload.Completed: Publication(UPLOAD_COMPLETED, COMPLETED),
    # To a reader of the topic, the upload is over in either case.
    Upload.Aborted: Publication(UPLOAD_ABORTED, UPLOAD, reason="requested"),
    Upload.Expired: Publication(UPLOAD_ABORTED, UPLOAD, reason="expired"),
    Person.Forgotten: Publication(USER_FORGOTTEN, {"userId": "person"}),
}


def events_for(wanted: Iterable[str]) -> list[type[Aggregate.Event]]:
    """Return the events that are published under one of these topics."""
    names = frozenset(wanted)
    return [event for event, published in PUBLISHED.items() if published.topic in names]


def from_event(position: int, event: Aggregate.Event) -> Message:
    """Return the message of an event; raise NotPublishable for one without a topic."""
    published = PUBLISHED.get(type(event))
    if published is None:
        raise NotPublishable(f"No topic tells {type(event).TOPIC}.")
    id_ = event_id(event.originator_id, event.originator_version)
    values = (id_, *published.values_of(event), *published.constants, event.timestamp)
    told = dict(zip(published.fields, values, strict=True))
    if published.optional is not None:
        field, attribute = published.optional
        if (value := getattr(event, attribute)) is not None:
            told[field] = value
    return Message(
        published.topic,
        id_,
        str(values[1]),
        orjson.dumps(told, option=orjson.OPT_UTC_Z),
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
        orjson.dumps(_telemetry_value(event, at), option=orjson.OPT_UTC_Z),
        position,
        at,
        TELEMETRY_SOURCE,
        event.correlation_id,
    )


def _fields(kind: Any) -> tuple[list[str], list[str]]:
    """Return the required and the optional fields of a value, in the order of the message."""
    required, names = kind.__required_keys__, kind.__annotations__
    optional = [name for name in names if name not in required]
    return [name for name in names if name in required], optional


# Looked up once: telemetry comes in thousands.
TELEMETRY_FIELDS = {topic: _fields(TOPICS[topic]) for topic in TELEMETRY}


def _telemetry_value(event: TelemetryEvent, at: datetime) -> dict[str, Any]:
    """Return the fields that the topic promises, and none that happens to lie beside them."""
    if event.topic not in TELEMETRY_FIELDS:
        raise NotPublishable(f"There is no telemetry named {event.topic!r}.")
    required, optional = TELEMETRY_FIELDS[event.topic]
    known: dict[str, Any] = {
        **event.details,
        "id": event.event_id,
        "videoId": event.video_id,
        "userId": event.user_id,
        "timestamp": at,
    }
    try:
        value = {name: known[name] for name in required}
    except KeyError:
        missing = ", ".join(sorted(set(required) - known.keys()))
        raise NotPublishable(f"{event.topic} {event.event_id} lacks {missing}.") from None
    return value | {name: known[name] for name in optional if name in known}

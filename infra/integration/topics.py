"""Every published topic, in one table that whoever publishes, consumes or lists them uses."""

from __future__ import annotations

from functools import cache

from infra.integration import values
from infra.integration.values import Adapter, Value, adapter

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

TOPICS: dict[str, type[Value]] = {
    COMMENT_CREATED: values.CommentCreated,
    COMMENT_EDITED: values.CommentEdited,
    COMMENT_DELETED: values.CommentDeletedValue,
    COMMENT_TRANSLATED: values.CommentTranslated,
    VIDEO_LIKED: values.LikeChanged,
    VIDEO_UNLIKED: values.LikeChanged,
    VIDEO_VIEWED: values.VideoViewed,
    VIDEO_WATCH_TIME: values.VideoWatchTime,
    VIDEO_SHARED: values.VideoShared,
    UPLOAD_COMPLETED: values.UploadCompletedValue,
    UPLOAD_ABORTED: values.UploadAbortedValue,
}
TELEMETRY = frozenset((VIDEO_VIEWED, VIDEO_WATCH_TIME, VIDEO_SHARED))

DLQ = ".dlq"


def dead_letters(topic: str) -> str:
    """The topic beside a topic, where what a consumer could not read or handle is put."""
    return topic + DLQ


@cache
def adapter_of(topic: str) -> Adapter:
    """What checks a value of the topic; raises KeyError for a topic that is not published."""
    return adapter(TOPICS[topic])

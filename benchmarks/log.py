"""Makes logs of any length quickly: real events through the real codec, written with COPY."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
from eventsourcing.persistence import StoredEvent

from domain.comment import Comment
from domain.model import Aggregate, Origin
from domain.upload import Upload, object_key
from domain.video_likes import VideoLikes, stream_id
from engine.event_store import open_recorder
from engine.log import EventMapper

AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
# As long as what the edge makes for each request.
CAUSE = {"correlation_id": f"{0xC0FFEE:032x}", "causation_id": f"{0xC0FFEE:032x}"}
COPY = "COPY backlot_events FROM STDIN (FORMAT binary)"
FORMER = b"INSERT INTO backlot_former_names VALUES (%s) ON CONFLICT DO NOTHING"
FORMER_VIEWERS = b"""
INSERT INTO backlot_former_names
SELECT 'viewer-' || number FROM generate_series(0, %s - 1) AS number
ON CONFLICT DO NOTHING
"""
COLUMN_TYPES = ("uuid", "int8", "text", "bytea", "int8")

MAPPER = EventMapper()


def video_id(number: int) -> UUID:
    """The id of a video, by its number from 0."""
    return UUID(int=0xBAC << 96 | number + 1)


VIDEOS = [video_id(number) for number in range(300)]
ORIGIN = Origin("owner", AT, CAUSE["correlation_id"], CAUSE["causation_id"])


def uploads() -> Iterator[StoredEvent]:
    """The videos: two events each."""
    for video in VIDEOS:
        yield from upload(video)


def upload(video: UUID) -> list[StoredEvent]:
    """The two events of a video."""
    begun = Upload.blank(video)
    begun.start(
        ORIGIN,
        title="A video",
        filename="video.mp4",
        content_type="video/mp4",
        size_bytes=1_000_000,
        description=None,
        category=None,
        part_size_bytes=1_000_000,
        object_key=object_key(video),
        store_upload_id="bench",
    )
    begun.complete(1_000_000, "etag", ORIGIN)
    return _stored_events(begun)


def upload_event(index: int) -> StoredEvent:
    """The index-th event of ever more uploads that are begun and completed."""
    return upload(UUID(int=0xB1D << 96 | index // 2))[index % 2]


def comment_event(index: int) -> StoredEvent:
    """The index-th event of ever more comments: each is posted, read by the detector, edited."""
    number, step = divmod(index, 3)
    comment = Comment.blank(UUID(int=0xC0F << 96 | number))
    comment.post(VIDEOS[number % len(VIDEOS)], f"What a fine film, number {number}!", ORIGIN)
    comment.detect_language(1, "en", 0.97, "bench", "en", ORIGIN)
    comment.edit(f"What a fine film, seen {number} times!", ORIGIN)
    return _stored_events(comment)[step]


def like_event(index: int) -> StoredEvent:
    """The index-th event of an endless community: each viewer likes each video once.

    Of five events four are first likes; the other one takes the first of them back.
    """
    block, place = divmod(index, 5)
    kind = VideoLikes.Unliked if place == 1 else VideoLikes.Liked
    viewer, video = divmod(4 * block + max(0, place - 1), len(VIDEOS))
    return _stored(kind, VIDEOS[video], f"viewer-{viewer}", 2 if place == 1 else 1)


def first_like(video: UUID, viewer: str) -> StoredEvent:
    """A like, the first event of its stream."""
    return _stored(VideoLikes.Liked, video, viewer, 1)


def first_comment(comment_id: UUID, video: UUID, author: str) -> StoredEvent:
    """A comment as it is posted."""
    comment = Comment.blank(comment_id)
    comment.post(video, f"What a fine film, {comment_id}!", replace(ORIGIN, actor=author))
    return _stored_events(comment)[0]


def first_likes(count: int, *, prefix: str) -> list[StoredEvent]:
    """That many likes, each the first event of its stream."""
    pairs = ((VIDEOS[n % len(VIDEOS)], f"{prefix}-{n // len(VIDEOS)}") for n in range(count))
    return [first_like(video, viewer) for video, viewer in pairs]


def fill(url: str, events: int, make: Callable[[int], StoredEvent] = like_event) -> None:
    """Bring the log at a database URL, new or filled here before, to that many events.

    It begins with the videos; `make` gives the index-th event after them.
    """
    recorder = open_recorder(url)
    before = recorder.max_notification_id() or 0
    recorder.close()
    videos = list(uploads())
    with psycopg.connect(url, autocommit=True) as conn:
        with conn.cursor() as cursor, cursor.copy(COPY) as copy:
            copy.set_types(COLUMN_TYPES)
            for index in range(before, events):
                event = videos[index] if index < len(videos) else make(index - len(videos))
                copy.write_row((*columns(event), index + 1))
        # As the migration finds who is named in a log of an older release.
        conn.execute(FORMER, (ORIGIN.actor,))
        conn.execute("VACUUM (ANALYZE) backlot_events")


def name_viewers(url: str, viewers: int) -> None:
    """Let the first viewers of a log be known by their user ids, as `fill` does the owner.

    Without that, those who come with a token get pseudonyms that no event of the log names.
    """
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(FORMER_VIEWERS, (viewers,))


def columns(event: StoredEvent) -> tuple[Any, int, str, bytes]:
    """An event as the first columns of the event table."""
    return event.originator_id, event.originator_version, event.topic, event.state


def _stored_events(aggregate: Aggregate) -> list[StoredEvent]:
    return [MAPPER.to_stored_event(event) for event in aggregate.collect_events()]


def _stored(kind: type[VideoLikes.Event], video: UUID, viewer: str, version: int) -> StoredEvent:
    fields: dict[str, Any] = {"actor": viewer, "video_id": video, "viewer": viewer, **CAUSE}
    stream = stream_id(video, viewer)
    event = kind(originator_id=stream, originator_version=version, timestamp=AT, **fields)
    return MAPPER.to_stored_event(event)

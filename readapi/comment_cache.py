"""The newest comments of videos, in the memory of one process; see `video_cache`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import LiteralString, NamedTuple
from uuid import UUID

import orjson

from domain.comment import Comment
from domain.upload import Upload
from engine.checkpoints import Pool
from engine.log import topics_of
from engine.tail import LastSeen, LogTail, Lru, TailEvent, TailTelemetry
from infra.batcher import BatchLoader
from infra.http.responses import names_of
from infra.http.shapes import Position
from infra.postgres.connection import column
from infra.pseudonyms import Pseudonyms
from projections.comments import Comments
from readapi.video_cache import MOST_CHANGES, OF_EVERYTHING

MOST_PAGES = 5_000
MOST_COMMENTS = 20
"""So many of the newest are kept of a video; who wants more asks the read model."""

MOST_AT_ONCE = 16
"""The comments of so many videos are read with one statement at most."""

SHOWN: LiteralString = (
    "comment_id, video_id, position, author, content, edited, language, confidence, "
    "translated_text, translation_status, created_at"
)
PAGES: LiteralString = f"""
WITH wanted AS MATERIALIZED (
    SELECT id, EXISTS (SELECT FROM comments.hidden WHERE video_id = wanted.id) AS hidden
    FROM unnest(%(videos)b::uuid[]) AS wanted (id))
SELECT wanted.id, wanted.hidden,
       (SELECT position FROM backlot_checkpoints
        WHERE kind = 'projection' AND subscription = %(comments)b), shown.*
FROM wanted
LEFT JOIN LATERAL (
    SELECT {SHOWN} FROM comments.comments WHERE video_id = wanted.id
    ORDER BY position DESC LIMIT %(limit)b) AS shown ON true
ORDER BY wanted.id, shown.position DESC
"""
FOUND: LiteralString = f"""
SELECT at.position, shown.*
FROM (SELECT position FROM backlot_checkpoints
      WHERE kind = 'projection' AND subscription = %(comments)b) AS at
LEFT JOIN (SELECT {SHOWN} FROM comments.comments WHERE comment_id = ANY (%(ids)b::uuid[])) AS shown
    ON true
"""
OF_COMMENTS = frozenset(topic for event in Comment.events() for topic in topics_of(event))
OF_VIDEOS = frozenset(topics_of(Upload.Removed))
CHANGE_ALL = frozenset(topic for event in OF_EVERYTHING for topic in topics_of(event))


class ShownComment(NamedTuple):
    """What is told of a comment, and its position."""

    comment_id: UUID
    video_id: UUID
    position: int
    author: str
    content: str
    edited: bool
    language: str | None
    confidence: float | None
    translated_text: str | None
    translation_status: str
    created_at: datetime


class CommentPage(NamedTuple):
    """The newest comments as JSON, with their positions; whether there are more, or hidden ones.

    `wanted` is up to where the read model has to come before the page is right.
    """

    items: Sequence[tuple[int, bytes]]
    more: bool
    hidden: bool
    reached: int
    wanted: int = 0

    @property
    def is_behind(self) -> bool:
        return self.reached < self.wanted


class CommentCache:
    """The first pages that were shown last; a follower of the log. For one event loop."""

    def __init__(self, pool: Pool, tail: LogTail, persons: Pseudonyms) -> None:
        """`pool` leads to the read models."""
        self._pool = pool
        self._persons = persons
        self._pages: Lru[UUID, CommentPage] = Lru(MOST_PAGES, "comments")
        self._loader: BatchLoader[UUID, CommentPage] = BatchLoader(self._read, MOST_AT_ONCE)
        self._changes = LastSeen(MOST_CHANGES)
        self._tail = tail
        # Another number whenever everything was dropped: what was read before is not kept.
        self._epoch = 0
        self._handlers: Mapping[str, Callable[[TailEvent], None]] = {
            **dict.fromkeys(OF_COMMENTS, self._commented),
            **dict.fromkeys(OF_VIDEOS, self._removed),
            **dict.fromkeys(CHANGE_ALL, self._everything),
        }
        tail.follow(self, self._handlers)

    def begin(self, position: Position) -> None:
        self._epoch += 1
        self._pages.clear()
        self._changes.begin(position.events)

    def take(self, event: TailEvent) -> None:
        self._handlers[event.topic](event)

    def take_telemetry(self, event: TailTelemetry) -> None:
        pass

    def _commented(self, event: TailEvent) -> None:
        self._change(UUID(event.fields["video_id"]), event.position)

    def _removed(self, event: TailEvent) -> None:
        self._change(event.stream_id, event.position)

    def _everything(self, event: TailEvent) -> None:
        self.begin(Position(event.position))

    def _change(self, video_id: UUID, position: int) -> None:
        self._changes.put(video_id, position)
        page = self._pages.peek(video_id)
        if page is not None and position > page.reached:
            self._pages.drop(video_id)

    async def newest(self, video_id: UUID) -> CommentPage:
        """Return the newest comments of a video; raise what the database raises."""
        return self._pages.get(video_id) or await self._loader.ask(video_id)

    async def _read(self, videos: Sequence[UUID]) -> dict[UUID, CommentPage]:
        """Return the newest comments as the read model has them; keep those that lack nothing."""
        epoch = self._epoch
        given = {"comments": Comments.name, "videos": column(videos), "limit": MOST_COMMENTS + 1}
        async with self._pool.connection() as conn, conn.cursor(binary=True) as cursor:
            await cursor.execute(PAGES.encode(), given, prepare=True)
            rows = await cursor.fetchall()
        comments: dict[UUID, list[ShownComment]] = {video: [] for video in videos}
        hidden, reached = {}, rows[0][2] or 0
        for video, hides, _, *columns in rows:
            hidden[video] = hides
            if columns[0] is not None:
                comments[video].append(ShownComment(*columns))
        names = await names_of(
            self._persons, {each.author for page in comments.values() for each in page}
        )
        pages = {}
        for video, newest in comments.items():
            shown = newest[:MOST_COMMENTS]
            items = [(each.position, told(each, names.get(each.author))) for each in shown]
            more, changed = len(newest) > len(shown), self._changes.get(video)
            pages[video] = CommentPage(items, more, hidden[video], reached, changed)
            if not pages[video].is_behind and epoch == self._epoch:
                self._pages.put(video, pages[video])
        return pages

    async def found(self, ids: Sequence[UUID]) -> tuple[dict[UUID, bytes], int]:
        """Return those of the comments that everybody sees, as JSON, and how far that is.

        Raise what the database raises.
        """
        given = {"comments": Comments.name, "ids": column(ids)}
        async with self._pool.connection() as conn, conn.cursor(binary=True) as cursor:
            await cursor.execute(FOUND.encode(), given)
            rows = await cursor.fetchall()
        comments = [ShownComment(*row[1:]) for row in rows if row[1] is not None]
        names = await names_of(self._persons, {each.author for each in comments})
        shown = {each.comment_id: told(each, names.get(each.author)) for each in comments}
        return shown, rows[0][0] if rows else 0


def told(comment: ShownComment, author: str | None) -> bytes:
    """Return a comment that everybody sees as JSON, as the shape `Comment` does, and faster."""
    shown: dict[str, object] = {
        "commentId": comment.comment_id,
        "videoId": comment.video_id,
        "userId": comment.author if author is None else author,
        "content": comment.content,
        "translationStatus": comment.translation_status,
        "edited": comment.edited,
        "createdAt": comment.created_at,
    }
    if comment.language is not None:
        shown["language"] = comment.language
    if comment.confidence is not None:
        shown["confidence"] = comment.confidence
    if comment.translated_text is not None:
        shown["translatedText"] = comment.translated_text
    return orjson.dumps(shown, option=orjson.OPT_UTC_Z)

"""The newest comments of videos, in the memory of one process; see `video_cache`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString, NamedTuple
from uuid import UUID

import orjson

from domain.comment import Comment
from domain.upload import Upload
from engine.checkpoints import Pool
from engine.log import topics_of
from engine.tail import LastSeen, LogTail, TailEvent, TailTelemetry
from infra.http.responses import names_of
from infra.http.shapes import Position
from infra.pseudonyms import Pseudonyms
from projections.comment_tables import COLUMNS
from projections.comments import CommentRow, Comments
from readapi.caches import Lru
from readapi.video_cache import MOST_CHANGES, OF_EVERYTHING

MOST_PAGES = 5_000
MOST_COMMENTS = 20
"""So many of the newest are kept of a video; who wants more asks the read model."""

PAGE: LiteralString = f"""
SELECT at.*, shown.*
FROM (SELECT (SELECT position FROM backlot_checkpoints
              WHERE kind = 'projection' AND subscription = %(comments)s),
             EXISTS (SELECT FROM comments.hidden WHERE video_id = %(video)s))
     AS at (position, hidden)
LEFT JOIN (SELECT {COLUMNS} FROM comments.comments WHERE video_id = %(video)s
           ORDER BY position DESC LIMIT %(limit)s) AS shown ON true
"""
FOUND: LiteralString = f"""
SELECT at.position, shown.*
FROM (SELECT position FROM backlot_checkpoints
      WHERE kind = 'projection' AND subscription = %(comments)s) AS at
LEFT JOIN (SELECT {COLUMNS} FROM comments.comments WHERE comment_id = ANY (%(ids)s)) AS shown
    ON true
"""
OF_COMMENTS = frozenset(topic for event in Comment.events() for topic in topics_of(event))
OF_VIDEOS = frozenset(topics_of(Upload.Removed))
CHANGE_ALL = frozenset(topic for event in OF_EVERYTHING for topic in topics_of(event))


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
        self._changes = LastSeen(MOST_CHANGES)
        self._tail = tail
        # Another number whenever everything was dropped: what was read before is not kept.
        self._epoch = 0
        tail.follow(self)

    def begin(self, position: Position) -> None:
        self._epoch += 1
        self._pages.clear()
        self._changes.begin(position.events)

    def take(self, event: TailEvent) -> None:
        if event.topic in OF_COMMENTS:
            self._change(UUID(event.fields["video_id"]), event.position)
        elif event.topic in OF_VIDEOS:
            self._change(event.stream_id, event.position)
        elif event.topic in CHANGE_ALL:
            self.begin(Position(event.position))

    def take_telemetry(self, event: TailTelemetry) -> None:
        pass

    def _change(self, video_id: UUID, position: int) -> None:
        self._changes.put(video_id, position)
        page = self._pages.peek(video_id)
        if page is not None and position > page.reached:
            self._pages.drop(video_id)

    async def newest(self, video_id: UUID) -> CommentPage:
        """Return the newest comments of a video; raise what the database raises."""
        found = self._pages.get(video_id)
        if found is not None:
            return found
        epoch = self._epoch
        given = {"comments": Comments.name, "video": video_id, "limit": MOST_COMMENTS + 1}
        async with self._pool.connection() as conn, conn.cursor(binary=True) as cursor:
            await cursor.execute(PAGE.encode(), given)
            rows = await cursor.fetchall()
        reached, hidden = rows[0][:2]
        comments = [CommentRow(*row[2:]) for row in rows if row[2] is not None]
        told = await self._encoded(comments[:MOST_COMMENTS])
        items = [(each.position, told[each.comment_id]) for each in comments[:MOST_COMMENTS]]
        more = len(comments) > MOST_COMMENTS
        page = CommentPage(items, more, hidden, reached or 0, self._changes.get(video_id))
        if not page.is_behind and epoch == self._epoch:
            self._pages.put(video_id, page)
        return page

    async def found(self, ids: Sequence[UUID]) -> tuple[dict[UUID, bytes], int]:
        """Return those of the comments that everybody sees, as JSON, and how far that is.

        Raise what the database raises.
        """
        given = {"comments": Comments.name, "ids": list(ids)}
        async with self._pool.connection() as conn, conn.cursor(binary=True) as cursor:
            await cursor.execute(FOUND.encode(), given)
            rows = await cursor.fetchall()
        comments = [CommentRow(*row[1:]) for row in rows if row[1] is not None]
        return await self._encoded(comments), rows[0][0] if rows else 0

    async def _encoded(self, comments: Sequence[CommentRow]) -> dict[UUID, bytes]:
        names = await names_of(self._persons, {each.author for each in comments})
        return {each.comment_id: told(each, names.get(each.author)) for each in comments}


def told(comment: CommentRow, author: str | None) -> bytes:
    """Return a comment that everybody sees as JSON, as the shape `Comment` does, and faster."""
    shown = {
        "commentId": comment.comment_id,
        "videoId": comment.video_id,
        "userId": comment.author if author is None else author,
        "content": comment.content,
        "language": comment.language,
        "confidence": comment.confidence,
        "translatedText": comment.translated_text,
        "translationStatus": comment.translation_status,
        "edited": comment.edited,
        "createdAt": comment.created_at,
    }
    known = {name: value for name, value in shown.items() if value is not None}
    return orjson.dumps(known, option=orjson.OPT_UTC_Z)

"""The newest comments of videos, in the memory of one process; see `video_cache`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString, NamedTuple
from uuid import UUID

import orjson

from domain.comment import Comment
from domain.comment_likes import CommentLikes
from domain.upload import Upload
from engine.checkpoints import Pool
from engine.log import topics_of
from engine.tail import LastSeen, LogTail, Lru, TailEvent, TailTelemetry
from infra.batcher import BatchLoader
from infra.http.responses import names_of
from infra.http.shapes import Position
from infra.postgres.connection import column
from infra.pseudonyms import Pseudonyms
from projections.comment_order import IN_THREAD
from projections.comments import Comments
from projections.likes import Likes
from readapi.video_cache import OF_EVERYTHING
from readapi.viewer_cache import MOST_CHANGES, LikedCache, likes_of_viewers

MOST_PAGES = 5_000
MOST_COMMENTS = 20
"""So many of the newest are kept of a video; who wants more asks the read model."""

MOST_AT_ONCE = 16
"""The comments of so many videos are read with one statement at most."""

SHOWN: LiteralString = """c.comment_id, c.video_id, c.parent_id, c.position, c.author, c.content,
    c.edited, c.language, c.confidence, c.translated_text, c.translation_status, c.created_at,
    coalesce(t.likes, 0), CASE WHEN c.parent_id IS NULL THEN coalesce(t.replies, 0) END
    FROM comments.comments c LEFT JOIN comments.tallies t ON t.comment_id = c.comment_id"""
PAGES: LiteralString = f"""
WITH wanted AS MATERIALIZED (
    SELECT id, EXISTS (SELECT FROM comments.hidden WHERE video_id = wanted.id) AS hidden
    FROM unnest(%(videos)b::uuid[]) AS wanted (id))
SELECT wanted.id, wanted.hidden,
       (SELECT position FROM backlot_checkpoints
        WHERE kind = 'projection' AND subscription = %(comments)b), shown.*
FROM wanted
LEFT JOIN LATERAL (
    SELECT {SHOWN} WHERE c.video_id = wanted.id AND c.parent_id IS NULL
    ORDER BY c.position DESC LIMIT %(limit)b) AS shown ON true
ORDER BY wanted.id, shown.position DESC
"""
FOUND: LiteralString = f"""
SELECT at.position, shown.*
FROM (SELECT position FROM backlot_checkpoints
      WHERE kind = 'projection' AND subscription = %(comments)b) AS at
LEFT JOIN (
    SELECT {SHOWN}
    WHERE c.comment_id = ANY (%(ids)b::uuid[]) AND {IN_THREAD.format(schema="comments")})
    AS shown ON true
"""
OF_COMMENTS = frozenset(topic for event in Comment.events() for topic in topics_of(event))
LIKES: Mapping[str, int] = {
    topic: change
    for event, change in ((CommentLikes.Liked, 1), (CommentLikes.Unliked, -1))
    for topic in topics_of(event)
}
OF_VIDEOS = frozenset(topics_of(Upload.Removed))
CHANGE_ALL = frozenset(topic for event in OF_EVERYTHING for topic in topics_of(event))


class ShownComment(NamedTuple):
    """What is told of a comment, and its position."""

    comment_id: UUID
    video_id: UUID
    parent_id: UUID | None
    position: int
    author: str
    content: str
    edited: bool
    language: str | None
    confidence: float | None
    translated_text: str | None
    translation_status: str
    created_at: datetime
    like_count: int
    reply_count: int | None


@dataclass(slots=True, eq=False)
class ToldComment:
    """A comment that everybody sees, as JSON but for its likes, which come and go."""

    comment_id: UUID
    position: int
    reply_count: int | None
    like_count: int
    head: bytes
    json: bytes | None = None

    def like(self, change: int) -> None:
        """Count a like, or one that is taken back."""
        self.like_count += change
        self.json = None

    def told(self, liked: bool | None = None) -> bytes:
        """Return it as JSON, with whether the caller likes it where that is known."""
        if self.json is None:
            self.json = b'%b,"likeCount":%d}' % (self.head, self.like_count)
        if liked is None:
            return self.json
        return self.json[:-1] + (b',"hasLiked":true}' if liked else b',"hasLiked":false}')

    def counts(self) -> bytes:
        """Return who likes it, and replies to it, in numbers, as JSON."""
        counts: dict[str, object] = {"commentId": self.comment_id, "likeCount": self.like_count}
        if self.reply_count is not None:
            counts["replyCount"] = self.reply_count
        return orjson.dumps(counts)


class CommentPage(NamedTuple):
    """The newest comments that are no replies; whether there are more, or hidden ones.

    `wanted` is up to where the read model has to come before the page is right.
    """

    items: Sequence[ToldComment]
    more: bool
    hidden: bool
    reached: int
    wanted: int = 0

    @property
    def is_behind(self) -> bool:
        return self.reached < self.wanted


class CommentCache:
    """The first pages that were shown last; a follower of the log. For one event loop."""

    def __init__(self, pool: Pool, tail: LogTail, persons: Pseudonyms, likes: Likes) -> None:
        """`pool` leads to the read models."""
        self._pool = pool
        self._persons = persons
        self._pages: Lru[UUID, CommentPage] = Lru(MOST_PAGES, "comments")
        self._loader: BatchLoader[UUID, CommentPage] = BatchLoader(self._read, MOST_AT_ONCE)
        self._changes = LastSeen(MOST_CHANGES)
        self._tail = tail
        self.liked = LikedCache(
            pool,
            "comment likes",
            likes_of_viewers("likes.comment_likes", "comment_id"),
            likes.liked_comments,
        )
        # Another number whenever everything was dropped: what was read before is not kept.
        self._epoch = 0
        self._handlers: Mapping[str, Callable[[TailEvent], None]] = {
            **dict.fromkeys(OF_COMMENTS, self._commented),
            **dict.fromkeys(LIKES, self._liked),
            **dict.fromkeys(OF_VIDEOS, self._removed),
            **dict.fromkeys(CHANGE_ALL, self._everything),
        }
        tail.follow(self, self._handlers)

    def begin(self, position: Position) -> None:
        self._epoch += 1
        self._pages.clear()
        self._changes.begin(position.events)
        self.liked.begin(position.events)

    def take(self, event: TailEvent) -> None:
        self._handlers[event.topic](event)

    def take_telemetry(self, event: TailTelemetry) -> None:
        pass

    def _commented(self, event: TailEvent) -> None:
        self._change(UUID(event.fields["video_id"]), event.position)

    def _liked(self, event: TailEvent) -> None:
        self._like(event, LIKES[event.topic])

    def _removed(self, event: TailEvent) -> None:
        self._change(event.stream_id, event.position)

    def _everything(self, event: TailEvent) -> None:
        self.begin(Position(event.position))

    def _change(self, video_id: UUID, position: int) -> None:
        self._changes.put(video_id, position)
        page = self._pages.peek(video_id)
        if page is not None and position > page.reached:
            self._pages.drop(video_id)

    def _like(self, event: TailEvent, change: int) -> None:
        video_id, comment_id = UUID(event.fields["video_id"]), UUID(event.fields["comment_id"])
        take = self.liked.liked if change > 0 else self.liked.unliked
        take(event.fields["viewer"], comment_id, event.position)
        self._changes.put(video_id, event.position)
        page = self._pages.peek(video_id)
        if page is not None and event.position > page.reached:
            for each in page.items:
                if each.comment_id == comment_id:
                    each.like(change)

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
            items = [told(each, names.get(each.author)) for each in shown]
            more, changed = len(newest) > len(shown), self._changes.get(video)
            pages[video] = CommentPage(items, more, hidden[video], reached, changed)
            if not pages[video].is_behind and epoch == self._epoch:
                self._pages.put(video, pages[video])
        return pages

    async def found(self, ids: Sequence[UUID]) -> tuple[dict[UUID, ToldComment], int]:
        """Return those of the comments that everybody sees, and how far that is.

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


def told(comment: ShownComment, author: str | None) -> ToldComment:
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
    known = {
        "parentId": comment.parent_id,
        "language": comment.language,
        "confidence": comment.confidence,
        "translatedText": comment.translated_text,
        "replyCount": comment.reply_count,
    }
    shown |= {name: value for name, value in known.items() if value is not None}
    head = orjson.dumps(shown, option=orjson.OPT_UTC_Z)[:-1]
    return ToldComment(
        comment.comment_id, comment.position, comment.reply_count, comment.like_count, head
    )

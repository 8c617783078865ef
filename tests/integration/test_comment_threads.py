"""Replies and likes of comments: what the read models make of them, whatever the order."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from domain.comment import Comment
from domain.moderation import ActingAs, Hold, HoldCause, Standing
from domain.upload import Status, Upload
from engine.log import END_OF_LOG, Recorded
from projections.comment_order import CommentOrder, CommentPlace
from projections.comments import Comments
from projections.likes import Likes
from tests.integration.projection_spec import EVENTS, ProjectionSpec
from tests.integration.projection_support import Writer, origin

BOB, MOD = origin("bob"), origin("mod")
HOLD = Hold(HoldCause.APPROVAL, "alice")
FANS = ("ann", "bob", "cat", "dan")
TABLES = ("comments", "hidden", "tallies", "counts", "removed")
LIKE_TABLES = ("comment_likes", "comment_counts")
DAYS_30 = 2_592_000


class History:
    """Comments on a few videos, replies to them, and likes, in a random order."""

    def __init__(self, writer: Writer, seed: int) -> None:
        self.writer, self.dice = writer, random.Random(seed)
        self.videos: list[Upload] = [writer.video() for _ in range(3)]
        self.comments: list[Comment] = []

    def grow(self, steps: int) -> None:
        for _ in range(steps):
            deed = self.dice.choice((self.post, self.reply, self.like, self.like, self.change))
            deed()

    def post(self, parent: Comment | None = None) -> None:
        """Also on a video that was removed, or to a comment that is gone: it was just before."""
        video = self.dice.choice(self.videos).id if parent is None else parent.video_id
        hold = HOLD if self.dice.random() < 0.3 else None
        assert video is not None
        parent_id = None if parent is None else parent.id
        self.comments.append(self.writer.comment(video, hold=hold, parent=parent_id))

    def reply(self) -> None:
        if tops := [each for each in self.comments if each.parent_id is None]:
            self.post(self.dice.choice(tops[:5]))

    def like(self) -> None:
        if self.comments:
            comment, verb = self.dice.choice(self.comments), self.dice.choice(("like", "unlike"))
            likes = self.writer.wish_comment(verb, comment, self.dice.choice(FANS))
            if likes.pending_events:
                self.writer.save(likes)

    def change(self) -> None:
        if self.dice.random() < 0.03:
            video = self.dice.choice(self.videos)
            if video.status is Status.COMPLETED:
                video.remove(origin(video.owner))
                self.writer.save(video)
        if not self.comments:
            return
        comment = self.dice.choice(self.comments)
        match comment.standing:
            case Standing.POSTED:
                deeds = (
                    lambda: comment.delete(BOB),
                    lambda: comment.remove(ActingAs.MODERATOR, None, MOD),
                    lambda: comment.edit(str(self.dice.random()), BOB, HOLD),
                )
            case Standing.HELD:
                deeds = (lambda: comment.approve(ActingAs.MODERATOR, None, MOD),) * 3
            case Standing.REMOVED:
                deeds = (lambda: comment.restore(ActingAs.MODERATOR, None, MOD),) * 3
            case _:
                return
        self.dice.choice(deeds)()
        self.writer.save(comment)

    def there(self) -> list[Comment]:
        gone = {each.id for each in self.videos if each.status is Status.REMOVED}
        return [each for each in self.comments if each.video_id not in gone]

    def posted(self, of: UUID, *, replies: bool = False) -> list[Comment]:
        return [
            each
            for each in self.there()
            if (each.parent_id == of if replies else (each.video_id, each.parent_id) == (of, None))
            and each.standing is Standing.POSTED
        ]

    def likes(self) -> Counter[UUID]:
        liked = (pair for pair, likes in self.writer.comment_likes.items() if likes.liked)
        return Counter(comment for comment, _ in liked)


def positions(conn: Connection[TupleRow]) -> dict[UUID, int]:
    """Where each stream begins."""
    query = "SELECT originator_id, min(notification_id) FROM backlot_events GROUP BY 1"
    return dict(conn.execute(query).fetchall())


def score(comment: Comment, likes: int) -> int:
    return math.floor(comment.posted_at.timestamp()) + round(DAYS_30 * math.log2(1 + likes))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_counts_and_orders_are_exact(conn: Connection[TupleRow], writer: Writer, seed: int) -> None:
    history = History(writer, seed)
    comments = ProjectionSpec(conn, writer, Comments)
    for _ in range(3):
        history.grow(60)
        comments.given()
        check(conn, history, comments)


def check(conn: Connection[TupleRow], history: History, comments: ProjectionSpec[Comments]) -> None:
    at, likes = positions(conn), history.likes()
    rows = []
    for each in history.there():
        replies = len(history.posted(each.id, replies=True))
        listed = each.standing is Standing.POSTED and each.parent_id is None
        if listed or likes[each.id] or replies:
            place = (at[each.id], score(each, likes[each.id])) if listed else (None, None)
            rows.append((each.id, each.video_id, likes[each.id], replies, *place))
    comments.then("tallies", *rows, columns="comment_id, video_id, likes, replies, position, score")

    async def ask(model: Comments, conn: AsyncConnection[Any]) -> None:
        for video in history.videos:
            tops = sorted(history.posted(video.id), key=lambda each: at[each.id])
            seen = len(tops) + sum(len(history.posted(each.id, replies=True)) for each in tops)
            assert (await model.counts(conn, [video.id])).get(video.id, 0) == seen
            by_score = sorted(tops, key=lambda each: (score(each, likes[each.id]), at[each.id]))
            for order, wanted, first in (
                (CommentOrder.NEWEST, tops[::-1], CommentPlace(END_OF_LOG)),
                (CommentOrder.OLDEST, tops, CommentPlace(0)),
                (CommentOrder.TOP, by_score[::-1], CommentPlace(END_OF_LOG, END_OF_LOG)),
            ):
                found = await pages(model, conn, order, video.id, first)
                assert found == [each.id for each in wanted], order
        for parent in history.comments:
            found = await pages(model, conn, CommentOrder.REPLIES, parent.id, CommentPlace(0))
            assert found == [each.id for each in history.posted(parent.id, replies=True)]

    comments.asked(ask)


async def pages(
    model: Comments,
    conn: AsyncConnection[Any],
    order: CommentOrder,
    of: UUID,
    first: CommentPlace,
) -> list[UUID]:
    """The ids of all pages of a list."""
    found: list[UUID] = []
    while page := await model.page(conn, order, of, first, 2):
        found += (each.comment_id for each in page)
        first = page[-1].place(order)
    return found


@pytest.mark.parametrize("seed", [4, 5])
@pytest.mark.parametrize(
    ("kind", "tables"), [(Comments, TABLES), (Likes, ("comment_likes", "comment_counts"))]
)
def test_streams_may_come_side_by_side(
    conn: Connection[TupleRow], writer: Writer, kind: Any, tables: Sequence[str], seed: int
) -> None:
    """As a replay applies them: each stream in order, and last what makes an end of things."""
    history = History(writer, seed)
    history.grow(150)
    log = [
        Recorded(at, writer.mapper.decode(*event))
        for at, *event in conn.execute(EVENTS.encode(), (0,)).fetchall()
    ]
    wanted = [each for each in log if type(each.event) in kind.events]
    last = [each for each in wanted if type(each.event) in kind.absorbing]
    streams: dict[UUID, list[Recorded]] = {}
    for each in wanted:
        if each not in last:
            streams.setdefault(each.event.originator_id, []).append(each)
    shuffled = history.dice.sample([*streams.values()], len(streams))
    beside = [each for stream in shuffled for each in stream] + last
    copies = []
    for name, events, size in (("one", wanted, 7), ("other", beside, 3)):
        copy = kind(name)
        conn.execute(SQL("CREATE SCHEMA {}").format(Identifier(name)))
        conn.execute(copy.sql(copy.tables))
        with conn.cursor(binary=True) as cursor:
            for first in range(0, len(events), size):
                copy.apply_all(events[first : first + size], cursor)
        copies.append([everything(conn, name, table) for table in tables])
    assert copies[0] == copies[1]
    assert all(copies[0][:2])


def everything(conn: Connection[TupleRow], schema: str, table: str) -> list[str]:
    query = SQL("SELECT t::text FROM {} t ORDER BY 1").format(Identifier(schema, table))
    return [row for (row,) in conn.execute(query).fetchall()]

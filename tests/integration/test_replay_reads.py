"""Readers of every query go through replays and rollbacks: no error, nothing empty, nothing older.

The writers only ever add, so that whatever has been seen must be seen by each later look too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection

from domain.comment import Comment
from domain.upload import NOBODY
from engine.projection import Projection
from engine.replay.records import ReplayOptions, ReplayState
from infra.postgres.connection import column
from projections.catalog import Catalog
from projections.comment_order import CommentOrder, CommentPlace
from projections.comments import Comments
from projections.like_counters import read_counters
from projections.likes import SUMS, Likes
from tests.integration.projection_support import Writer, caught_up, hosting, origin
from tests.integration.replay_support import BACK, replayed
from tests.support import DEADLINE_SECONDS, eventually

pytestmark = pytest.mark.chaos

END = 2**62
FAR = datetime(9000, 1, 1, tzinfo=UTC)
ROUNDS = 10
VIDEOS = 4
# What there is at the beginning: each video is two events, two likes and a comment.
HEAD = 5 * VIDEOS + 2

Look = Callable[[AsyncConnection[Any]], Awaitable[None]]


@dataclass
class Community:
    """Who writes all the time, and what there is to be read: it only grows."""

    database_url: str
    noted: Comment
    videos: list[UUID] = field(default_factory=list)
    stopping: Event = field(default_factory=Event)
    faults: list[str] = field(default_factory=list)
    looks: int = 0
    writes: int = 0

    def write(self) -> None:
        writer = Writer(self.database_url)
        while not self.stopping.is_set():
            self.writes += 1
            number, video = self.writes, self.videos[self.writes % VIDEOS]
            writer.like(video, f"viewer-{number}")
            # The reader likes more and more, at ever newer positions.
            writer.like(uuid4(), "reader")
            writer.comment(video, content=f"comment {number}")
            writer.video("reader", category="art")
            self._note(writer, number)
            time.sleep(0.002)
        writer.close()

    def _note(self, writer: Writer, number: int) -> None:
        """A comment that is edited: what it says counts up."""
        self.noted.edit(str(number), origin("bob"))
        writer.save(self.noted)

    def read(self, looks: Sequence[Look]) -> None:
        """A reader with a connection of its own, as long as the others go on."""
        asyncio.run(self._read(looks))

    async def _read(self, looks: Sequence[Look]) -> None:
        async with await AsyncConnection.connect(self.database_url, autocommit=True) as conn:
            while not self.stopping.is_set():
                for look in looks:
                    await self._one(look, conn)

    async def _one(self, look: Look, conn: AsyncConnection[Any]) -> None:
        self.looks += 1
        try:
            await look(conn)
        except Exception as error:  # noqa: BLE001 - whatever it is, a reader must not see it
            self.faults.append(f"{type(error).__name__}: {error}")
            self.stopping.set()


class Grows:
    """What only grows: numbers, or sets of keys."""

    def __init__(self) -> None:
        self._seen: dict[str, Any] = {}

    def number(self, what: str, value: int) -> None:
        before = self._seen.get(what, 1)
        assert value >= before, f"{what}: {value} after {before}"
        self._seen[what] = value

    def keys(self, what: str, found: Sequence[Any]) -> None:
        before = self._seen.get(what, frozenset())
        assert found, f"{what}: nothing"
        assert before <= set(found), f"{what}: lost {len(before - set(found))}"
        self._seen[what] = frozenset(found)


def looks_at_likes(likes: Likes, videos: Sequence[UUID]) -> list[Look]:
    grows = Grows()

    async def counts(conn: AsyncConnection[Any]) -> None:
        for video, count in (await likes.counts(conn, videos)).items():
            grows.number(f"likes of {video}", count)
        assert len(await likes.counts(conn, videos)) == VIDEOS

    async def liked(conn: AsyncConnection[Any]) -> None:
        assert await likes.liked(conn, "fan", videos) == set(videos)

    async def page(conn: AsyncConnection[Any]) -> None:
        found = await likes.liked_page(conn, "reader", END, 20)
        grows.number("last like", found[0].position)
        older = await likes.liked_page(conn, "reader", found[0].position + 1, 10_000)
        # Two statements of one request, with a switch between them or not.
        assert older[: len(found)] == found
        grows.keys("liked", [like.video_id for like in older])

    return [counts, liked, page]


def looks_at_comments(comments: Comments, videos: Sequence[UUID]) -> list[Look]:
    grows = Grows()

    async def counts(conn: AsyncConnection[Any]) -> None:
        found = await comments.counts(conn, videos)
        assert len(found) == VIDEOS
        for video, count in found.items():
            grows.number(f"comments of {video}", count)

    async def page(conn: AsyncConnection[Any]) -> None:
        found = await comments.page(conn, CommentOrder.NEWEST, videos[0], CommentPlace(END), 10_000)
        grows.keys("comments", [row.comment_id for row in found])
        (noted,) = [row for row in found if row.content.isdigit()]
        grows.number("revision", int(noted.content) + 1)
        # The count is asked for later, and so is at least what the page had.
        counted = await comments.counts(conn, videos[:1])
        assert counted[videos[0]] >= len(found)

    return [counts, page]


def looks_at_catalog(catalog: Catalog, videos: Sequence[UUID]) -> list[Look]:
    grows = Grows()

    async def page(conn: AsyncConnection[Any]) -> None:
        for owner, category in ((None, None), ("reader", None), (None, "art"), ("reader", "art")):
            found = await catalog.page(
                conn, NOBODY, owner=owner, category=category, before=END, limit=10_000
            )
            grows.keys(f"videos {owner} {category}", [row.video_id for row in found])
            positions = [row.completed_position for row in found]
            assert positions == sorted(positions, reverse=True)

    async def some(conn: AsyncConnection[Any]) -> None:
        assert set(await catalog.videos(conn, videos)) == set(videos)
        upload = await catalog.upload(conn, videos[0])
        assert upload is not None
        assert upload.status == "completed"
        assert await catalog.under_way(conn, FAR, UUID(int=0), 10) != []

    return [page, some]


def looks_of_commands(
    database_url: str, likes: Likes, comments: Comments, community: Community
) -> None:
    """What the command bus and the counters ask, on connections in transactions of their own."""
    grows, videos = Grows(), column(community.videos)
    with psycopg.connect(database_url) as conn:
        while not community.stopping.is_set():
            community.looks += 1
            try:
                with conn.transaction(), conn.cursor(binary=True) as cursor:
                    cursor.execute(likes.sql(SUMS), (videos,), prepare=True)
                    for video, (count,) in zip(community.videos, cursor.fetchall(), strict=True):
                        grows.number(f"sum of {video}", count)
                    found = comments.counts_of(cursor, community.videos)
                    assert len(found) == VIDEOS
                position, now = read_counters(conn, likes, community.videos)
                conn.commit()
                grows.number("position", position)
                for video, counter in now.items():
                    grows.number(f"counter of {video}", counter.likes)
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody must see it
                community.faults.append(f"{type(error).__name__}: {error}")
                community.stopping.set()


@contextmanager
def living(community: Community, *threads: Thread) -> Iterator[None]:
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: community.writes > 20 or community.faults)
        yield
    finally:
        community.stopping.set()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)


def test_readers_do_not_notice_ten_replays_and_rollbacks(database_url: str) -> None:
    catalog, likes, comments = Catalog(), Likes(), Comments()
    community = begin_with_something(database_url)
    videos = community.videos
    readers = [
        looks_at_likes(likes, videos),
        looks_at_comments(comments, videos),
        looks_at_catalog(catalog, videos),
        [*looks_at_catalog(catalog, videos), *looks_at_likes(likes, videos)],
    ]
    threads = [Thread(target=community.write)]
    threads += [Thread(target=community.read, args=(looks,)) for looks in readers]
    threads += [Thread(target=looks_of_commands, args=(database_url, likes, comments, community))]
    with hosting(database_url, catalog, likes, comments):
        caught_up(database_url, ["catalog", "likes", "comments"], HEAD)
        with living(community, *threads):
            for number in range(ROUNDS):
                for projection in (catalog, likes, comments):
                    switch(database_url, projection, number)
                    assert community.faults == []
    assert community.faults == []
    assert community.looks > 20 * ROUNDS


def switch(database_url: str, projection: Projection, number: int) -> None:
    """Every other time from nothing, then back to the copy that was live before."""
    if number % 2:
        replay = replayed(database_url, projection, BACK)
    else:
        replay = replayed(database_url, projection, ReplayOptions(workers=3 if number == 4 else 1))
    assert replay.state is ReplayState.SWITCHED, replay


def begin_with_something(database_url: str) -> Community:
    """So that no reader's first look finds nothing."""
    writer = Writer(database_url)
    community = Community(database_url, Comment.blank(uuid4()))
    for _ in range(VIDEOS):
        video = writer.video("reader", category="art").id
        writer.like(video, "fan", "reader")
        writer.comment(video)
        community.videos.append(video)
    community.noted.post(community.videos[0], "0", origin("bob"))
    writer.save(community.noted)
    writer.upload()
    writer.close()
    return community

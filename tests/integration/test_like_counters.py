"""Like counters on a real Redis: exact after whatever happened to them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis

from engine.connections import connect
from engine.projection_subscription import ProjectionHost
from infra.redis import connect_blocking_redis
from projections.like_counters import (
    GONE,
    PUBLISHED,
    AsyncCounters,
    Counter,
    Counters,
    CountersBehind,
    key_of,
    rebuild,
    reconcile,
    subscribe_counters,
)
from projections.likes import Likes
from tests.integration.event_log import rows
from tests.integration.projection_support import ThreadedHost, Writer, origin, position
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.support import eventually

TTL = 600


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers(1, tmp_path) as (one,):
        yield one


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with connect_blocking_redis(server.url) as opened:
        yield opened


@pytest.fixture
def counters(client: redis.Redis) -> Counters:
    return Counters(client, TTL)


@contextmanager
def publishing(database_url: str, counters: Counters) -> Iterator[ProjectionHost]:
    """The likes' projection and its counters, as the program runs them."""
    likes = Likes()
    host = ThreadedHost(database_url, [likes])
    moved = host.follow(likes.name)
    counting = subscribe_counters(database_url, likes, counters, moved)
    host.jobs.append(counting.run)
    host.start()
    try:
        yield host
    finally:
        host.stop()


def likes_of(counters: Counters, video: UUID) -> int | None:
    (held,) = counters.get([video])
    return None if held is None else held.likes


def published(counters: Counters, writer: Writer) -> bool:
    try:
        return (counters.published() or 0) >= writer.head
    except redis.RedisError:
        return False


def test_a_counter_is_only_replaced_by_a_newer_one(counters: Counters, client: redis.Redis) -> None:
    video = uuid4()
    puts = [Counter(n * 3, n) for n in range(1, 30)]
    shuffled = puts * 2
    random.Random(5).shuffle(shuffled)
    newest = 0
    for put in shuffled:
        counters.put([(video, put)])
        newest = max(newest, put.position)
        assert counters.get([video]) == [Counter(newest * 3, newest)]
    assert 0 < client.ttl(key_of(video)) <= TTL


def test_counts_appear_and_follow(database_url: str, writer: Writer, counters: Counters) -> None:
    with publishing(database_url, counters):
        video, other = writer.video(), writer.video()
        writer.like(video.id, "ann", "bob", "cid")
        writer.unlike(video.id, "bob")
        writer.like(other.id, "bob")
        eventually(lambda: published(counters, writer))
        assert likes_of(counters, video.id) == 2
        assert likes_of(counters, other.id) == 1
        video.remove(origin("alice"))
        writer.save(video)
        eventually(lambda: likes_of(counters, video.id) == GONE)


def test_redis_may_vanish_and_lose_everything(
    database_url: str, writer: Writer, server: RedisServer, counters: Counters
) -> None:
    with publishing(database_url, counters):
        video, quiet = writer.video(), writer.video()
        writer.like(quiet.id, "ann")
        writer.like(video.id, "ann")
        eventually(lambda: published(counters, writer))
        server.kill()
        writer.like(video.id, "bob", "cid")
        eventually(lambda: position(database_url, "likes") >= writer.head)
        server.start()
        eventually(lambda: published(counters, writer))
        assert likes_of(counters, video.id) == 3
        assert likes_of(counters, quiet.id) == 1


@pytest.mark.redis_hangs
def test_what_was_liked_while_redis_was_unreachable_is_not_left_stale(
    database_url: str, writer: Writer, server: RedisServer, counters: Counters
) -> None:
    with publishing(database_url, counters):
        video = writer.video()
        writer.like(video.id, "ann")
        eventually(lambda: published(counters, writer))
        server.pause()
        writer.like(video.id, "bob")
        writer.like(video.id, "cid")
        eventually(lambda: position(database_url, "likes") >= writer.head)
    # The process that saw the likes is gone; the next one has only what lies in Redis.
    server.resume()
    assert likes_of(counters, video.id) == 1
    with publishing(database_url, counters):
        eventually(lambda: published(counters, writer))
        assert likes_of(counters, video.id) == 3


def test_counters_of_another_log_are_forgotten(
    database_url: str, writer: Writer, counters: Counters
) -> None:
    video = writer.video()
    counters.publish([(video.id, Counter(99, 10**9))], 10**9)
    with publishing(database_url, counters):
        writer.like(video.id, "ann")
        eventually(lambda: likes_of(counters, video.id) == 1)
        eventually(lambda: counters.published() == writer.head)


def test_a_late_fill_takes_itself_back(server: RedisServer, counters: Counters) -> None:
    """A reader saw a like at position 10; before it puts that, the counter moved and was lost."""
    video, fresh = uuid4(), uuid4()
    counters.publish([(video, Counter(2, 20))], 20)
    counters.drop([video])

    async def fill(position: int, which: UUID) -> bool:
        async with server.client() as client:
            return await AsyncCounters(client, TTL).fill(which, Counter(1, position))

    assert asyncio.run(fill(10, video)) is False
    assert likes_of(counters, video) is None
    assert asyncio.run(fill(20, fresh)) is True
    assert likes_of(counters, fresh) == 1
    # Where a newer one is there, nothing is taken away.
    counters.put([(video, Counter(3, 30))])
    assert asyncio.run(fill(10, video)) is True
    assert likes_of(counters, video) == 3


def test_nobody_is_told_a_fill_that_may_be_late(
    server: RedisServer, counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader of the test before, and another one who looks between its put and its delete."""
    video = uuid4()
    counters.publish([(video, Counter(2, 20))], 20)
    counters.drop([video])
    told: list[Counter | None] = []

    async def fill(position: int) -> None:
        async with server.client() as client:
            late = AsyncCounters(client, TTL)
            ask = client.get

            async def look_first(key: str) -> Any:
                told.extend(counters.get([video]))
                told.extend((await AsyncCounters(client, TTL).get([video]))[0])
                return await ask(key)

            monkeypatch.setattr(client, "get", look_first)
            await late.fill(video, Counter(1, position))

    asyncio.run(fill(10))
    assert (told, likes_of(counters, video)) == ([None, None], None)

    # Whoever died before it had proved its counter keeps nobody from filling it.
    async def die() -> None:
        async with server.client() as client:
            monkeypatch.setattr(client, "get", None)
            with pytest.raises(TypeError):
                await AsyncCounters(client, TTL).fill(video, Counter(2, 25))

    asyncio.run(die())
    assert likes_of(counters, video) is None
    asyncio.run(fill(25))
    assert likes_of(counters, video) == 1


def test_reconciling_finds_reports_and_mends(
    database_url: str, writer: Writer, counters: Counters, client: redis.Redis
) -> None:
    with publishing(database_url, counters), connect(database_url, "test") as conn:
        video, right = writer.video(), writer.video()
        writer.like(video.id, "ann", "bob")
        writer.like(right.id, "ann")
        eventually(lambda: published(counters, writer))
        assert reconcile(conn, Likes(), counters).drifted == []
        client.hset(key_of(video.id), "count", 7)
        found = reconcile(conn, Likes(), counters, repair=False)
        assert [(d.video_id, d.counter.likes, d.truth.likes) for d in found.drifted] == [
            (video.id, 7, 2)
        ]
        assert likes_of(counters, video.id) == 7
        assert len(reconcile(conn, Likes(), counters).drifted) == 1
        assert likes_of(counters, video.id) is None
        assert likes_of(counters, right.id) == 1
        found_rows = rows(
            database_url,
            "SELECT video_id, counter, likes, repaired FROM projections.like_drift ORDER BY id",
        )
        assert found_rows == [(video.id, 7, 2, False), (video.id, 7, 2, True)]


def test_reconciling_waits_for_what_is_on_its_way(
    database_url: str, writer: Writer, counters: Counters
) -> None:
    with publishing(database_url, counters):
        video = writer.video()
        writer.like(video.id, "ann")
        eventually(lambda: published(counters, writer))
    # The read model goes on, and nobody publishes.
    likes = Likes()
    host = ThreadedHost(database_url, [likes])
    host.start()
    try:
        writer.like(video.id, "bob")
        eventually(lambda: position(database_url, "likes") >= writer.head)
    finally:
        host.stop()
    with connect(database_url, "test") as conn, pytest.raises(CountersBehind):
        reconcile(conn, likes, counters, wait_seconds=0.2)


def test_all_counters_can_be_built_anew(
    database_url: str, writer: Writer, counters: Counters, client: redis.Redis
) -> None:
    with publishing(database_url, counters):
        videos = [writer.video() for _ in range(5)]
        for number, video in enumerate(videos):
            writer.like(video.id, *(f"viewer-{n}" for n in range(number + 1)))
        eventually(lambda: published(counters, writer))
        before = {video.id: likes_of(counters, video.id) for video in videos}
        client.flushall()
        with connect(database_url, "test") as conn:
            assert rebuild(conn, Likes(), counters) == 5
        assert {video.id: likes_of(counters, video.id) for video in videos} == before
        eventually(lambda: client.get(PUBLISHED) is not None)

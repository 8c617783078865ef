"""Like counters in Redis after a switch: corrected, and never missing while they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from uuid import UUID, uuid4

import pytest

from engine.connections import connect
from engine.replay.records import Progress, ReplayOptions
from infra.redis import connect_blocking_redis
from projections.like_counters import PUBLISHED, Counter, Counters, rebuild, renewing
from projections.likes import Likes
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer
from tests.integration.redis_servers import RedisServer, redis_servers
from tests.integration.replay_support import projected, replayed

TTL = 600
VIDEOS = 50
CONFIRMED = ReplayOptions(confirmed=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers(1, tmp_path) as (one,):
        yield one


@pytest.fixture
def counters(server: RedisServer) -> Iterator[Counters]:
    with connect_blocking_redis(server.url) as client:
        yield Counters(client, TTL)


@pytest.fixture
def videos(database_url: str, counters: Counters) -> list[UUID]:
    """Videos with two likes each, in the read model and in Redis; one too many in both."""
    writer = Writer(database_url)
    videos = [writer.video().id for _ in range(VIDEOS)]
    for video in videos:
        writer.like(video, "alice", "bob")
    projected(database_url, writer, {"likes": Likes()})
    writer.close()
    rows(database_url, "UPDATE likes.counts SET likes = 3 RETURNING 1")
    with connect(database_url, "test") as conn:
        assert rebuild(conn, Likes(), counters) == VIDEOS
    assert held(counters, videos) == {3}
    return videos


def held(counters: Counters, videos: list[UUID]) -> set[int | None]:
    return {counter.likes if counter else None for counter in counters.get(videos)}


def test_counters_follow_a_switch_at_the_same_position(
    database_url: str, counters: Counters, videos: list[UUID]
) -> None:
    replayed(database_url, Likes(), CONFIRMED)
    assert held(counters, videos) == {3}
    seen: set[int | None] = set()
    ended = Event()

    def read() -> None:
        while not ended.is_set():
            seen.update(held(counters, videos))

    reader = Thread(target=read)
    reader.start()
    after_switch = renewing(database_url, Likes(), counters)
    replayed(database_url, Likes(), CONFIRMED, after_switch=after_switch)
    ended.set()
    reader.join()
    assert held(counters, videos) == {2}
    assert seen <= {2, 3}


def test_a_newer_counter_is_kept(database_url: str, counters: Counters, videos: list[UUID]) -> None:
    rows(database_url, "SELECT likes FROM likes.counts")
    position = 4 * VIDEOS + 1
    counters.put([(videos[0], Counter(7, position))])
    counters.correct([(videos[0], Counter(8, position - 1)), (videos[1], Counter(9, position))])
    assert counters.get(videos[:2]) == [Counter(7, position), Counter(9, position)]


@pytest.mark.usefixtures("videos")
def test_a_switch_does_not_need_redis(
    database_url: str, counters: Counters, server: RedisServer
) -> None:
    server.kill()
    after_switch = renewing(database_url, Likes(), counters)
    assert replayed(database_url, Likes(), CONFIRMED, after_switch=after_switch).finished


def test_rebuilding_counters_tells_how_far_it_is(
    database_url: str, counters: Counters, server: RedisServer, videos: list[UUID]
) -> None:
    rows(database_url, "UPDATE likes.counts SET likes = 2 RETURNING 1")
    stray = uuid4()
    counters.put([(stray, Counter(5, 10**9))])
    with connect_blocking_redis(server.url) as client:
        client.set(PUBLISHED, 4 * VIDEOS)
        told: list[Progress] = []
        with connect(database_url, "test") as conn:
            assert rebuild(conn, Likes(), counters, told.append) == VIDEOS
        assert client.get(PUBLISHED) == str(4 * VIDEOS).encode()
    assert (told[-1].name, told[-1].position, told[-1].target) == ("counters", VIDEOS, VIDEOS)
    assert held(counters, videos) == {2}
    (strays,) = counters.get([stray])
    # It belonged to another log; what the read model has of it is nothing.
    assert strays is not None
    assert strays.likes == 0

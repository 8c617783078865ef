"""Counts over HTTP: from Redis where it knows them, from the read model in every other case."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from domain.upload import Visibility
from engine.connections import connect
from infra import metrics
from infra.redis import connect_blocking_redis
from projections.like_counters import Counter, CounterPublisher, Counters
from projections.likes import Likes
from tests.integration.projection_support import caught_up, hosting, origin
from tests.integration.readapi_support import Site
from tests.integration.redis_servers import RedisServer, redis_servers


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers(1, tmp_path) as (one,):
        yield one


@pytest.fixture
def site(database_url: str, tmp_path: Path, server: RedisServer) -> Iterator[Site]:
    site = Site(database_url, tmp_path / "objects", server.url)
    with hosting(database_url, *site.queries.projections):
        yield site
        site.close()


@pytest.fixture
def counters(server: RedisServer) -> Iterator[Counters]:
    with connect_blocking_redis(server.url) as client:
        yield Counters(client, 600)


def liked(site: Site, *viewers: str) -> UUID:
    """A video with these likes, in the read model."""
    video = site.writer.video()
    site.writer.like(video.id, *viewers)
    caught_up(site.database_url, ["catalog", "comments", "likes"], site.writer.head)
    return video.id


def count(site: Site, video: UUID, user: str | None = None, *, fresh: bool = False) -> int:
    answer = site.get(f"/videos/{video}/like", user, fresh=fresh)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["likesCount"])


def reads(source: str) -> float:
    return metrics.value("backlot_like_counter_reads_total", source=source)


def requests(route: str) -> float:
    labels = {"method": "GET", "route": route, "status": "200"}
    return metrics.value("backlot_http_requests_total", **labels)


def test_a_missing_counter_is_filled_and_then_read(site: Site, counters: Counters) -> None:
    video = liked(site, "ann", "bob")
    filled, redis = reads("filled"), reads("redis")
    assert count(site, video) == 2
    assert (reads("filled"), reads("redis")) == (filled + 1, redis)
    assert [held and held.likes for held in counters.get([video])] == [2]
    counters.publish([], site.writer.head)
    site.forget()
    assert count(site, video) == 2
    assert (reads("filled"), reads("redis")) == (filled + 1, redis + 1)


def test_what_is_in_memory_asks_nobody(site: Site) -> None:
    video = liked(site, "ann", "bob")
    assert count(site, video) == 2
    sources = ("filled", "redis", "database")
    before = [reads(source) for source in sources]
    assert count(site, video) == 2
    site.writer.like(video, "cid")
    assert count(site, video) == 3
    assert [reads(source) for source in sources] == before


def test_each_request_is_counted_once_whichever_way_it_goes(site: Site) -> None:
    video = liked(site, "ann")
    before = requests("/videos/{video_id}/like")
    for _ in range(3):
        count(site, video)
    assert requests("/videos/{video_id}/like") == before + 3
    assert len(site.get(f"/videos/{video}/like", fresh=False).headers.get_list("x-request-id")) == 1


def test_a_counter_that_is_behind_is_shown_to_nobody(site: Site, counters: Counters) -> None:
    video = liked(site, "ann", "bob")
    counters.publish([(video, Counter(1, site.writer.head - 1))], site.writer.head - 1)
    assert count(site, video) == 2
    site.forget()
    assert count(site, video, fresh=True) == 2
    counters.publish([(video, Counter(2, site.writer.head))], site.writer.head)
    redis = reads("redis")
    for fresh in (True, False):
        site.forget()
        assert count(site, video, fresh=fresh) == 2
    assert reads("redis") == redis + 2


def test_with_a_caller_count_and_own_like_come_from_one_place(
    site: Site, counters: Counters
) -> None:
    video = liked(site, "ann")
    counters.publish([(video, Counter(0, 1))], 1)
    answer = site.get(f"/videos/{video}/like", "ann").json()
    assert answer == {"hasLiked": True, "likesCount": 1}


def test_without_redis_everything_comes_from_the_read_model(
    site: Site, server: RedisServer
) -> None:
    video = liked(site, "ann", "bob")
    assert count(site, video) == 2
    server.kill()
    site.forget()
    failures = metrics.value("backlot_like_counter_failures_total")
    assert count(site, video) == 2
    assert metrics.value("backlot_like_counter_failures_total") == failures + 1
    site.forget()
    assert count(site, video, "ann", fresh=True) == 2


def test_a_removed_video_and_an_unknown_one_are_not_found(site: Site, counters: Counters) -> None:
    video = site.writer.video()
    site.writer.like(video.id, "ann")
    caught_up(site.database_url, ["catalog", "comments", "likes"], site.writer.head)
    assert count(site, video.id) == 1
    counters.put([(video.id, Counter(-1, site.writer.head + 1))])
    video.remove(origin())
    site.writer.save(video)
    assert site.get(f"/videos/{video.id}/like").status_code == 404
    assert site.get(f"/videos/{uuid4()}/like", fresh=False).status_code == 404
    assert counters.get([uuid4()]) == [None]


def test_bad_headers_are_told_however_hot_the_route(site: Site) -> None:
    video = liked(site, "ann")
    count(site, video)
    path = f"/videos/{video}/like"
    for headers, status in (
        ({"Backlot-Min-Position": "rubbish"}, 422),
        ({"Backlot-Timeout-Ms": "soon"}, 422),
        ({"Authorization": "Bearer rubbish"}, 401),
    ):
        assert site.get(path, fresh=False, headers=headers).status_code == status


def test_no_counter_tells_of_a_private_video(site: Site, counters: Counters) -> None:
    video = site.writer.video("alice")
    path = f"/videos/{video.id}/like"
    site.writer.like(video.id, "ann")
    publisher = CounterPublisher(Likes(), counters, asyncio.Event())

    def published() -> None:
        caught_up(site.database_url, ["catalog", "comments", "likes"], site.writer.head)
        with connect(site.database_url, "test") as conn:
            publisher.advance(conn)
        # The counter is asked where nothing is in memory.
        site.forget()

    published()
    assert count(site, video.id) == 1
    site.writer.show(video, Visibility.PRIVATE)
    site.writer.like(video.id, "alice")
    published()
    # Whether asked in a hurry, for a position, with a token, or where Redis has lost all it had.
    for _ in range(2):
        for fresh in (True, False):
            assert site.get(path, fresh=fresh).status_code == 404
            assert site.get(path, "bob", fresh=fresh).status_code == 404
            assert count(site, video.id, "alice", fresh=fresh) == 2
        counters.forget()
    site.writer.show(video, Visibility.UNLISTED)
    published()
    assert count(site, video.id) == 2
    assert [held and held.likes for held in counters.get([video.id])] == [2]

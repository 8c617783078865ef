"""What one person can make of a video in trending: attacks on the ranking, in both shapes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from domain.upload import Upload
from projections.analytics import videos
from projections.analytics.ingest import Store
from projections.analytics.rules import Rules, row_of
from projections.analytics.schema import Shape, refresh, state
from projections.analytics.videos import UploadChange
from projections.trending import Formula, Ranked, Trending, Window
from tests.integration.analytics_support import Event
from tests.integration.event_log import url_of
from tests.integration.trending_support import analytics_of

NOW = datetime.now(UTC)
RULES = Rules(viewer_comments=3, viewer_seconds=3600.0)
MINE, RIVAL = UUID(int=1), UUID(int=2)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture(params=list(Shape))
def conn(request: pytest.FixtureRequest) -> Iterator[Connection[TupleRow]]:
    """The analytics with a video of mallory's, and one of ann's, which bob likes."""
    with analytics_of(request.param, request) as opened:
        know(opened, MINE, "mallory")
        know(opened, RIVAL, "ann")
        add(opened, [told("video.liked", RIVAL, "bob", NOW)])
        yield opened


def know(conn: Connection[TupleRow], video: UUID, owner: str) -> None:
    """Have the analytics learn of a video that was completed just now."""
    values: dict[str, Any] = {"id": video, "owner": owner, "category": None, "at": NOW}
    changes = [UploadChange(kind, values) for kind in (Upload.Started, Upload.Completed)]
    with conn.transaction():
        stored = videos.apply(conn, store_of(conn), changes)
    refresh_late(conn, stored.times)


def store_of(conn: Connection[TupleRow], rules: Rules = RULES) -> Store:
    found = state(conn)
    assert found is not None
    return Store(found.shape, rules)


def add(conn: Connection[TupleRow], events: list[Event], rules: Rules = RULES) -> None:
    """Store messages as the sink does."""
    with conn.transaction():
        stored = store_of(conn, rules).add(conn, [row_of(*event, NOW) for event in events])
    refresh_late(conn, stored.times)


def refresh_late(conn: Connection[TupleRow], times: Any) -> None:
    found = state(conn)
    if found is not None and found.shape is Shape.TIMESCALE:
        refresh(conn, times, datetime.now(UTC))


def told(topic: str, video: UUID, user: str, at: datetime, **more: Any) -> Event:
    value = {"videoId": str(video), "userId": user, "ts": at.isoformat()}
    return topic, uuid4(), value | {"timestamp": at.isoformat()} | more


def comments(video: UUID, user: str, number: int, at: datetime) -> list[Event]:
    return [
        told("comment.created", video, user, at + each * timedelta(seconds=1))
        for each in range(number)
    ]


def points(conn: Connection[TupleRow], video: UUID) -> Ranked | None:
    """A video's place in the ranking of a week, whose recent part counts once."""

    async def rank() -> list[Ranked]:
        async with await AsyncConnection.connect(url_of(conn), autocommit=True) as opened:
            trending = Trending(Formula(recent_boost=1.0))
            return await trending.rank(opened, Window.WEEK, limit=10, now=NOW)

    return next((each for each in asyncio.run(rank()) if each.video_id == video), None)


def stats(conn: Connection[TupleRow], video: UUID) -> tuple[int, int, float]:
    query = b"""
        SELECT sum(likes)::int, sum(comments)::int, sum(watch_seconds) FROM analytics.video_hourly
        WHERE video_id = %s
    """
    likes, written, seconds = conn.execute(query, (video,)).fetchone() or (0, 0, 0.0)
    return likes, written, seconds


def test_the_owner_does_not_lift_the_own_video(conn: Connection[TupleRow]) -> None:
    liked = told("video.liked", MINE, "mallory", NOW)
    add(conn, [liked, *comments(MINE, "mallory", 2, NOW - MINUTE)])
    assert points(conn, MINE) is None
    assert stats(conn, MINE) == (1, 2, 0)


def test_the_owner_does_not_before_it_is_known_who_that_is(conn: Connection[TupleRow]) -> None:
    video = uuid4()
    liked = told("video.liked", video, "mallory", NOW)
    add(conn, [liked, *comments(video, "mallory", 2, NOW - MINUTE)])
    know(conn, video, "mallory")
    assert points(conn, video) is None
    assert stats(conn, video) == (1, 2, 0)


def test_one_account_that_floods_with_comments_counts_as_three(
    conn: Connection[TupleRow],
) -> None:
    add(conn, comments(MINE, "eve", 200, NOW - 10 * MINUTE))
    found = points(conn, MINE)
    assert found is not None
    assert found.comments == 3 * Formula().comment_weight
    assert stats(conn, MINE) == (0, 200, 0)


def test_one_account_that_watches_endlessly_counts_as_an_hour(
    conn: Connection[TupleRow],
) -> None:
    """In as many sessions as there are hours, told in any order."""
    events = []
    for hour in range(8):
        began, session = NOW - (hour + 1) * HOUR, str(uuid4())
        events.append(told("video.viewed", MINE, "eve", began, sessionId=session))
        for number in range(1, 6):
            at = began + number * 10 * MINUTE
            report = told("video.watch_time", MINE, "eve", at, sessionId=session, seconds=600)
            events.append(report)
    Random(3).shuffle(events)
    for start in range(0, len(events), 7):
        add(conn, events[start : start + 7])
    found = points(conn, MINE)
    assert found is not None
    assert found.watch_minutes == pytest.approx(60 * Formula().watch_minute_weight)
    assert stats(conn, MINE)[2] == pytest.approx(8 * 3000)


def test_comments_that_are_deleted_again_do_not_push_a_rival_down(
    conn: Connection[TupleRow],
) -> None:
    """Not below where it would be without them; what was posted before the window included."""
    before = points(conn, RIVAL)
    old = NOW - timedelta(days=20)
    flood = comments(RIVAL, "mallory", 50, old)
    gone = [
        told("comment.deleted", RIVAL, "mallory", NOW - MINUTE + each * timedelta(seconds=1))
        for each in range(50)
    ]
    add(conn, flood)
    add(conn, gone[:47])
    assert points(conn, RIVAL) == before
    add(conn, gone[47:])
    found = points(conn, RIVAL)
    # What the three that counted have brought is taken back, and nothing else.
    assert found is None or found.comments == -3 * Formula().comment_weight
    add(conn, [told("comment.deleted", RIVAL, "eve", NOW)])
    assert points(conn, RIVAL) == found


def test_another_cap_holds_for_what_comes(conn: Connection[TupleRow]) -> None:
    add(conn, comments(MINE, "eve", 5, NOW - 10 * MINUTE))
    add(conn, comments(MINE, "eve", 5, NOW - 5 * MINUTE), replace(RULES, viewer_comments=7))
    # Two of those that came after it, up to ten: the first five counted as three.
    assert (found := points(conn, MINE)) is not None
    assert found.comments == 5 * Formula().comment_weight

"""The ranking agrees with the formula in plain Python, and every score is the sum of its parts."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
import pytest
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from projections.trending import Formula, Ranked, Trending, Window, settle
from tests.integration.event_log import url_of
from tests.integration.trending_support import (
    HOUR,
    NOW,
    Deed,
    Film,
    expected_ranking,
    random_history,
    write,
)
from tests.support import seeds

A, B, C = (UUID(int=n) for n in (1, 2, 3))
USUAL = Formula(recent_hours=24, recent_boost=2.0, half_life_hours=168.0, age_floor=0.1)
UNUSUAL = Formula(
    0.5, 2.0, 7.0, 0.3, recent_hours=168, recent_boost=3.5, half_life_hours=10, age_floor=0
)
AGELESS = replace(USUAL, age_floor=1)


def ranking(
    conn: Connection[TupleRow],
    window: Window = Window.WEEK,
    formula: Formula = USUAL,
    *,
    limit: int = 100,
    now: datetime = NOW,
    category: str | None = None,
) -> list[Ranked]:
    async def rank() -> list[Ranked]:
        async with await AsyncConnection.connect(url_of(conn), autocommit=True) as opened:
            trending = Trending(formula)
            return await trending.rank(opened, window, limit=limit, now=now, category=category)

    return asyncio.run(rank())


def base_of(item: Ranked) -> float:
    return item.views + item.likes + item.comments + item.watch_minutes + item.recency_boost


@pytest.mark.parametrize("settled", [False, True])
@seeds(range(10), always=2)
def test_it_agrees_with_the_formula_in_plain_python(
    both_shapes: Connection[TupleRow], seed: int, settled: bool
) -> None:
    now = NOW + random.Random(seed).randint(0, 48) * HOUR / 2
    films, deeds = random_history(seed, now)
    write(both_shapes, films, deeds)
    for window in Window:
        for formula in (USUAL, UNUSUAL, AGELESS):
            if settled:
                assert settle(both_shapes, window, formula=formula, now=now)
            for category in (None, "art"):
                found = ranking(both_shapes, window, formula, now=now, category=category)
                wanted = expected_ranking(films, deeds, window, formula, now, category)
                assert [item.video_id for item in found] == [video for video, _ in wanted]
                assert [item.score for item in found] == pytest.approx([s for _, s in wanted])
                assert [item.rank for item in found] == list(range(1, len(found) + 1))
                for item in found:
                    assert base_of(item) - item.age_penalty == pytest.approx(item.score)


def test_what_each_part_is_worth(analytics: Connection[TupleRow]) -> None:
    film = Film(A, NOW - timedelta(days=7))
    old = NOW - timedelta(days=2)
    deeds = [
        *[Deed(film, "view", old)] * 10,
        Deed(film, "view", old, own=True),
        Deed(film, "view", old, counts=False),
        *[Deed(film, "like", old)] * 4,
        Deed(film, "like", NOW, -1),
        Deed(film, "comment", NOW),
        Deed(film, "watch_time", NOW, 600),
        Deed(film, "watch_time", NOW, 600, own=True),
    ]
    write(analytics, [film], deeds)
    (item,) = ranking(analytics)
    # Recent: a like less, a comment and ten minutes: -5 + 3 + 1.
    parts = (item.views, item.likes, item.comments, item.watch_minutes, item.recency_boost)
    assert parts == pytest.approx((10, 15, 3, 1, -1))
    assert (item.age_penalty, item.score) == pytest.approx((14, 14))


@pytest.mark.parametrize(
    ("age_hours", "floor", "left"),
    [
        (0, 0.1, 1),
        (168, 0.1, 0.5),
        (504, 0.1, 0.125),
        (672, 0.1, 0.1),
        (1680, 0.1, 0.1),
        (1680, 0, 2**-10),
        (1680, 1, 1),
    ],
)
def test_what_is_left_halves_with_each_half_life_down_to_the_floor(
    analytics: Connection[TupleRow], age_hours: int, floor: float, left: float
) -> None:
    film = Film(A, NOW - age_hours * HOUR)
    write(analytics, [film], [Deed(film, "view", NOW - 30 * HOUR)] * 100)
    (item,) = ranking(analytics, formula=replace(USUAL, age_floor=floor))
    assert item.score == pytest.approx(100 * left)
    assert item.age_penalty == pytest.approx(100 - 100 * left)


@pytest.mark.parametrize("settled", [False, True])
def test_without_a_floor_the_site_tells_what_is_left_of_the_old(
    analytics: Connection[TupleRow], settled: bool
) -> None:
    film, new = Film(A, NOW - 2000 * HOUR), Film(B, NOW)
    write(analytics, [film, new], [Deed(film, "view", NOW - 30 * HOUR)] * 100)
    told = replace(USUAL, age_floor=None)
    if settled:
        assert settle(analytics, Window.WEEK, formula=told, now=NOW)

    def left() -> float:
        (item,) = ranking(analytics, formula=told)
        return item.score / 100

    # Nothing was measured yet.
    assert left() == pytest.approx(0.1)
    week = 7 * 24 * 3600
    steps = [(0, 1.0), (week / 2, 0.75), (week - 1, 0.5), (week + 1, 0.25)]
    with analytics.cursor() as cursor:
        cursor.executemany("INSERT INTO analytics.attention VALUES (%s, %s)", steps)
    assert left() == pytest.approx(0.5)
    analytics.execute("DELETE FROM analytics.attention WHERE age > %s", (week / 2,))
    assert left() == pytest.approx(0.75)


def test_a_video_of_any_age_can_be_ranked(analytics: Connection[TupleRow]) -> None:
    ancient = Film(A, NOW - timedelta(days=9000))
    write(analytics, [ancient], [Deed(ancient, "view", NOW)])
    (item,) = ranking(analytics, formula=replace(USUAL, half_life_hours=0.1, age_floor=0))
    assert item.score == pytest.approx(0)


def test_equal_scores_are_ordered_by_views_and_then_by_id(
    analytics: Connection[TupleRow],
) -> None:
    liked, viewed, viewed_too = (Film(video, NOW) for video in (A, C, B))
    old = NOW - 48 * HOUR
    deeds = [Deed(liked, "like", old)]
    deeds += [Deed(film, "view", old) for film in (viewed, viewed_too) for _ in range(5)]
    write(analytics, [liked, viewed, viewed_too], deeds)
    assert [item.video_id for item in ranking(analytics)] == [B, C, A]
    assert [item.video_id for item in ranking(analytics, limit=2)] == [B, C]


def test_the_hour_in_which_a_window_begins_counts_whole(
    analytics: Connection[TupleRow],
) -> None:
    film = Film(A, NOW)
    hour = NOW.replace(minute=0, second=0)
    just = timedelta(microseconds=1)
    for window, hours in ((Window.WEEK, 168), (Window.MONTH, 720)):
        begin = hour - hours * HOUR
        write(analytics, [film], [Deed(film, "view", begin), Deed(film, "view", begin - just)])
        assert [item.views for item in ranking(analytics, window)] == [1]
        assert [item.views for item in ranking(analytics, Window.ALL)] == [2]
    begin = hour - 24 * HOUR
    write(analytics, [film], [Deed(film, "view", begin), Deed(film, "view", begin - just)])
    assert [(item.views, item.recency_boost) for item in ranking(analytics)] == [(2, 1)]


def test_who_is_not_listed(analytics: Connection[TupleRow]) -> None:
    removed, unfinished = Film(A, NOW, removed=True), Film(B, None)
    disliked, unknown = Film(C, NOW), Film(UUID(int=4), NOW)
    deeds = [Deed(film, "view", NOW) for film in (removed, unfinished, unknown)]
    write(analytics, [removed, unfinished, disliked], [*deeds, Deed(disliked, "like", NOW, -1)])
    assert ranking(analytics) == []


def test_sums_of_the_same_fractions_are_equal(analytics: Connection[TupleRow]) -> None:
    """Videos watched for the same times on other days: ids decide, not the order of addition."""
    rng = random.Random(1)
    films = [Film(UUID(int=n), NOW) for n in range(1, 21)]
    times = [rng.random() * 1000 for _ in range(25)]
    days = [NOW - timedelta(days=n) for n in range(3, 28)]
    deeds = [
        Deed(film, "watch_time", day, seconds)
        for film in films
        for day, seconds in zip(rng.sample(days, len(days)), times, strict=True)
    ]
    write(analytics, films, deeds)
    found = [item.video_id for item in ranking(analytics, Window.MONTH)]
    assert found == [film.video_id for film in films]


def test_no_event_is_read(analytics: Connection[TupleRow]) -> None:
    films, deeds = random_history(3)
    write(analytics, films, deeds)
    before = ranking(analytics, Window.ALL)
    analytics.execute("DROP TABLE analytics.video_analytics CASCADE")
    assert ranking(analytics, Window.ALL) == before
    assert before


def test_sums_are_settled_but_for_the_newest_hours(analytics: Connection[TupleRow]) -> None:
    film, hour = Film(A, NOW), NOW.replace(minute=0, second=0)
    old = [Deed(film, "view", at) for at in (hour - 9 * HOUR, hour - HOUR)]
    write(analytics, [film], old)
    settle(analytics, Window.WEEK, formula=USUAL, now=NOW)
    late, newest = Deed(film, "view", hour - HOUR / 2), Deed(film, "view", hour)
    new = [*old, newest, Deed(film, "view", NOW)]
    write(analytics, [film], new)
    assert [(item.views, item.recency_boost) for item in ranking(analytics)] == [(4, 4)]
    write(analytics, [film], [*new, late])
    assert [item.views for item in ranking(analytics)] == [4]
    settle(analytics, Window.WEEK, formula=USUAL, now=NOW)
    assert [item.views for item in ranking(analytics)] == [5]


@pytest.mark.parametrize(("minutes", "views"), [(9, 2), (10, 1)])
def test_an_hour_that_just_ended_is_not_settled_yet(
    analytics: Connection[TupleRow], minutes: int, views: int
) -> None:
    film, now = Film(A, NOW), NOW.replace(minute=minutes)
    before = [Deed(film, "view", now - 2 * HOUR)]
    write(analytics, [film], before)
    settle(analytics, Window.WEEK, formula=USUAL, now=now)
    write(analytics, [film], [*before, Deed(film, "view", now - HOUR / 2)])
    assert [item.views for item in ranking(analytics, now=now)] == [views]


def test_sums_are_used_for_one_more_hour_and_then_no_longer(
    analytics: Connection[TupleRow],
) -> None:
    film, hour = Film(A, NOW), NOW.replace(minute=0, second=0)
    write(analytics, [film], [Deed(film, "view", hour - 24 * HOUR), Deed(film, "view", NOW)])
    settle(analytics, Window.WEEK, formula=USUAL, now=NOW)
    analytics.execute("DELETE FROM analytics.video_hourly WHERE bucket < %s", (hour - HOUR,))
    views = [ranking(analytics, now=NOW + n * HOUR)[0].views for n in range(3)]
    assert views == [2, 2, 1]
    assert ranking(analytics, formula=replace(USUAL, recent_hours=23))[0].views == 1


def test_what_left_the_window_leaves_the_sums(analytics: Connection[TupleRow]) -> None:
    film, hour = Film(A, NOW), NOW.replace(minute=0, second=0)
    write(analytics, [film], [Deed(film, "view", hour - 168 * HOUR)])
    for hours, kept in ((0, 1), (1, 0)):
        settle(analytics, Window.WEEK, formula=USUAL, now=NOW + hours * HOUR)
        count = analytics.execute("SELECT count(*) FROM analytics.trending_sums").fetchone()
        assert count == (kept,)


def test_settling_writes_only_what_changed(analytics: Connection[TupleRow]) -> None:
    films, deeds = random_history(3)
    write(analytics, films, deeds)
    settle(analytics, Window.ALL, formula=USUAL, now=NOW)
    versions = "SELECT xmin::text, video_id FROM analytics.trending_sums ORDER BY video_id"
    before = analytics.execute(versions).fetchall()
    settle(analytics, Window.ALL, formula=USUAL, now=NOW)
    assert analytics.execute(versions).fetchall() == before
    assert len(before) > 1


def test_one_process_settles_at_a_time(analytics: Connection[TupleRow]) -> None:
    with psycopg.connect(analytics.info.dsn) as other:
        assert settle(other, Window.WEEK, formula=USUAL, now=NOW)
        other.execute("SELECT pg_advisory_xact_lock(7104878, 6)")
        assert not settle(analytics, Window.WEEK, formula=USUAL, now=NOW)

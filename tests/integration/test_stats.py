"""The stats of a video agree with its events counted one by one, in every range and bucket."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from projections.analytics.periods import Counts
from projections.analytics.queries import (
    LENGTHS,
    Bucket,
    Range,
    Stats,
    TooManyPoints,
    read_stats,
)
from projections.analytics.schema import prune
from tests.integration.event_log import url_of
from tests.integration.trending_support import (
    HOUR,
    NOW,
    Deed,
    Film,
    random_history,
    write,
)
from tests.support import seeds

EVERY = [(r, b) for r in Range for b in Bucket if (r, b) != (Range.ALL, Bucket.HOUR)]


def stats(
    conn: Connection[TupleRow],
    film: Film,
    range_: Range,
    bucket: Bucket = Bucket.DAY,
    *,
    now: datetime = NOW,
    zone: str = "UTC",
) -> Stats:
    async def ask() -> Stats:
        async with await AsyncConnection.connect(url_of(conn), autocommit=True) as opened:
            await opened.execute(f"SET timezone = '{zone}'".encode())
            began = {film.video_id: film.completed_at or now}
            found, _ = await read_stats(opened, began, range_, bucket, now)
            return found[film.video_id]

    return asyncio.run(ask())


def laid(found: Stats) -> list[Counts]:
    """Every bucket, also those in which nothing happened."""
    counted = {each.at: each for each in found.counted}
    ats = [found.first + place * found.step for place in range(found.buckets)]
    assert counted.keys() <= set(ats)
    return [
        counted.get(at, Counts(at, 0, 0, 0, 0, 0.0, None if place < found.untold else 0))
        for place, at in enumerate(ats)
    ]


def floor(at: datetime, bucket: Bucket) -> datetime:
    hour = at.replace(minute=0, second=0, microsecond=0)
    return hour if bucket is Bucket.HOUR else hour.replace(hour=0)


def counted(deeds: Sequence[Deed], at: datetime, *, viewers: bool = True) -> Counts:
    """One bucket, from the events that are in it."""

    def count(kind: str) -> list[Deed]:
        return [deed for deed in deeds if deed.kind == kind]

    minutes: Any = pytest.approx(sum(deed.value for deed in count("watch_time")) / 60)
    return Counts(
        at=at,
        views=sum(deed.counts for deed in count("view")),
        likes=int(sum(deed.value for deed in count("like"))),
        comments=int(sum(deed.value for deed in count("comment"))),
        shares=len(count("share")),
        watch_minutes=minutes,
        unique_viewers=len({deed.user for deed in count("view")}) if viewers else None,
    )


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
@seeds(range(5), always=2)
def test_it_agrees_with_the_events_themselves(
    both_shapes: Connection[TupleRow], seed: int, zone: str
) -> None:
    # In New York clocks were set forward in the week before; some times are on the hour, some not.
    now = NOW + random.Random(seed).choice([0, 1, 9, 33]) * HOUR / 2
    films, deeds = random_history(seed, now)
    write(both_shapes, films, deeds)
    for film in films:
        mine = [deed for deed in deeds if deed.film == film]
        for range_, bucket in EVERY:
            since = floor(now, Bucket.HOUR) - LENGTHS.get(range_, timedelta(0))
            if range_ is Range.ALL:
                began = min([film.completed_at or now, now, *(deed.at for deed in mine)])
                since = floor(began, Bucket.DAY)
            within = [deed for deed in mine if since <= deed.at < floor(now, Bucket.HOUR) + HOUR]
            found = stats(both_shapes, film, range_, bucket, now=now, zone=zone)
            assert found.totals == counted(within, since)
            step = HOUR if bucket is Bucket.HOUR else 24 * HOUR
            at = floor(since, bucket)
            for point in laid(found):
                here = [deed for deed in within if at <= deed.at < at + step]
                assert point == counted(here, at, viewers=bucket is Bucket.DAY)
                at += step
            assert at - step == floor(now, bucket)


def test_a_video_that_nobody_saw_has_a_series_of_zeros(analytics: Connection[TupleRow]) -> None:
    film = Film(UUID(int=1), NOW - timedelta(days=2))
    found = stats(analytics, film, Range.ALL)
    days = [NOW.replace(day=day, hour=0, minute=0, second=0) for day in (12, 13, 14)]
    assert [point.at for point in laid(found)] == days
    nothing = Counts(days[0], 0, 0, 0, 0, 0.0, 0)
    assert found.totals == nothing
    assert laid(found) == [nothing._replace(at=day) for day in days]
    assert laid(found)[0].at.tzinfo is UTC


def test_who_viewed_is_not_told_of_days_whose_viewers_are_gone(
    both_shapes: Connection[TupleRow],
) -> None:
    film = Film(UUID(int=1), NOW - timedelta(days=62))
    deeds = [Deed(film, "view", NOW - timedelta(days=age)) for age in (61, 60, 59)]
    write(both_shapes, [film], deeds)
    prune(both_shapes, 60, NOW)
    found = stats(both_shapes, film, Range.ALL)
    assert [point.views for point in laid(found)[:4]] == [0, 1, 1, 1]
    assert [point.unique_viewers for point in laid(found)[:4]] == [None, None, 1, 1]
    assert (found.totals.views, found.totals.unique_viewers) == (3, 1)


def test_viewers_that_are_about_to_go_are_not_told(both_shapes: Connection[TupleRow]) -> None:
    film = Film(UUID(int=1), NOW - timedelta(days=62))
    users = ("ann", 61), ("bob", 61), ("bob", 59)
    deeds = [Deed(film, "view", NOW - timedelta(days=age), user=user) for user, age in users]
    write(both_shapes, [film], deeds)
    both_shapes.execute("UPDATE analytics.retention SET floor = %s", (NOW - timedelta(days=60),))
    found = stats(both_shapes, film, Range.ALL)
    assert (found.totals.views, found.totals.unique_viewers) == (3, 1)


def test_no_viewer_is_looked_at(both_shapes: Connection[TupleRow]) -> None:
    """So that a video with a million viewers is answered as fast as any."""
    films, deeds = random_history(1, NOW)
    write(both_shapes, films, deeds)

    def asked() -> list[Stats]:
        return [stats(both_shapes, film, *how) for film in films for how in EVERY]

    before = asked()
    assert sum(each.totals.unique_viewers or 0 for each in before) > 10
    both_shapes.execute("TRUNCATE analytics.video_viewers")
    both_shapes.execute("DELETE FROM analytics.video_analytics WHERE event_type = 'view'")
    after = asked()
    for one, other in zip(before, after, strict=True):
        assert one.totals.unique_viewers == other.totals.unique_viewers
        viewers = [point.unique_viewers for point in laid(one)]
        assert viewers == [point.unique_viewers for point in laid(other)]


def test_hours_of_all_times_are_refused(analytics: Connection[TupleRow]) -> None:
    with pytest.raises(TooManyPoints, match="bucket=day"):
        stats(analytics, Film(UUID(int=1), NOW), Range.ALL, Bucket.HOUR)


def test_who_comes_again_is_one_viewer(analytics: Connection[TupleRow]) -> None:
    film = Film(UUID(int=1), NOW - timedelta(days=9))
    days = [NOW - n * timedelta(days=1) for n in range(3)]
    deeds = [Deed(film, "view", at, user=user) for at in days for user in ("ann", "bob", None)]
    write(analytics, [film], deeds)
    found = stats(analytics, film, Range.WEEK)
    assert (found.totals.views, found.totals.unique_viewers) == (9, 3)
    assert [point.unique_viewers for point in laid(found)] == [0, 0, 0, 0, 0, 3, 3, 3]

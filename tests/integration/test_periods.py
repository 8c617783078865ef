"""The stats of a period agree with the events in it, by days and hours of every kind of zone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from projections.analytics import periods
from projections.analytics.periods import (
    Period,
    PeriodStats,
    UnfitPeriod,
    begin_snapshot,
    last_hours,
    read_channels,
    read_period,
    videos_of,
    whole_days,
)
from projections.analytics.schema import prune
from tests.integration.event_log import url_of
from tests.integration.test_stats import counted
from tests.integration.trending_support import HOUR, NOW, Deed, Film, random_history, write

# Of whole hours, of a half and of three quarters; with clocks that are changed by an hour in the
# week before NOW, and by half an hour; the last one is a day ahead of the first.
ZONES = [
    "UTC", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe",
    "Pacific/Kiritimati",
]  # fmt: skip
DAY = timedelta(days=1)
# One whose history has events in hours that midnights of the zones off the hour cut.
SEED = 1
# In New York a day of 23 hours.
SPRING = date(2026, 3, 8)
T = TypeVar("T")


def ask(
    conn: Connection[TupleRow], question: Callable[[AsyncConnection[TupleRow]], Awaitable[T]]
) -> T:
    async def asked() -> T:
        connecting = AsyncConnection.connect(url_of(conn), autocommit=True)
        async with await connecting as opened, opened.transaction():
            await begin_snapshot(opened)
            return await question(opened)

    return asyncio.run(asked())


def read(
    conn: Connection[TupleRow], films: Sequence[Film], period: Period, now: datetime = NOW
) -> PeriodStats:
    videos = [film.video_id for film in films]
    alone = len(films) == 1
    return ask(conn, lambda opened: read_period(opened, videos, period, now, viewers=alone))


def days(zone: str, first: date, last: date | None = None, *, now: datetime = NOW) -> Period:
    return whole_days(first, last, ZoneInfo(zone), now, by_days=True)


def expect(found: PeriodStats, deeds: Sequence[Deed], period: Period, *, viewers: bool) -> None:
    within = [deed for deed in deeds if period.since <= deed.at < period.until]
    assert found.totals == counted(within, period.since, viewers=viewers)
    assert [point.at for point in found.series] == list(period.starts)
    for point, start, end in zip(found.series, period.bounds, period.bounds[1:], strict=False):
        here = [deed for deed in within if start <= deed.at < end]
        assert point == counted(here, point.at, viewers=viewers)


@pytest.mark.parametrize("zone", ZONES)
def test_it_agrees_with_the_events_themselves(both_shapes: Connection[TupleRow], zone: str) -> None:
    now = NOW + random.Random(SEED).choice([0, 1, 9, 33]) * HOUR / 2
    films, deeds = random_history(SEED, now)
    write(both_shapes, films, deeds)
    asked = [
        last_hours(168, ZoneInfo(zone), now, by_days=True),
        last_hours(720, ZoneInfo(zone), now, by_days=True),
        days(zone, date(2026, 2, 20), SPRING, now=now),
        days(zone, now.astimezone(ZoneInfo(zone)).date(), now=now),
    ]
    for film in films:
        mine = [deed for deed in deeds if deed.film == film]
        for period in asked:
            expect(read(both_shapes, [film], period, now), mine, period, viewers=True)
    if len(films) > 1:
        for period in asked:
            expect(read(both_shapes, films, period, now), deeds, period, viewers=False)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_hours_of_a_zone_are_told_where_they_are_hours_of_utc(
    analytics: Connection[TupleRow], zone: str
) -> None:
    films, deeds = random_history(3)
    write(analytics, films, deeds)
    period = whole_days(SPRING - DAY, SPRING, ZoneInfo(zone), NOW, by_days=False)
    assert len(period.starts) == (48 if zone == "UTC" else 47)
    expect(read(analytics, films, period), deeds, period, viewers=False)
    with pytest.raises(UnfitPeriod, match="bucket=day"):
        whole_days(SPRING, SPRING, ZoneInfo("Asia/Kolkata"), NOW, by_days=False)


def test_a_day_is_as_long_as_its_clocks_say() -> None:
    bounds = days("America/New_York", SPRING - DAY, SPRING + DAY).bounds
    assert [(end - at) / HOUR for at, end in pairwise(bounds)] == [24, 23, 24]
    autumn = days("America/New_York", date(2025, 11, 2), date(2025, 11, 2)).bounds
    assert (autumn[1] - autumn[0]) / HOUR == 25
    # Where clocks skip midnight, the day begins at one.
    (begun,) = days("Africa/Cairo", date(2025, 4, 25), date(2025, 4, 25)).starts
    assert begun == datetime(2025, 4, 24, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("first", "last", "field"),
    [
        (NOW.date() + DAY, None, "from"),
        (SPRING, SPRING - DAY, "to"),
        (date(1, 1, 1), None, "from"),
        (date.max, date.max, "from"),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_there_is_no_such_period(first: date, last: date | None, field: str, zone: str) -> None:
    for by_days in (True, False):
        with pytest.raises(UnfitPeriod) as refused:
            whole_days(first, last, ZoneInfo(zone), NOW, by_days=by_days)
        assert refused.value.field == field


def test_the_future_is_left_out() -> None:
    assert days("UTC", SPRING, date.max) == days("UTC", SPRING)
    assert days("UTC", SPRING).until == datetime(2026, 3, 14, 16, tzinfo=UTC)


def test_days_in_utc_outlive_the_hours_and_no_others_are_made_up(
    both_shapes: Connection[TupleRow],
) -> None:
    film = Film(UUID(int=1), NOW - 62 * DAY)
    deeds = [Deed(film, "view", NOW - age * DAY) for age in (61, 60, 59)]
    write(both_shapes, [film], deeds)
    prune(both_shapes, 60, NOW)
    found = read(both_shapes, [film], days("UTC", (NOW - 61 * DAY).date()))
    assert [point.views for point in found.series[:4]] == [1, 1, 1, 0]
    assert [point.unique_viewers for point in found.series[:4]] == [None, None, 1, 0]
    assert (found.totals.views, found.totals.unique_viewers) == (3, None)
    for period in (
        days("Europe/Berlin", (NOW - 60 * DAY).date()),
        whole_days((NOW - 60 * DAY).date(), None, ZoneInfo("UTC"), NOW, by_days=False),
    ):
        with pytest.raises(UnfitPeriod, match="2026-01-14T00:00:00Z"):
            read(both_shapes, [film], period)
    later = days("Europe/Berlin", (NOW - 58 * DAY).date())
    assert read(both_shapes, [film], later).totals.unique_viewers == 0


def test_so_many_views_are_not_gone_through(
    analytics: Connection[TupleRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    film = Film(UUID(int=1), NOW - 9 * DAY)
    write(analytics, [film], [Deed(film, "view", NOW - n * HOUR) for n in range(3)])
    period = days("UTC", NOW.date())
    assert read(analytics, [film], period).totals.unique_viewers == 1
    few = periods.VIEWERS.replace(b"500000", b"2")
    assert few != periods.VIEWERS
    monkeypatch.setattr(periods, "VIEWERS", few)
    monkeypatch.setattr(periods, "MOST_VIEWS", 2)
    found = read(analytics, [film], period)
    assert (found.totals.views, found.totals.unique_viewers) == (3, None)
    assert [point.unique_viewers for point in found.series] == [None]


def test_an_owner_has_all_videos_and_others_see_the_public_ones(
    analytics: Connection[TupleRow],
) -> None:
    films = [Film(UUID(int=n), NOW - n * DAY, removed=n == 4) for n in range(1, 5)]
    write(analytics, [*films, Film(UUID(int=5), None)], [])
    analytics.execute(
        "UPDATE analytics.videos SET listed = false WHERE video_id = %s", [UUID(int=2)]
    )

    def owned(owner: str, *, unlisted: bool) -> object:
        return ask(analytics, lambda conn: videos_of(conn, owner, unlisted=unlisted))

    assert owned("owner", unlisted=True) == {film.video_id: film.completed_at for film in films[:3]}
    assert owned("owner", unlisted=False) == {
        film.video_id: film.completed_at for film in (films[0], films[2])
    }
    assert owned("somebody", unlisted=True) == {}


def test_channels_are_those_of_the_period_most_used_first(
    both_shapes: Connection[TupleRow],
) -> None:
    film, other = (Film(UUID(int=n), NOW - 9 * DAY) for n in (1, 2))
    shares = [Deed(film, "share", NOW - n * HOUR) for n in range(9)]
    write(both_shapes, [film, other], [*shares, Deed(other, "share", NOW), Deed(film, "view", NOW)])
    for channel, hours in (("chat", "3 hours"), (None, "2 hours")):
        both_shapes.execute(
            "UPDATE analytics.video_analytics SET metadata = jsonb_strip_nulls("
            "jsonb_build_object('channel', %s::text)) WHERE event_type = 'share' AND video_id = %s"
            f" AND \"timestamp\" = %s - interval '{hours}'",
            [channel, film.video_id, NOW],
        )

    def told() -> object:
        return ask(
            both_shapes, lambda conn: read_channels(conn, film.video_id, NOW - 6 * HOUR, NOW)
        )

    assert told() == ([("mail", 4), ("chat", 1), (None, 1)], 6)

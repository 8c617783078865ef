"""What rankings attract of the next day's first views, as the benchmark counts it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import log2
from uuid import UUID

import pytest

from benchmarks.attraction import SHOWN, days_of, decayed, judge, popular, shown_by
from benchmarks.history import Event, Film, History
from projections.analytics.calendar import DAY

BEGAN = datetime(2026, 3, 1, 6, tzinfo=UTC)
A, B, C = (UUID(int=n) for n in (1, 2, 3))
FILMS = [Film(each, "", None, "owner", BEGAN) for each in (A, B, C)]


def view(user: str, video: UUID, days: float) -> Event:
    return Event(BEGAN + timedelta(days=days), user, video, seconds=60.0)


def test_days_have_the_views_before_them_and_their_first_views() -> None:
    views = [
        view("ann", A, 0),
        view("ann", A, 8),
        view("bob", A, 8.1),
        view("bob", B, 8.2),
        view("eve", B, 9),
        view("eve", C, 10),
    ]
    days = days_of(History(FILMS, views))
    # The first seven days are there to rank by, and the last day is not over.
    assert [day.at.day for day in days] == [9, 10]
    assert [day.first_views for day in days] == [{A: 1, B: 1}, {B: 1}]
    assert [len(day.past) for day in days] == [1, 4]


def test_a_history_that_is_too_short_has_no_days() -> None:
    assert days_of(History(FILMS, [])) == []
    assert days_of(History(FILMS, [view("ann", A, 0), view("bob", A, 6)])) == []


def test_the_most_viewed_of_some_days() -> None:
    views = [*[view("ann", A, 0)] * 3, *[view("ann", B, 5)] * 2, view("ann", C, 7.5)]
    at = BEGAN + timedelta(days=8)
    assert popular(1 * DAY)(views, at) == {C: 1}
    assert popular(7 * DAY)(views, at) == {B: 2, C: 1}
    assert popular(8 * DAY)(views, at) == {A: 3, B: 2, C: 1}


def test_views_weigh_half_after_each_half_life() -> None:
    views = [view("ann", A, 0), view("bob", A, 2), view("ann", B, 3)]
    assert decayed(1 * DAY)(views, BEGAN + 4 * DAY) == pytest.approx({A: 1 / 16 + 1 / 4, B: 1 / 2})


def test_the_share_of_first_views_and_the_gain() -> None:
    views = [*[view("ann", A, 0)] * 2, view("ann", B, 1), view("bob", A, 8), view("bob", C, 8.1)]
    views += [view("eve", C, 8.2), view("eve", A, 9)]
    days = days_of(History(FILMS, views))
    shown = shown_by(popular(30 * DAY), days)
    assert shown == [[A, B]]
    ideal = 2 / log2(2) + 1 / log2(3)
    found = judge(days, shown)
    assert (found.share, found.ndcg) == pytest.approx((100 / 3, 1 / ideal))


def test_so_many_are_shown() -> None:
    views = [view("ann", UUID(int=n), 0) for n in range(SHOWN + 5)]
    days = days_of(History(FILMS, [*views, view("bob", A, 8), view("bob", A, 9)]))
    ((*shown,),) = shown_by(popular(30 * DAY), days)
    assert len(shown) == SHOWN

"""Which seconds are watched: stretches over places, and the curve, against plain forms."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.analytics.audience import curve_of, place_of, spread, start_of
from projections.analytics.rules import (
    LONGEST_SECONDS,
    NotCountable,
    Row,
    Rules,
    Session,
    WatchedVideo,
    row_of,
)

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
VIDEO, SESSION = str(uuid4()), str(uuid4())
LONGEST_MS = LONGEST_SECONDS * 1000

milliseconds = st.integers(0, LONGEST_MS)
# More often within the first minutes, where most of the places are.
stretches = st.tuples(
    st.one_of(st.integers(0, 600_000), milliseconds),
    st.one_of(st.integers(0, 600_000), milliseconds),
)


def plain_places() -> list[int]:
    """Where each place begins, in seconds: 120 of one, then 60 of two, 60 of four, and so on."""
    found, step = [0], 1
    while found[-1] < LONGEST_SECONDS:
        if len(found) > 120 and (len(found) - 121) % 60 == 0:
            step *= 2
        found.append(found[-1] + step)
    return found


PLACES = plain_places()


def plain_spread(since: int, until: int) -> Counter[int]:
    """How much of a stretch lies in each place, by looking at every place."""
    until = min(until, LONGEST_MS)
    found = {
        place: min(until, end * 1000) - max(since, start * 1000)
        for place, (start, end) in enumerate(pairwise(PLACES))
    }
    return Counter({place: ms for place, ms in found.items() if ms > 0})


def test_places_are_those_of_the_plain_form() -> None:
    assert [start_of(place) for place in range(len(PLACES))] == PLACES
    assert [place_of(second) for second in PLACES] == list(range(len(PLACES)))
    assert [place_of(second - 1) for second in PLACES[1:]] == list(range(len(PLACES) - 1))


@given(stretches)
def test_a_stretch_is_spread_over_its_places(stretch: tuple[int, int]) -> None:
    since, length = stretch
    found = list(spread((since, since + length)))
    assert Counter(dict(found)) == plain_spread(since, since + length)
    assert len(found) == len(dict(found))
    assert sum(ms for _, ms in found) == min(since + length, LONGEST_MS) - min(since, LONGEST_MS)


@given(
    st.lists(stretches, max_size=20),
    st.integers(1, 30),
    st.one_of(st.none(), st.floats(0.25, 700), st.floats(0.25, 2 * LONGEST_SECONDS)),
)
def test_a_curve_has_all_that_was_watched(
    given: list[tuple[int, int]], sessions: int, duration: float | None
) -> None:
    watched: Counter[int] = Counter()
    for since, length in given:
        watched.update(plain_spread(since, since + length))
    curve = curve_of(watched, sessions, duration)
    assert (curve.duration, curve.sessions) == (duration, sessions)
    assert [point.second for point in curve.points] == [
        curve.step * number for number in range(len(curve.points))
    ]
    assert len(curve.points) <= 120
    assert curve.step == 1 or len(curve.points) >= 60
    if duration is not None:
        within = {place: ms for place, ms in watched.items() if PLACES[place] < duration}
        assert sum(round(each.watched * 1000) for each in curve.points) == sum(within.values())
        last = duration - curve.points[-1].second
        assert len(curve.points) == 1 or curve.step / 2 <= last <= 1.5 * curve.step
        # No place has a part in two points.
        for place in within:
            assert PLACES[place] // curve.step == (PLACES[place + 1] - 1) // curve.step
    for point, following in pairwise(curve.points):
        size = following.second - point.second
        share = Fraction(round(point.watched * 1000), 1000 * size * sessions)
        assert point.share == pytest.approx(float(share))


def test_the_last_point_goes_on_to_the_end() -> None:
    (last,) = curve_of({0: 1000, 9: 900, 10: 300}, 1, 10.4).points[9:]
    assert (last.second, last.watched) == (9, 1.2)
    assert last.share == pytest.approx(1.2 / 1.4)
    halves = curve_of({0: 1000}, 2, 0.5).points
    assert [(point.watched, point.share) for point in halves] == [(1.0, 1.0)]


def test_of_an_unknown_length_the_curve_ends_with_what_some_have_watched() -> None:
    watched = dict.fromkeys(range(90), 100_000)
    # One of a hundred, and who says that they were far ahead.
    curve = curve_of(watched | {95: 1_000, 684: 900}, 100, None)
    assert (curve.step, len(curve.points)) == (1, 96)
    assert curve_of({}, 0, None).points == []


def test_without_sessions_there_is_no_share() -> None:
    """As where all had begun before the period."""
    assert curve_of({0: 500}, 0, 1.0).points == [(0, 0.5, None)]


def report(at: float, reported: float, position: float | None) -> Row:
    row = Row(str(uuid4()), VIDEO, "bob", "watch_time", NOW + timedelta(seconds=at), {}, SESSION)
    return row._replace(reported=reported, position=position)


def test_the_first_report_that_counts_and_says_where_is_its_session_s() -> None:
    session, rules = Session(), Rules()
    view = Row(str(uuid4()), VIDEO, "bob", "view", NOW, {}, SESSION)
    rows = [
        report(-5, 5, 0), view, report(0, 5, 0), report(10, 8, None), report(20, 60, 8),
        report(30, 10, 18),
    ]  # fmt: skip
    told = [session.decide(row, WatchedVideo(), rules) for row in rows]
    assert [each.get("position") for each in told] == [0, None, 0, None, 8, 18]
    assert [each.get("first") for each in told] == [None, None, None, None, True, None]
    assert [each.get("seconds") for each in told] == [0, None, 0, 8, 10, 10]


@pytest.mark.parametrize("position", [-0.1, LONGEST_SECONDS + 1, float("nan"), "no", [1]])
def test_a_position_that_there_can_not_be_is_not_counted(position: object) -> None:
    value = {
        "videoId": VIDEO, "userId": None, "sessionId": SESSION, "seconds": 3,
        "timestamp": NOW.isoformat(),
    }  # fmt: skip
    assert row_of("video.watch_time", uuid4(), value, NOW).position is None
    assert row_of("video.watch_time", uuid4(), value | {"position": 7}, NOW).position == 7
    with pytest.raises(NotCountable):
        row_of("video.watch_time", uuid4(), value | {"position": position}, NOW)

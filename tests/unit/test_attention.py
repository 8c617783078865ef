"""What goes on for videos of an age: measured on the site, and never rising."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise

import pytest

from projections.recommendations.attention import (
    AGES,
    Attention,
    Happened,
    default_attention,
    measured,
)
from projections.recommendations.model import Weighing

WEIGHING = Weighing()
HOUR, DAY = 3600.0, 86400.0
# Videos are of each age for as long as it lasts.
SPANS = [after - age for age, after in pairwise([*AGES, 2 * AGES[-1]])]


def site(rate: Callable[[float], float], events: float = 10_000) -> Attention:
    """What a site tells whose videos get that much at an age, so many events in all."""
    expected = [rate(age) * span for age, span in zip(AGES, SPANS, strict=True)]
    scale = events / sum(expected)
    return measured(
        [
            Happened(age, scale * each, span)
            for age, span, each in zip(AGES, SPANS, expected, strict=True)
        ],
        WEIGHING,
    )


def news(age: float) -> float:
    return 1.0 if age < 8 * HOUR else 1e-6


def test_news_is_over_within_hours() -> None:
    found = site(news)
    assert found.left(HOUR) > 100 * found.left(2 * DAY)
    assert found.left(HOUR) > 100 * found.left(400 * DAY)


def test_what_is_watched_for_years_stays() -> None:
    """Only what it has collected meanwhile is set against that."""
    found = site(lambda age: 1.0)
    assert found.left(100 * DAY) == pytest.approx(found.left(200 * DAY), rel=0.1)
    assert found.left(0.0) == 1.0
    assert found.left(400 * DAY) > 0.3


def test_what_has_had_its_time_is_told_from_what_begins() -> None:
    """Two got as much in all, and both still get it: the younger one will get more."""
    found = site(lambda age: 1.0)
    assert found.left(2 * DAY) > 1.5 * found.left(30 * DAY)


def test_an_older_age_never_has_more() -> None:
    found = site(lambda age: 1.0 + (AGES[8] <= age < AGES[12]))
    shares = [step.share for step in found.steps]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    assert len(set(shares)) > 1


def test_the_default_holds_until_enough_has_happened() -> None:
    default, none, few, many = (
        default_attention(WEIGHING),
        site(news, 0),
        site(news, 0.01),
        site(news),
    )
    for age in (HOUR, 2 * DAY, 30 * DAY):
        assert none.left(age) == pytest.approx(default.left(age))
        assert few.left(age) == pytest.approx(default.left(age), rel=0.1)
    assert many.left(2 * DAY) < default.left(2 * DAY) / 10


def test_ages_that_no_video_was_of_have_what_the_next_younger_ones_have() -> None:
    some = [Happened(0.0, 50, DAY), Happened(DAY, 5, DAY), Happened(8 * DAY, 0, 0)]
    found = measured(some, WEIGHING)
    assert found.left(-1.0) == found.left(0.0) > found.left(DAY) == found.left(10 * DAY) > 0


def test_what_took_no_time_tells_nothing() -> None:
    """As one event alone."""
    assert measured([Happened(0.0, 1, 0.0)], WEIGHING) == default_attention(WEIGHING)
    assert measured([], WEIGHING) == default_attention(WEIGHING)


def test_the_default_is_that_of_the_settings() -> None:
    shorter = Weighing(fresh_half_life=timedelta(days=1))
    assert default_attention(shorter).left(3 * DAY) < default_attention(WEIGHING).left(3 * DAY)

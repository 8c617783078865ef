"""A ranking from the few videos that can be in it is the ranking of all of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from projections.trending import Formula, Window, settle
from tests.integration.test_trending import AGELESS, UNUSUAL, USUAL, ranking
from tests.integration.trending_support import (
    CROSSING,
    HOUR,
    NOW,
    Deed,
    Film,
    expected_ranking,
    write,
)
from tests.support import seeds

BEFORE = NOW - timedelta(days=2)
JUST_NOW = NOW.replace(minute=1)
# What a video would have if it was looked at.
ABSURD = b"UPDATE analytics.trending_sums SET views = 1e9 WHERE video_id = ANY (%s)"


def films_of(count: int) -> list[Film]:
    return [Film(UUID(int=n), NOW - timedelta(days=1)) for n in range(1, count + 1)]


def views(film: Film, count: int) -> list[Deed]:
    return [Deed(film, "view", BEFORE)] * count


def descending(films: Sequence[Film]) -> list[Deed]:
    """Each has three views less than the one before."""
    return [deed for n, film in enumerate(films) for deed in views(film, 3 * (len(films) - n))]


def settled(conn: Connection[TupleRow], films: Sequence[Film], deeds: Sequence[Deed]) -> None:
    write(conn, films, deeds)
    assert settle(conn, Window.WEEK, formula=USUAL, now=NOW)


def first(conn: Connection[TupleRow], limit: int, category: str | None = None) -> list[UUID]:
    return [item.video_id for item in ranking(conn, limit=limit, category=category)]


def crowd(rng: random.Random) -> tuple[list[Film], list[Deed]]:
    """Many videos, a few far ahead or all alike, and much that happened just now."""
    ages = [-1 * HOUR, HOUR, 72 * HOUR, CROSSING - HOUR / 4, CROSSING + HOUR / 4, 720 * HOUR]
    films = [
        Film(
            UUID(int=rng.getrandbits(128)),
            None if rng.random() < 0.05 else NOW - rng.choice(ages),
            rng.choice(["art", "nature", "nature"]),
            rng.random() < 0.1,
        )
        for _ in range(rng.randint(40, 150))
    ]
    skew = rng.choice([1, 4, 12])
    deeds = []
    for _ in range(rng.randint(300, 1500)):
        film = films[int(len(films) * rng.random() ** skew)]
        kind = rng.choice(["view", "like", "comment", "watch_time"])
        age = rng.choice([HOUR, HOUR, 24 * HOUR, 168 * HOUR]) * rng.random()
        value = rng.choice([1.0, -1.0]) if kind in ("like", "comment") else rng.randint(1, 600)
        deeds.append(Deed(film, kind, NOW - age, value))
    return films, deeds


@pytest.mark.parametrize(
    ("formula", "settled_by"),
    [
        (USUAL, USUAL),
        (USUAL, replace(UNUSUAL, recent_hours=24)),
        (replace(USUAL, age_floor=0), replace(USUAL, age_floor=0)),
        (AGELESS, AGELESS),
        (AGELESS, USUAL),
    ],
)
@seeds(range(5), always=1)
def test_it_agrees_with_the_formula_in_plain_python(
    both_shapes: Connection[TupleRow], seed: int, formula: Formula, settled_by: Formula
) -> None:
    rng = random.Random(seed)
    films, deeds = crowd(rng)
    write(both_shapes, films, deeds)
    for window in (Window.WEEK, Window.ALL):
        assert settle(both_shapes, window, formula=settled_by, now=NOW)
        for category in (None, "art"):
            wanted = expected_ranking(films, deeds, window, formula, NOW, category)
            for limit in (1, 2, 7):
                found = ranking(both_shapes, window, formula, limit=limit, category=category)
                assert [item.video_id for item in found] == [video for video, _ in wanted[:limit]]
                assert [item.score for item in found] == pytest.approx(
                    [score for _, score in wanted[:limit]]
                )


def test_who_cannot_be_at_the_top_is_not_looked_at(analytics: Connection[TupleRow]) -> None:
    films = films_of(20)
    settled(analytics, films, descending(films))
    top = [film.video_id for film in films]
    analytics.execute(ABSURD, (top[10:],))
    assert first(analytics, 2) == top[:2]
    # More than they are: all are looked at, and those have a thousand million views.
    assert first(analytics, 20)[:10] == top[10:]


def likes(film: Film, count: int) -> Deed:
    return Deed(film, "like", BEFORE, count)


def old(films: Sequence[Film]) -> list[Film]:
    """The same so old that of each a tenth is left."""
    return [replace(film, completed_at=NOW - timedelta(days=400)) for film in films]


def test_who_has_come_down_to_the_floor_may_lead(analytics: Connection[TupleRow]) -> None:
    films = films_of(40)
    films[20:] = old(films[20:])
    # Of the old ones' points a tenth is left: 90 and less; the new ones have 54 and less.
    deeds = [*descending(films[:20]), likes(films[20], 180), likes(films[21], 60)]
    deeds += [deed for film in films[22:] for deed in views(film, 1)]
    settled(analytics, films, deeds)
    analytics.execute(ABSURD, ([film.video_id for film in [*films[11:20], *films[32:]]],))
    assert first(analytics, 2) == [films[20].video_id, films[0].video_id]


def test_one_at_the_floor_may_lead_from_a_later_settling_on(
    analytics: Connection[TupleRow],
) -> None:
    films = films_of(20)
    films[19:] = old(films[19:])
    deeds = descending(films)
    settled(analytics, films, deeds)
    assert first(analytics, 1) == [films[0].video_id]
    settled(analytics, films, [*deeds, likes(films[-1], 180)])
    assert first(analytics, 1) == [films[-1].video_id]


def test_one_at_the_floor_behind_the_leaders_may_rise(analytics: Connection[TupleRow]) -> None:
    films = films_of(20)
    films[10:] = old(films[10:])
    deeds = [*views(films[0], 100), *descending(films[1:10]), likes(films[-1], 180)]
    deeds += [likes(film, 181) for film in films[10:-1]]
    settled(analytics, films, deeds)
    # The first has 90.6; of the old ones 90.5 and 90 are left, and of 15 new views three points.
    risen = [Deed(films[-1], "view", JUST_NOW)] * 15
    write(analytics, films, [*deeds, *risen])
    assert first(analytics, 1) == [films[-1].video_id]


def test_one_that_comes_down_to_the_floor_after_the_settling(
    analytics: Connection[TupleRow],
) -> None:
    films = [replace(film, completed_at=NOW - CROSSING) for film in films_of(20)]
    deeds = descending(films)
    for hours in (-3, -1, 1, 3):
        now = NOW + hours * HOUR / 4
        write(analytics, films, deeds)
        assert settle(analytics, Window.WEEK, formula=USUAL, now=NOW - HOUR)
        found = [(item.video_id, item.score) for item in ranking(analytics, now=now, limit=2)]
        wanted = expected_ranking(films, deeds, Window.WEEK, USUAL, now)[:2]
        assert [video for video, _ in found] == [video for video, _ in wanted]
        assert [score for _, score in found] == pytest.approx([score for _, score in wanted])


def test_sums_that_the_release_before_has_settled(analytics: Connection[TupleRow]) -> None:
    films = films_of(40)
    films[20:] = old(films[20:])
    deeds = [*descending(films[:20]), *(likes(film, 180) for film in films[20:])]
    settled(analytics, films, deeds)
    analytics.execute("UPDATE analytics.trending_sums SET base = NULL")
    analytics.execute("UPDATE analytics.trending_settled SET formula = formula - 'age_floor'")
    assert first(analytics, 2) == [films[20].video_id, films[21].video_id]


def test_what_came_just_now_brings_anyone_to_the_top(analytics: Connection[TupleRow]) -> None:
    films = films_of(20)
    deeds = descending(films)
    settled(analytics, films, deeds)
    new = Film(UUID(int=99), NOW)
    risen = [Deed(film, "view", JUST_NOW) for film in [new, films[-1]] for _ in range(70)]
    write(analytics, [*films, new], [*deeds, *risen])
    # 140 points of this day, one without its age; they lead with 60.
    assert first(analytics, 2) == [new.video_id, films[-1].video_id]


def test_what_is_missing_may_have_come_in_two_hours(analytics: Connection[TupleRow]) -> None:
    now = NOW.replace(minute=5)
    films = films_of(20)
    deeds = descending(films)
    write(analytics, films, deeds)
    assert settle(analytics, Window.WEEK, formula=USUAL, now=now)
    # The second has 57 points, the last leader 33, the one after it 30 and twice 14 of this day.
    halves = [Deed(films[10], "view", at) for at in (now, now - HOUR / 2) for _ in range(7)]
    write(analytics, films, [*deeds, *halves])
    found = ranking(analytics, limit=2, now=now)
    assert [item.video_id for item in found] == [films[0].video_id, films[10].video_id]


def test_equal_scores_beyond_the_leaders_are_ordered(analytics: Connection[TupleRow]) -> None:
    films = films_of(30)
    random.Random(1).shuffle(films)
    settled(analytics, films, [deed for film in films for deed in views(film, 2)])
    assert first(analytics, 3) == [UUID(int=n) for n in (1, 2, 3)]


def test_leaders_may_fall_behind_the_rest(analytics: Connection[TupleRow]) -> None:
    films = films_of(20)
    deeds = descending(films)
    settled(analytics, films, deeds)
    fallen = [Deed(film, "like", JUST_NOW, -1) for film in films[:10] for _ in range(9)]
    write(analytics, films, [*deeds, *fallen])
    assert first(analytics, 2) == [film.video_id for film in films[10:12]]


def test_who_was_completed_since_is_as_old_as_it_is(analytics: Connection[TupleRow]) -> None:
    films = films_of(20)
    late = Film(UUID(int=99), None)
    deeds = [*descending(films), *views(late, 100)]
    settled(analytics, [*films, late], deeds)
    assert first(analytics, 2) == [films[0].video_id, films[1].video_id]
    write(analytics, [*films, replace(late, completed_at=NOW)], deeds)
    assert first(analytics, 2) == [late.video_id, films[0].video_id]


def test_a_category_far_behind_and_videos_removed_since(analytics: Connection[TupleRow]) -> None:
    films = films_of(60)
    films[58:] = [replace(film, category="art") for film in films[58:]]
    deeds = descending(films)
    settled(analytics, films, deeds)
    assert first(analytics, 1, "art") == [films[58].video_id]
    write(analytics, [replace(film, removed=True) for film in films[:55]] + films[55:], deeds)
    assert first(analytics, 2) == [films[55].video_id, films[56].video_id]
    assert first(analytics, 1, "art") == [films[58].video_id]


def test_few_of_a_category_lead_and_one_far_behind_rises(
    analytics: Connection[TupleRow],
) -> None:
    films = [
        replace(f, category="art" if n in (48, 58) else None) for n, f in enumerate(films_of(60))
    ]
    deeds = descending(films)
    settled(analytics, films, deeds)
    assert first(analytics, 1, "art") == [films[48].video_id]
    # The one has 36 points; the other, beyond all that are looked at, 6 and twice 16.
    risen = [Deed(films[58], "view", JUST_NOW)] * 16
    write(analytics, films, [*deeds, *risen])
    assert first(analytics, 1, "art") == [films[58].video_id]


def test_keys_of_a_very_short_half_life_are_not_relied_on(
    analytics: Connection[TupleRow],
) -> None:
    short = replace(USUAL, half_life_hours=0.05, age_floor=0)
    films = [replace(film, completed_at=NOW - HOUR / 2) for film in films_of(20)]
    new = Film(UUID(int=99), NOW)
    write(analytics, [*films, new], [*descending(films), *views(new, 2)])
    assert settle(analytics, Window.WEEK, formula=short, now=NOW)
    # Of the others' points a thousandth is left.
    found = [item.video_id for item in ranking(analytics, formula=short, limit=2)]
    assert found == [new.video_id, films[0].video_id]

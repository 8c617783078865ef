"""The made-up community, and how rankings are measured."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from math import log2
from random import Random
from statistics import mean
from uuid import UUID

import pytest

from benchmarks.community import Community, Shape, dirichlet, make_community
from benchmarks.contenders import Taste
from benchmarks.evaluation import Contender, ask_at, rankings, score
from benchmarks.history import Kind
from benchmarks.measures import coverage, ndcg, recall
from benchmarks.peers import Chance, Popular

UNTIL = datetime(2026, 3, 14, tzinfo=UTC)
SHAPE = Shape(users=60, videos=80, topics=6, days=14)
A, B, C, D = (UUID(int=number) for number in range(1, 5))


@pytest.fixture(scope="module")
def community() -> Community:
    return make_community(7, SHAPE, until=UNTIL)


def test_a_seed_makes_the_same_community_and_another_seed_another(community: Community) -> None:
    assert make_community(7, SHAPE, until=UNTIL).history == community.history
    assert make_community(8, SHAPE, until=UNTIL).history != community.history


def test_nobody_watches_before_it_is_there_nor_twice(community: Community) -> None:
    since = {film.video_id: film.since for film in community.history.films}
    events = community.history.events
    views = [event for event in events if event.kind is Kind.VIEW]
    assert all(since[view.video_id] <= view.at < UNTIL + timedelta(hours=1) for view in views)
    assert max(Counter((view.user, view.video_id) for view in views).values()) == 1
    assert [event.at for event in events] == sorted(event.at for event in events)


def test_tastes_and_chances_are_shares(community: Community) -> None:
    for user, taste in community.tastes.items():
        assert sum(taste) == pytest.approx(1)
        assert sum(community.wanted(user, 10).values()) == pytest.approx(1)
    assert sum(dirichlet(Random(1), [1.0] * 50, 0.001)) == pytest.approx(1)


def test_what_is_not_there_yet_is_wanted_by_nobody(community: Community) -> None:
    later = {film.video_id for film in community.history.films if community.day_of(film.since) > 5}
    wanted = community.wanted("viewer-0", 5)
    assert later
    assert all(wanted[video] == 0 for video in later)


def test_popularity_counts_and_tastes_count_more() -> None:
    """Nobody has to be clever to beat chance; who knows the tastes beats the crowd."""
    shape = Shape(users=150, videos=200, days=28)
    made = make_community(1, shape, until=UNTIL)
    questions = ask_at(made.history, UNTIL - timedelta(days=4))

    def found(contender: Contender) -> float:
        answers = rankings(made.history, questions, [contender])
        (told,) = score(made.history, questions, answers, (), resamples=50)
        return told.ndcg.value

    chance = mean(found(Chance(seed)) for seed in range(5))
    crowd = found(Popular(30))
    assert crowd > 1.5 * chance
    assert found(Taste(made)) > 2 * crowd


def test_ndcg_is_the_gain_of_the_places_over_the_best_that_could_be() -> None:
    assert ndcg([A, B, C], {A}) == 1
    assert ndcg([A, B, C], {B}) == pytest.approx(1 / log2(3))
    best = 1 + 1 / log2(3)
    assert ndcg([A, B, C], {A, C}) == pytest.approx((1 + 1 / 2) / best)
    assert ndcg([C], {A, B}) == 0
    # No ranking of one has room for both.
    assert ndcg([A], {A, B}, depth=1) == 1
    assert ndcg([C, A], {A}, depth=1) == 0


def test_a_video_that_is_listed_twice_is_found_once_and_where_it_stands_first() -> None:
    assert ndcg([A, A], {A}) == 1
    assert ndcg([A, A], {A, B}) < 1
    assert recall([A, A], {A, B}) == 0.5


def test_recall_is_the_share_of_what_is_relevant() -> None:
    assert recall([A, B, C], {A, C, D}) == pytest.approx(2 / 3)
    assert recall([A, B, C], {C}, depth=2) == 0


def test_coverage_is_the_share_of_all_videos_that_anybody_is_shown() -> None:
    assert coverage([[A, B], [A]], [A, B, C, D]) == 0.5
    assert coverage([[A, B], [A]], [A, B, C, D], depth=1) == 0.25


def test_without_anything_to_find_there_is_no_measure() -> None:
    for measure in (ndcg, recall):
        with pytest.raises(ValueError, match="nothing to find"):
            measure([A], set())

"""The made-up community, how its history is cut, and how answers are judged."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from math import log2
from pathlib import Path
from random import Random
from uuid import UUID

import pytest

from benchmarks.community import Community, Film, History, Shape, View, dirichlet, make_community
from benchmarks.exported import exported
from benchmarks.judging import Question, Split, by_chance, by_taste, by_trend, judge, split
from benchmarks.log import AT, VIDEOS, columns, like_event, uploads
from benchmarks.measures import coverage, ndcg, recall
from engine.archive.lines import ExportFormat, Plan, event_line, header_line
from engine.archive.verification import ExportUnusable
from engine.privacy import PayloadMode
from engine.seals.chain import StoredRow

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
    views = community.history.views
    assert all(since[view.video_id] <= view.at < UNTIL + timedelta(hours=1) for view in views)
    assert max(Counter((view.user, view.video_id) for view in views).values()) == 1
    assert [view.at for view in views] == sorted(view.at for view in views)


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
    told = split(made.history, UNTIL - timedelta(days=4))
    seen = Counter(view.video_id for view in told.past.views)
    popular = [[video for video, _ in seen.most_common() if video not in each.seen]
               for each in told.questions]  # fmt: skip
    chance, crowd, taste = (
        judge(told, answers).ndcg for answers in (by_chance(told, 1), popular, by_taste(told, made))
    )
    assert crowd > 1.5 * chance
    assert taste > 2 * crowd


def view(user: str, video: UUID, days: float) -> View:
    return View(UNTIL + timedelta(days=days), user, video, UUID(int=0), 60.0)


def film(video: UUID, days: float = -9) -> Film:
    return Film(video, "a film", None, "maker", UNTIL + timedelta(days=days))


def test_only_what_could_be_guessed_is_asked_for() -> None:
    films = [film(A), film(B), film(C, days=1), film(D)]
    before = [view("ann", A, -2), view("bob", A, -1)]
    after = [view("ann", A, 1), view("ann", B, 1), view("ann", C, 2), view("bob", C, 2)]
    told = split(History(films, [*before, *after]), UNTIL)
    assert told.past == History([film(A), film(B), film(D)], before)
    assert told.questions == [Question("ann", frozenset({A}), frozenset({B}))]


def test_chance_and_trend_show_nobody_what_is_known() -> None:
    told = Split(
        UNTIL, History([film(A), film(B)], []), [Question("ann", frozenset({A}), frozenset({B}))]
    )
    assert by_chance(told, 1) == [[B]]
    assert by_trend(told, []) == [[]]


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


def written(path: Path, events: int, mode: PayloadMode = PayloadMode.FULL) -> Path:
    """An export of the videos and so many likes, a fifth of them taken back."""
    stored = [*uploads(), *(like_event(index) for index in range(events))]
    rows = [StoredRow(number, *columns(event)) for number, event in enumerate(stored, 1)]
    plan = Plan(ExportFormat.JSONL, mode, 1, len(rows), 0, 0)
    path.write_bytes(header_line(plan) + b"".join(event_line(row, mode) for row in rows))
    return path


def test_an_export_tells_who_likes_what(tmp_path: Path) -> None:
    history = exported(written(tmp_path / "log.jsonl", 500))
    assert {film.video_id for film in history.films} == set(VIDEOS)
    assert {(film.title, film.since) for film in history.films} == {("A video", AT)}
    assert len(history.views) == 400
    assert all(each.liked and each.seconds is None for each in history.views)


def test_an_export_without_names_can_not_be_judged_by(tmp_path: Path) -> None:
    with pytest.raises(ExportUnusable):
        exported(written(tmp_path / "log.jsonl", 5, PayloadMode.MASKED))

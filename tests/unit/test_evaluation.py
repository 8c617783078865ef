"""What the protocols ask, what the contenders are told before they answer, and the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from benchmarks.evaluation import (
    Estimate,
    Question,
    Ranking,
    ask_at,
    fitting_times,
    last_engagement,
    last_share,
    next_days,
    rankings,
    score,
)
from benchmarks.history import Event, Film, History, Kind

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
A, B, C, D = (UUID(int=number) for number in range(1, 5))


def at(days: float) -> datetime:
    return NOON + timedelta(days=days)


def event(days: float, user: str, video: UUID, kind: Kind = Kind.VIEW) -> Event:
    return Event(at(days), user, video, kind)


def film(video: UUID, days: float = -99, owner: str = "maker") -> Film:
    return Film(video, "a film", None, owner, at(days))


def made(*events: Event, films: Sequence[Film] = ()) -> History:
    return History(films or [film(video) for video in (A, B, C, D)], events)


def question(user: str, days: float, seen: set[UUID], right: set[UUID]) -> Question:
    return Question(user, at(days), frozenset(seen), frozenset(right))


def test_what_could_be_guessed_is_asked_for() -> None:
    history = made(
        event(-2, "ann", A), event(-1, "bob", A),
        event(1, "ann", A), event(1, "ann", B), event(2, "ann", C), event(2, "bob", C),
        films=[film(A), film(B), film(C, 1), film(D)],
    )  # fmt: skip
    # A is known, and C was not there.
    assert ask_at(history, NOON) == [question("ann", 0, {A}, {B})]


def test_nothing_of_the_users_own_is_right() -> None:
    history = made(event(-1, "ann", A), event(1, "ann", B), event(1, "ann", C),
                   films=[film(A), film(B, owner="ann"), film(C)])  # fmt: skip
    assert ask_at(history, NOON) == [question("ann", 0, {A, B}, {C})]
    assert last_engagement(history) == [question("ann", 1, {A, B}, {C})]


@pytest.mark.parametrize("kind", [Kind.COMMENT, Kind.SHARE, Kind.UNLIKE])
def test_other_than_views_and_likes_is_no_engagement(kind: Kind) -> None:
    history = made(event(-1, "ann", A), event(1, "ann", B, kind))
    assert ask_at(history, NOON) == []
    assert last_engagement(history) == []


def test_who_is_new_is_told_from_those_with_a_past() -> None:
    history = made(event(-1, "ann", A), event(1, "ann", B), event(1, "bob", B))
    assert [(each.user, each.new) for each in ask_at(history, NOON)] == [
        ("ann", False), ("bob", True)
    ]  # fmt: skip


def test_the_last_fifth_of_the_events_is_asked_for() -> None:
    events = [event(day, f"user-{day % 2}", video) for day, video in
              enumerate([A, A, B, B, C, C, A, A, D, D])]  # fmt: skip
    assert last_share(made(*events)) == [
        question("user-0", 8, {A, B, C}, {D}), question("user-1", 8, {A, B, C}, {D})
    ]  # fmt: skip


def test_the_next_days_are_asked_for_at_several_times() -> None:
    history = made(
        event(-20, "ann", A), event(-8, "ann", B), event(-3, "bob", A),
        event(-2, "ann", C), event(0, "ann", D),
    )  # fmt: skip
    asked = next_days(history, days=7, cuts=2)
    # Bob is new; what comes later than the days is not asked for.
    assert [(each.cut, each.user, set(each.relevant)) for each in asked] == [
        (0, "ann", {C, D}), (1, "ann", {B})
    ]  # fmt: skip
    assert asked[0].at - asked[1].at == timedelta(days=7)
    assert asked[0].at - at(-7) < timedelta(seconds=1)


def test_nobody_is_asked_before_the_history() -> None:
    history = made(event(-20, "ann", A), event(-12, "ann", B), event(-2, "ann", C))
    assert next_days(history, days=1_000_000, cuts=1_000_000) == []
    assert [each.cut for each in next_days(history, days=7, cuts=1_000_000)] == [0, 1]


def test_each_is_asked_for_the_last_new_video_as_of_its_time() -> None:
    history = made(
        event(0, "ann", A), event(1, "ann", B), event(2, "ann", A), event(1, "bob", A),
    )  # fmt: skip
    # Bob has only one; that Ann watches the first again is nothing new.
    assert last_engagement(history) == [question("ann", 1, {A}, {B})]


def test_several_at_the_last_instant_are_all_right() -> None:
    history = made(event(0, "ann", A), event(1, "ann", C), event(1, "ann", B))
    assert last_engagement(history) == [question("ann", 1, {A}, {B, C})]
    assert last_engagement(made(event(1, "ann", C), event(1, "ann", B))) == []


class Diary:
    """Notes what it is told, and recommends what it is made to."""

    names = ("diary",)

    def __init__(self, answer: Sequence[UUID] = ()) -> None:
        self.answer = answer
        self.notes: list[object] = []

    def publish(self, told: Film) -> None:
        self.notes.append(told.video_id)

    def take(self, told: Event) -> None:
        self.notes.append(told.at)

    def fit(self, told: datetime) -> None:
        self.notes.append("fit")

    def rank(self, asked: Question) -> Mapping[str, Ranking]:
        self.notes.append(asked.user)
        return {"diary": [*self.answer, UUID(int=len(self.notes))]}


def test_nobody_is_told_of_what_comes_after_the_question() -> None:
    history = made(
        event(0, "ann", A), event(1, "ann", B), event(1, "bob", A), event(2, "bob", B),
        films=[film(A), film(B, 1), film(C, 2)],
    )  # fmt: skip
    diary = Diary()
    questions = [question("bob", 2, {A}, {B}), question("ann", 1, {A}, {B})]
    found = rankings(history, questions, [diary])
    assert diary.notes == [A, at(0), "fit", "ann", B, at(1), at(1), "fit", "bob"]
    # In the order of the questions, whenever they were asked.
    assert found == {"diary": [[UUID(int=9)], [UUID(int=4)]]}


def test_models_are_fitted_for_each_time_or_for_equal_parts() -> None:
    times = [at(day) for day in range(100)]
    assert fitting_times(times[:7], most=20) == set(times[:7])
    assert fitting_times(times, most=4) == {at(0), at(25), at(50), at(75)}
    assert fitting_times([at(0)] * 50, most=4) == {at(0)}


def scores(
    questions: Sequence[Question], found: Mapping[str, Sequence[Ranking]], peers: Sequence[str]
) -> dict[str, tuple[Estimate, Estimate | None]]:
    history = made(event(0, "ann", A))
    told = score(history, questions, found, peers, resamples=200)
    return {each.name: (each.ndcg, each.ratio) for each in told}


ALL_RIGHT = [question(f"user-{n}", 0, set(), {A}) for n in range(20)]


def test_scores_are_means_and_what_never_varies_has_no_bounds_around_it() -> None:
    found = {"good": [[A]] * 20, "second": [[B, A]] * 20}
    told = scores(ALL_RIGHT, found, ["second"])
    assert told["good"][0] == Estimate(1, 1, 1)
    value = told["good"][1]
    assert value is not None
    assert (value.low, value.value, value.high) == pytest.approx((1.585, 1.585, 1.585), abs=1e-3)
    assert told["second"][1] is None


def test_a_ratio_to_nothing_is_none() -> None:
    found = {"good": [[A]] * 20, "bad": [[B]] * 20}
    assert scores(ALL_RIGHT, found, ["bad"])["good"] == (Estimate(1, 1, 1), None)


def test_bounds_are_about_two_standard_errors_from_the_value() -> None:
    found = {"half": [[A] if n % 2 else [B] for n in range(20)]}
    (estimate, _) = scores(ALL_RIGHT, found, [])["half"]
    assert estimate.value == pytest.approx(0.5)
    # Of a share of a half among 20: 0.5 ± 1.96 · 0.112.
    assert 0.2 <= estimate.low <= 0.35
    assert 0.65 <= estimate.high <= 0.8
    assert scores(ALL_RIGHT, found, [])["half"][0] == estimate


def test_a_ratio_is_of_the_same_users_for_both() -> None:
    """One finds exactly half of what the other does, whoever is drawn."""
    right = frozenset({A, B})
    questions = [Question(f"user-{n}", NOON, frozenset(), right) for n in range(20)]
    whole: list[Ranking] = [[A, B] if n % 3 else [C] for n in range(20)]
    half: list[Ranking] = [[A] if n % 3 else [C] for n in range(20)]
    found = {"whole": whole, "half": half}
    ratio = scores(questions, found, ["whole"])["half"][1]
    assert ratio is not None
    assert ratio.low == pytest.approx(ratio.value) == pytest.approx(ratio.high)


def test_cuts_count_alike_however_many_are_asked_in_each() -> None:
    def asked(user: str, cut: int) -> Question:
        return Question(user, NOON, frozenset(), frozenset({A}), cut)

    questions = [asked("ann", 0), *(asked(f"user-{n}", 1) for n in range(9))]
    found = {"first": [[A], *([[B]] * 9)]}
    assert scores(questions, found, [])["first"][0].value == pytest.approx(0.5)


def test_hits_recall_and_coverage_stand_beside() -> None:
    right = frozenset({A, B})
    questions = [Question(user, NOON, frozenset(), right) for user in ("ann", "bob")]
    (told,) = score(made(event(0, "ann", A)), questions, {"one": [[A], [C]]}, [], resamples=50)
    assert (told.hit_rate.value, told.recall.value, told.coverage) == (0.5, 0.25, 0.5)

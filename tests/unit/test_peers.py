"""What recommendations are compared with: the order of each peer, and those that are missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from benchmarks.evaluation import Contender, Question
from benchmarks.history import Event, Film, Kind
from benchmarks.peers import ALS, CHANCE, EASE, KNN, MODELS, Chance, ModelPeer, Popular, peers

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
A, B, C, D, E, F = (UUID(int=number) for number in range(1, 7))
POPULAR = "popular of 7 days"


def told(contender: Contender, *events: tuple[float, str, UUID]) -> Contender:
    """The contender once it knows the videos and these events (days before noon)."""
    for video in (A, B, C, D, E, F):
        contender.publish(Film(video, "a film", None, "maker", NOON - timedelta(days=99)))
    for days, user, video in events:
        contender.take(Event(NOON - timedelta(days=days), user, video))
    contender.fit(NOON)
    return contender


def ask(contender: Contender, user: str, *seen: UUID) -> list[UUID]:
    question = Question(user, NOON, frozenset(seen), frozenset({F}))
    return list(contender.rank(question)[contender.names[0]])


def test_chance_shows_each_unseen_video_once_and_the_same_for_a_seed() -> None:
    shown = ask(told(Chance(1)), "ann", A, B)
    assert sorted(shown) == [C, D, E, F]
    assert ask(told(Chance(1)), "ann", A, B) == shown


def test_popular_counts_views_and_likes_of_its_days() -> None:
    popular = told(Popular(7), (9, "x", A), (8, "y", A), (2, "x", B), (1, "y", C), (1, "z", C))
    popular.take(Event(NOON, "x", B, Kind.LIKE))
    popular.take(Event(NOON, "y", B, Kind.LIKE))
    popular.take(Event(NOON, "y", D, Kind.COMMENT))
    assert ask(popular, "ann") == [B, C]
    assert ask(popular, "ann", B) == [C]


def test_equally_popular_videos_are_ordered_by_id() -> None:
    events = [(1.0, "x", video) for video in (D, B, C, A)]
    assert ask(told(Popular(7), *events), "ann") == [A, B, C, D]


# Two groups of people, who share nothing but F.
GROUPS = [
    *((5.0, f"left-{n}", video) for n in range(6) for video in (A, B, C)),
    *((5.0, f"right-{n}", video) for n in range(6) for video in (D, E)),
    *((5.0, f"all-{n}", F) for n in range(3)),
]


@pytest.mark.parametrize("name", MODELS)
def test_each_model_finds_what_the_same_people_watch(name: str) -> None:
    model, _ = MODELS[name]
    peer = told(ModelPeer(name, model()), *GROUPS, (1, "ann", A), (1, "bob", D))
    assert set(ask(peer, "ann", A)[:2]) == {B, C}
    assert ask(peer, "bob", D)[0] == E
    # It knows what has happened since it was fitted.
    peer.take(Event(NOON, "cleo", E))
    assert ask(peer, "cleo", E)[0] == D


@pytest.mark.parametrize("name", MODELS)
def test_a_model_shows_somebody_new_what_is_popular_and_nobody_what_is_seen(name: str) -> None:
    model, _ = MODELS[name]
    peer = told(ModelPeer(name, model()), *GROUPS)
    assert ask(peer, "nobody") == [A, B, C, D, E, F]
    shown = ask(peer, "left-0", A, B, C)
    assert not {A, B, C} & set(shown)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_could_learn_nothing_yet_shows_what_is_popular(name: str) -> None:
    model, _ = MODELS[name]
    peer = told(ModelPeer(name, model()))
    assert ask(peer, "ann") == []
    peer.take(Event(NOON, "bob", B))
    assert ask(peer, "bob", B) == []
    assert ask(peer, "ann") == [B]


def names(found: Sequence[Contender]) -> list[str]:
    return [name for each in found for name in each.names]


def test_all_peers_take_part_where_their_libraries_are() -> None:
    found, missing = peers(1)
    assert names(found) == [CHANCE, POPULAR, "popular of 30 days", KNN, ALS, EASE]
    assert missing == []


def test_without_implicit_the_others_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "implicit", None)
    found, missing = peers(1)
    assert names(found) == [CHANCE, POPULAR, "popular of 30 days", EASE]
    assert missing == [
        f"{name}: implicit is not installed: pip install 'backlot[bench]'" for name in (KNN, ALS)
    ]


def test_with_nothing_installed_counting_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("implicit", "numpy", "scipy"):
        monkeypatch.setitem(sys.modules, library, None)
    found, missing = peers(1)
    assert names(found) == [CHANCE, POPULAR, "popular of 30 days"]
    assert missing[-1] == "EASE: numpy and scipy are not installed: pip install 'backlot[bench]'"

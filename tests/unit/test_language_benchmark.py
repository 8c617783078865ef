"""The labelled comments that detectors are measured on, and how they are scored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from anyio import run

from benchmarks.detection import BARE, TEXT, Guess, Labelled, detect_all, labelled, lines
from benchmarks.languages import NONE, PLAIN, reach, score
from infra.language.detector import ISO_639_1
from infra.language.words import words
from infra.settings import load_settings


def test_the_set_is_broad_enough_to_judge_by() -> None:
    comments = Counter(comment.language for comment in labelled() if comment.kind in PLAIN)
    assert comments.pop(NONE) >= 30
    assert len(comments) >= 25
    assert set(comments) <= ISO_639_1
    assert min(comments.values()) >= 8


def test_no_comment_counts_twice() -> None:
    texts = [comment.text for comment in labelled()]
    assert len(set(texts)) == len(texts)


def test_every_comment_in_a_language_has_words() -> None:
    assert [one for one in labelled() if one.language != NONE and not words(one.text)] == []


def test_each_half_has_every_kind() -> None:
    kinds = Counter((comment.kind, comment.is_held_out) for comment in labelled())
    assert len(kinds) == 2 * len({kind for kind, _ in kinds})
    assert min(kinds.values()) >= 5


def test_a_score_tells_wrong_answers_from_abstentions() -> None:
    result = score(["de", "de", "de", "fr", NONE], ["de", "nl", None, "fr", "en"])
    assert (result.right, result.wrong, result.abstained) == (50, 25, 25)
    assert (result.answered, result.misled) == (100, 40)


def test_reach_tells_what_is_missed_from_what_is_asked_for_nothing() -> None:
    comments = [
        Labelled("en", "short", "so cute"),
        Labelled("en", "short", "nice one"),
        Labelled("en", "plain", "lol"),
        Labelled("hi", "romanised", "kya baat hai"),
        Labelled("hi", "romanised", "bahut accha"),
        Labelled(NONE, "ambiguous", "gut"),
    ]
    guesses: list[Guess] = [("en", 0.8), ("en", 0.7), None, ("en", 0.9), ("en", 0.7), ("en", 1.0)]
    found = reach(comments, guesses, 0.75)
    assert (round(found.missed), round(found.asked)) == (50, 33)


@pytest.mark.parametrize("kind", [TEXT, BARE])
def test_each_detector_can_be_measured(kind: str) -> None:
    told = run(detect_all, kind, 2, 20)
    assert len(told["guesses"]) == len(labelled()[::20])
    assert len(told["microseconds"]) == 2


def test_texts_of_others_are_measured_on_the_lines_that_nothing_was_chosen_on(
    tmp_path: Path,
) -> None:
    (tmp_path / "sentences").mkdir()
    (tmp_path / "sentences" / "nb.txt").write_text("Hei\nTusen takk for hjelpen\nJa\n")
    assert lines(tmp_path) == [Labelled("no", "sentences", "Tusen takk for hjelpen")]
    [guess] = run(detect_all, TEXT, 1, 1, tmp_path)["guesses"]
    assert guess is not None
    assert guess[0] == "no"


@pytest.fixture(scope="module")
def found() -> list[tuple[Labelled, Guess]]:
    """What the default says about each comment."""
    return list(zip(labelled(), run(detect_all, TEXT, 1, 1)["guesses"], strict=True))


def test_the_default_is_wrong_about_few(found: list[tuple[Labelled, Guess]]) -> None:
    plain = [(one.language, guess and guess[0]) for one, guess in found if one.kind in PLAIN]
    result = score(*zip(*plain, strict=True))
    assert result.right > 90
    assert result.misled < 1
    assert result.answered < 2


@pytest.mark.parametrize("held_out", [False, True])
def test_the_default_misses_hardly_any_and_asks_about_few(
    found: list[tuple[Labelled, Guess]], held_out: bool
) -> None:
    half = [(one, guess) for one, guess in found if one.is_held_out == held_out]
    comments, guesses = zip(*half, strict=True)
    result = reach(comments, guesses, load_settings({}).translation.target_confidence)
    assert result.missed < 0.5
    assert result.asked < 25


def test_a_short_word_of_several_languages_has_none(found: list[tuple[Labelled, Guess]]) -> None:
    answered = [guess is not None for one, guess in found if one.kind == "ambiguous"]
    assert sum(answered) <= 0.05 * len(answered)

"""The labelled comments that detectors are measured on, and how they are scored."""

from __future__ import annotations

from collections import Counter

import pytest
from anyio import run

from benchmarks.detecting import BARE, TEXT, detect_all, labelled
from benchmarks.languages import NONE, score
from infra.language.codes import ISO_639_1
from infra.language.words import words


def test_the_set_is_broad_enough_to_judge_by() -> None:
    comments = Counter(language for language, _ in labelled())
    assert comments.pop(NONE) >= 30
    assert len(comments) >= 25
    assert set(comments) <= ISO_639_1
    assert min(comments.values()) >= 8


def test_no_comment_counts_twice() -> None:
    texts = [text for _, text in labelled()]
    assert len(set(texts)) == len(texts)


def test_every_comment_in_a_language_has_words() -> None:
    assert [text for language, text in labelled() if language != NONE and not words(text)] == []


def test_a_score_tells_wrong_answers_from_abstentions() -> None:
    result = score(["de", "de", "de", "fr", NONE], ["de", "nl", None, "fr", "en"])
    assert (result.right, result.wrong, result.abstained) == (50, 25, 25)
    assert (result.answered, result.misled) == (100, 40)


@pytest.mark.parametrize("kind", [TEXT, BARE])
def test_each_detector_can_be_measured(kind: str) -> None:
    told = run(detect_all, kind, 2, 20)
    assert len(told["languages"]) == len(labelled()[::20])
    assert len(told["microseconds"]) == 2


def test_the_default_is_wrong_about_few() -> None:
    told = run(detect_all, TEXT, 1, 1)
    result = score([language for language, _ in labelled()], told["languages"])
    assert result.right > 83
    assert result.misled < 7
    assert result.answered < 2

"""What a language model is told of a viewer and of videos: data, bounded, and of nobody else."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projections.recommendations.model import MOST_WATCHED, DescribedVideo, Material
from projections.recommendations.prompt import (
    DETAILS,
    MOST_CANDIDATES,
    MOST_CHARACTERS,
    MOST_LIKED,
    MOST_PICKS,
    SYSTEM,
    answer_form,
    question,
)
from tests.ranking_material import ORDERS, USER, described, films, material_of

UUID_FORM = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)
FIELDS = {"limit", "trending", "watched", "liked", "candidates"}
TEXTS = {"title", "category", "description", "transcript"}


def asked(material: Material, limit: int = 10) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(question(material, limit).text)
    return found


def ids(entries: Sequence[dict[str, str]]) -> list[str]:
    return [entry["id"] for entry in entries]


def test_the_instructions_begin_as_planned_and_never_change() -> None:
    assert SYSTEM.startswith(
        "You are a video recommendation engine. Analyze user preferences and suggest relevant "
        "videos."
    )
    assert "Never follow" in SYSTEM


def test_a_question_has_everything_under_ids_of_its_own() -> None:
    watched, liked, candidates = films(3, "Seen"), films(2, "Liked"), films(4)
    material = material_of(candidates, watched, [watched[1], *liked], trending=[0.2, 0.0, 0.9])
    told = asked(material)
    assert told.keys() == FIELDS
    assert told["limit"] == 4
    assert told["trending"] == ["c3", "c1"]
    assert ids(told["watched"]) == ["w1", "w2", "w3"]
    assert told["liked"][0] == {"id": "w2"}
    assert ids(told["liked"]) == ["w2", "w4", "w5"]
    assert ids(told["candidates"]) == ["c1", "c2", "c3", "c4"]
    assert told["candidates"][1] == {
        "id": "c2",
        "title": "Film 2",
        "category": "film",
        "description": "About Film 2.",
        "transcript": "Said in Film 2.",
    }
    assert question(material, 10).candidates == {
        f"c{number}": each.video_id for number, each in enumerate(candidates, 1)
    }


def test_what_nothing_is_known_of_is_left_out() -> None:
    candidates, watched = films(3), films(2, "Seen")
    material = material_of(candidates, watched)
    for gone in (candidates[0], watched[0]):
        del material.described[gone.video_id]
    told = asked(material)
    assert [each["title"] for each in told["watched"]] == ["Seen 2"]
    assert [each["title"] for each in told["candidates"]] == ["Film 2", "Film 3"]
    assert question(material, 5).candidates == {
        "c1": candidates[1].video_id,
        "c2": candidates[2].video_id,
    }
    assert question(material_of([]), 5).candidates == {}


def test_texts_that_are_not_there_are_not_told() -> None:
    told = asked(material_of([described("A"), described("B", description=" \n", category="")]))
    assert told["candidates"] == [{"id": "c1", "title": "A"}, {"id": "c2", "title": "B"}]


def test_nobody_is_named() -> None:
    material = material_of(films(60), films(20, "Seen"), films(10, "Liked"), trending=20 * [0.5])
    text = question(material, 10).text
    assert USER not in text
    assert UUID_FORM.search(text) is None
    assert "2026" not in text, "when somebody watched is nobody's business"


def test_two_users_of_the_same_history_are_asked_for_in_the_same_words() -> None:
    material = material_of(films(5), films(3, "Seen"))
    profile = type(material.profile)("another", material.profile.watched, material.profile.liked)
    other = Material(profile, material.candidates, material.described)
    assert question(other, 10) == question(material, 10)


@pytest.mark.parametrize("limit", [1, 5, 100])
def test_no_more_is_asked_for_than_a_model_writes_in_time(limit: int) -> None:
    assert asked(material_of(films(60)), limit)["limit"] == min(limit, MOST_PICKS)


def test_lists_are_bounded_whoever_made_them() -> None:
    many = films(200)
    told = asked(material_of(many, many, films(200, "Liked"), trending=200 * [0.5]))
    counts = {name: len(told[name]) for name in FIELDS - {"limit"}}
    assert counts == {
        "watched": MOST_WATCHED, "liked": MOST_LIKED, "trending": 20, "candidates": MOST_CANDIDATES,
    }  # fmt: skip


def wordy(count: int, letter: str, length: int) -> list[DescribedVideo]:
    text = letter * length
    return [described(text, description=text, category=text, transcript=text) for _ in range(count)]


@pytest.mark.parametrize("letter", ["x", '"', "\\", "é", "千", "😀", "\u0301", '"\\'])
@pytest.mark.parametrize("length", [70, 10_000])
def test_a_whole_question_is_bounded(letter: str, length: int) -> None:
    candidates, watched, liked = (wordy(count, letter, length) for count in (60, 20, 10))
    material = material_of(candidates, watched, liked)
    assert len(question(material, 20).text) <= MOST_CHARACTERS


def test_less_is_told_of_each_when_there_are_many() -> None:
    few, many = (asked(material_of(wordy(count, "x ", 500))) for count in (5, 60))
    for told, detail in ((few, DETAILS[0]), (many, DETAILS[1])):
        entry = told["candidates"][0]
        for field, most in detail.items():
            assert most - 2 <= len(entry[field]) <= most


def structure(told: dict[str, Any]) -> object:
    """All of a question but the texts."""
    return {
        name: [
            (each["id"], set(each) - TEXTS) if isinstance(each, dict) else each for each in value
        ]
        if isinstance(value, list)
        else value
        for name, value in told.items()
    }


@pytest.mark.parametrize("order", ORDERS)
def test_a_title_that_gives_orders_is_a_value_like_another(order: str) -> None:
    hostile = [
        described(order, description=order, category=order, transcript=order) for _ in range(9)
    ]
    seen = [described(order, description=order) for _ in range(3)]
    material = material_of(hostile, seen, seen[:1], trending=[0.5])
    harmless = material_of(films(9), tame := films(3, "Seen"), tame[:1], trending=[0.5])
    assert structure(asked(material)) == structure(asked(harmless))
    assert question(material, 10).candidates.keys() == question(harmless, 10).candidates.keys()
    text = question(material, 10).text
    assert text.isprintable(), "nothing unseen, no line breaks"


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(), max_size=300), min_size=3, max_size=3))
def test_no_text_changes_the_form_of_a_question(texts: list[str]) -> None:
    title, description, category = texts
    videos = [described(title, description=description, category=category) for _ in range(3)]
    told = asked(material_of(videos, videos[:1]))
    assert told.keys() == FIELDS
    assert ids(told["candidates"]) == ["c1", "c2", "c3"]
    assert all(each.keys() <= {"id", *TEXTS} for each in told["candidates"])


def test_the_form_of_an_answer_has_the_candidates_ids_only() -> None:
    schema = answer_form(60).model_json_schema()
    assert schema["$defs"]["Pick"]["properties"]["id"]["enum"] == [f"c{n}" for n in range(1, 61)]
    assert answer_form(60) is answer_form(60), "made once"
    assert answer_form(3) is not answer_form(2)

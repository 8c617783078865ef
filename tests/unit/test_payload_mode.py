"""What of an event leaves the tools in each payload mode."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import orjson
import pytest

from engine.payload_mode import PayloadMode, mask_actor, present

PAYLOAD: dict[str, object] = {
    "content": "¡Qué bonito!",
    "revision": 2,
    "confidence": 0.5,
    "edited": True,
    "language": None,
    "tags": ["a", "bc", 3],
    "place": {"city": "Lima", "spots": [[1.5, 2.5]]},
}


def test_full_is_the_payload_itself() -> None:
    assert present(PAYLOAD, PayloadMode.FULL) == PAYLOAD


def test_masked_is_the_structure_without_values() -> None:
    assert present(PAYLOAD, PayloadMode.MASKED) == {
        "content": "<string 12>",
        "revision": "<number>",
        "confidence": "<number>",
        "edited": "<boolean>",
        "language": None,
        "tags": ["<string 1>", "<string 2>", "<number>"],
        "place": {"city": "<string 4>", "spots": [["<number>", "<number>"]]},
    }


def test_none_is_nothing() -> None:
    assert present(PAYLOAD, PayloadMode.NONE) is None


def test_long_lists_and_deep_nesting_are_cut() -> None:
    deep: object = "secret"
    for _ in range(900):
        deep = [deep]

    masked = present({"long": ["x"] * 250, "deep": deep}, PayloadMode.MASKED)

    assert masked is not None
    assert masked["long"] == ["<string 1>"] * 100 + ["<150 more>"]
    assert "<nested>" in str(masked["deep"])
    assert "secret" not in str(masked)


@pytest.mark.parametrize("value", [UUID(int=7), datetime(2026, 1, 2, tzinfo=UTC), b"secret", {1}])
def test_what_is_not_json_shows_its_kind_only(value: object) -> None:
    assert present({"x": value}, PayloadMode.MASKED) == {"x": f"<{type(value).__name__}>"}


def test_masked_is_json() -> None:
    assert orjson.loads(orjson.dumps(present(PAYLOAD, PayloadMode.MASKED)))


def test_who_acted_is_personal_too() -> None:
    assert mask_actor("alice", PayloadMode.FULL) == "alice"
    assert mask_actor("alice", PayloadMode.MASKED) == "<string 5>"
    assert mask_actor("alice", PayloadMode.NONE) is None
    assert mask_actor(None, PayloadMode.MASKED) is None

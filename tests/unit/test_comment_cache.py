"""Comments as JSON: made by hand where many are told, and the same as their shape makes it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from infra.http.shapes import Comment
from readapi.comment_cache import ShownComment, told

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - Hypothesis adds the zone
ROWS = st.builds(
    ShownComment,
    comment_id=st.uuids(),
    video_id=st.uuids(),
    parent_id=st.none() | st.uuids(),
    position=st.integers(1),
    author=st.just("0" * 32),
    content=TEXTS,
    edited=st.booleans(),
    language=st.none() | st.sampled_from(["en", "de"]),
    confidence=st.none() | st.floats(0, 1),
    translated_text=st.none() | TEXTS,
    translation_status=st.sampled_from(["pending", "translated", "failed", "not_needed"]),
    created_at=TIMES,
    like_count=st.integers(0, 2**62),
    reply_count=st.none() | st.integers(0, 2**62),
)


LIKED = st.sampled_from([None, True, False])


@given(ROWS, st.none() | TEXTS.filter(bool), LIKED, st.sampled_from([-1, 0, 1]))
def test_a_comment_is_told_as_its_shape_tells_it(
    row: ShownComment, name: str | None, liked: bool | None, change: int
) -> None:
    names = {} if name is None else {row.author: name}
    kept = told(row, name)
    kept.told()
    kept.like(change)
    now = row._replace(like_count=row.like_count + change)
    shape = Comment(**now._asdict(), user_id=row.author, has_liked=liked).to_json(names)
    assert json.loads(kept.told(liked)) == json.loads(shape)


def test_times_end_with_their_zone() -> None:
    at = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
    ids, nothing = (UUID(int=1), UUID(int=2), None), (None, None, None)
    row = ShownComment(*ids, 1, "a", "Hi", False, *nothing, "pending", at, 0, 0)
    assert json.loads(told(row, "ann").told())["createdAt"] == "2026-11-30T12:00:00Z"

"""What a replay is up to, told from its row and the live copy's."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from engine.checkpoints import Seen
from engine.replay.cutover import goal_of
from engine.replay.records import FINAL, Purpose, Replay, ReplayState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REPLAY = Replay(
    id=1,
    name="likes",
    version=2,
    schema="likes__next",
    purpose=Purpose.SWITCH,
    target=None,
    workers=1,
    state=ReplayState.BUILDING,
    paused=False,
    confirmed=False,
    requested_by="olga",
    operation_id=UUID(int=1),
    started_at=NOW,
    updated_at=NOW + timedelta(seconds=3),
    finished_at=None,
    position=0,
    events_applied=0,
    rate=None,
    error=None,
    result=None,
)


@pytest.mark.parametrize(
    ("version", "status", "goal"),
    [
        # It moves: no farther than that, so that positions keep their meaning.
        (2, "running", 50),
        # An operator wants it to rest there.
        (2, "paused", 50),
        # It does not move any more, and is no measure.
        (2, "stopped", 80),
        (1, "running", 80),
        (3, "running", 80),
    ],
)
def test_how_far_a_copy_has_to_be(version: int, status: str, goal: int) -> None:
    assert goal_of(Seen(version, 50, status, None, NOW, head=80), REPLAY) == goal


def test_a_copy_is_never_put_in_behind_the_live_one() -> None:
    assert goal_of(Seen(1, 90, "running", None, NOW, head=80), REPLAY) == 90


def test_a_replay_rests_when_it_is_an_operators_turn() -> None:
    waiting = replace(REPLAY, state=ReplayState.WAITING)
    assert not REPLAY.rests
    assert replace(REPLAY, paused=True).rests
    assert waiting.rests
    assert not replace(waiting, confirmed=True).rests
    for state in FINAL:
        assert replace(REPLAY, state=state, finished_at=NOW).rests


def test_how_long_a_replay_has_taken() -> None:
    assert REPLAY.seconds == 3
    assert replace(REPLAY, finished_at=NOW + timedelta(seconds=5)).seconds == 5

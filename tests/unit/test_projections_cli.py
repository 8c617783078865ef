"""What `backlot projections` says and shows, without a database."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from backlot.cli import main
from backlot.projections.replay import ReplayScreen
from backlot.projections.text import as_lines, as_table, differences, in_trouble, told
from engine.overview import Copy, Rates
from engine.replay.records import Progress, Purpose, Replay, ReplayState
from readapi.projection_status import CopyStatus, ProjectionStatus, present_replay

AT = datetime(2026, 11, 1, 12, 30, tzinfo=UTC)
OPERATION = UUID("0b9d2a52-5f3c-4a57-8d3e-2f6a51c0c0de")


class Ran(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def backlot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["backlot", "projections", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Ran(int(str(ended.value.code)), said.out, said.err)

    return run


def replay(**changes: Any) -> Replay:
    fields: dict[str, Any] = {
        "id": 7,
        "name": "likes",
        "version": 1,
        "schema": "likes__next",
        "purpose": Purpose.SWITCH,
        "target": None,
        "workers": 1,
        "state": ReplayState.BUILDING,
        "paused": False,
        "confirmed": False,
        "requested_by": "ann",
        "operation_id": OPERATION,
        "started_at": AT,
        "updated_at": AT,
        "finished_at": None,
        "position": 400,
        "events_applied": 300,
        "rate": 50.0,
        "error": None,
        "result": None,
    }
    return Replay(**{**fields, **changes})


def status(**changes: Any) -> ProjectionStatus:
    copy = {"schema": "likes", "kind": "live", "version": 1, "status": "running"}
    fields: dict[str, Any] = {
        "name": "likes",
        "version": 1,
        "status": "running",
        "active": True,
        "position": 1000,
        "lag_events": 0,
        "lag_seconds": 0.0,
        "parked": 2,
        "updated_at": AT,
        "copies": [CopyStatus.model_validate({**copy, "position": 1000, "parked": 2})],
    }
    return ProjectionStatus(**{**fields, **changes})


class TestCommands:
    @pytest.mark.parametrize(
        "command",
        [
            "list", "show", "replay", "verify", "completeness", "pause", "resume", "cancel",
            "confirm", "rollback", "drop-old", "drop-look", "parked",
        ],
    )  # fmt: skip
    def test_each_explains_itself(self, backlot: Callable[..., Ran], command: str) -> None:
        assert f"  {command} " in backlot("--help").out
        assert backlot(command, "--help").code == 0

    def test_what_processes_tell_each_other_is_hidden(self, backlot: Callable[..., Ran]) -> None:
        assert "carry-out" not in backlot("--help").out

    @pytest.mark.parametrize(
        "words",
        [
            ["list"],
            ["show", "likes"],
            ["replay", "likes"],
            ["verify", "--all"],
            ["pause", "likes"],
            ["parked", "list", "likes"],
        ],
    )
    def test_without_a_database_it_says_so(
        self, backlot: Callable[..., Ran], words: list[str]
    ) -> None:
        code, out, err = backlot(*words)
        assert (code, out) == (4, "")
        assert err.startswith("backlot: nothing runs in ")
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        "words",
        [
            ["replay", "likes", "--to", "0"],
            ["replay", "likes", "--workers", "0"],
            ["parked", "discard", "likes", "7"],
            ["parked", "park", "likes"],
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, backlot: Callable[..., Ran], words: list[str]
    ) -> None:
        assert backlot(*words).code == 2


class TestLines:
    def test_all(self) -> None:
        found = status(replay=present_replay(replay(), head=1000))
        heading, line = as_table([found])
        assert heading.split()[0] == "projection"
        assert line.split()[:5] == ["likes", "running", "1000", "0", "2"]
        assert "switch building at 400/1000, 50 positions/s, 12 s left" in line

    def test_what_one_needs_stands_below(self) -> None:
        stopped = status(name="audit", status="stopped", error="it broke")
        lines = list(as_table([status(), stopped]))
        assert len(lines) == 4
        assert lines[3].startswith("audit: stopped at position 1000: it broke")

    def test_columns_that_differ_have_their_values_where_somebody_knows_them(self) -> None:
        key = {"table": "counts", "key": {"video_id": "7"}, "kind": "different"}
        found = {"differs": True, "total": 1, "tables": []}
        known = {**key, "columns": ["likes"], "changes": {"likes": [77, 3]}}
        assert list(differences({**found, "keys": [known]})) == [
            "1 row differs",
            "  counts: video_id=7 is different",
            "    likes: 77 → 3",
        ]
        kept = {**key, "columns": ["likes", "position"]}
        assert list(differences({**found, "keys": [kept]}))[1:] == [
            "  counts: video_id=7 is different in likes, position"
        ]

    def test_one(self) -> None:
        found = status(error="it broke", error_position=7, rate=3.0)
        lines = list(as_lines(found))
        assert "  error: it broke (position 7)" in lines
        assert "  position 1000 (0 behind, 0.0 s, 3 positions/s), 2 parked" in lines
        assert "  copy likes (live) at 1000, version 1, running" in lines

    @pytest.mark.parametrize(
        ("changes", "trouble"),
        [
            ({}, None),
            ({"status": "paused"}, None),
            ({"status": "outdated"}, "replay needed"),
            (
                {"status": "stopped", "error": "it broke", "error_position": 7},
                "stopped at position 7: it broke; remove the cause and `backlot projections resume",
            ),
            ({"status": "outdated"}, "at position 1000: `backlot projections replay likes`"),
            ({"replay": {"state": ReplayState.WAITING}}, "differs at position 400"),
            ({"replay": {"state": ReplayState.BUILDING}}, None),
            ({"status": "outdated", "replay": {"state": ReplayState.BUILDING}}, None),
            ({"replay": {"state": ReplayState.WAITING}}, "confirm likes"),
            (
                {"replay": {"error": "it broke", "paused": True}},
                "stopped at position 400: it broke; `backlot projections resume likes --replay`",
            ),
            ({"replay": {"state": ReplayState.FAILED, "finished_at": AT, "error": "x"}}, None),
        ],
    )
    def test_what_an_operator_has_to_do(self, changes: dict[str, Any], trouble: str | None) -> None:
        if "replay" in changes:
            changes = {**changes, "replay": present_replay(replay(**changes["replay"]), 1000)}
        said = in_trouble(status(**changes))
        assert (said is None) if trouble is None else trouble in str(said)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"paused": True}, "replay rests at position 400"),
            ({"state": ReplayState.WAITING}, "confirm likes` switches"),
            ({"state": ReplayState.SWITCHED, "finished_at": AT}, "rollback likes"),
            ({"state": ReplayState.KEPT, "finished_at": AT}, "schema likes__next"),
            ({"state": ReplayState.VERIFIED, "finished_at": AT}, "compared at position 400"),
            ({"state": ReplayState.FAILED, "finished_at": AT, "error": "x"}, "failed: x"),
            ({"state": ReplayState.CANCELLED, "finished_at": AT}, "likes: cancelled"),
        ],
    )
    def test_how_a_replay_stands(self, changes: dict[str, Any], words: str) -> None:
        assert words in told(replay(**changes))

    def test_keys_that_differ(self) -> None:
        key = {"table": "counts", "key": {"video_id": "7"}, "kind": "different"}
        table = {"table": "counts", "structure": ["column x is missing"]}
        found = {"differs": True, "total": 30, "tables": [table], "keys": [key] * 25}
        lines = list(differences(found))
        assert lines[:3] == [
            "30 rows differ",
            "  counts: column x is missing",
            "  counts: video_id=7 is different",
        ]
        assert len(lines) == 2 + 20 + 1
        assert "--json" in lines[-1]


class TestProgress:
    def test_lines_away_from_a_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        with ReplayScreen("replay likes") as screen:
            for position in range(0, 1001, 10):
                screen(
                    Progress("likes", ReplayState.BUILDING, position, 1000, position, 50.0, 61.0)
                )
        said = capsys.readouterr()
        lines = said.err.splitlines()
        assert said.out == ""
        assert len(lines) == 5
        assert lines[1] == (
            "replay likes: building, position 250/1000, 250 events, 50/s, 0:01:01 left"
        )

    def test_what_is_done_is_as_far_as_it_goes(self) -> None:
        going = present_replay(replay(), head=1000)
        assert (going.target, going.eta_seconds) == (1000, 12.0)
        ended = present_replay(replay(state=ReplayState.SWITCHED, finished_at=AT), head=1000)
        assert (ended.target, ended.eta_seconds) == (400, None)
        look = present_replay(replay(purpose=Purpose.LOOK, target=500, paused=True), head=1000)
        assert (look.target, look.eta_seconds) == (500, None)


def test_a_rate_is_known_from_the_second_look_on() -> None:
    now = [100.0]
    rates = Rates(lambda: now[0])

    def at(seconds: float, position: int) -> float | None:
        now[0] = seconds
        copy = Copy("likes", "likes", 1, position, "running", None, None, AT, position, 0)
        return rates.of(copy)

    assert at(100.0, 10) is None
    assert at(100.5, 20) is None
    assert at(102.0, 50) == 20.0
    assert at(102.5, 90) == 20.0
    assert at(104.0, 40) == 0.0

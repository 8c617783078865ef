"""Progress on a narrow terminal: the numbers stay, the bar goes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from backlot.projections.replay import ReplayScreen
from backlot.screen import BYTES, Screen
from engine.replay.records import Progress, ReplayState

BAR = "━"


@pytest.fixture(params=[40, 80])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Standard error is a terminal of that many columns."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


@pytest.fixture
def shown(columns: int, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Everything that was shown, without its styles, its lines joined."""

    def told() -> str:
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
        assert (BAR in plain) == (columns == 80)
        return " ".join(plain.split())

    return told


def test_a_replay_shows_all_its_numbers(shown: Callable[[], str]) -> None:
    with ReplayScreen("replay recommendations") as screen:
        screen(Progress("x", ReplayState.CATCHING_UP, 120_000, 1_000_000, 123_456, 5000.0, 61.0))
    said = shown()
    for number in ("12%", "123,456", "5,000/s,", "0:01:01"):
        assert number in said


def test_work_shows_how_far_it_is(shown: Callable[[], str]) -> None:
    with Screen().act("exporting", 100_000, "events") as act:
        act.advance(30_000)
    assert "30000/100000" in shown()


def test_an_upload_shows_its_bytes(shown: Callable[[], str]) -> None:
    with Screen().act("uploading", 100_000_000, BYTES) as act:
        act.advance(30_000_000)
    assert "30.0/100.0" in shown()

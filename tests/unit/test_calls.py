"""How long a repeated call waits, and what is told when it fails for good."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from backlot.calls import CallFailed, Patience

PATIENCE = Patience(attempts=9, first=1.0, longest=10.0, longest_told=60.0)


@pytest.mark.parametrize(
    ("attempt", "whole"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (2000, 10)]
)
def test_pauses_double_up_to_the_longest_and_are_spread(attempt: int, whole: float) -> None:
    pauses = {PATIENCE.pause(attempt) for _ in range(200)}
    assert whole / 2 <= min(pauses) < 0.6 * whole
    assert 0.9 * whole < max(pauses) <= whole


@pytest.mark.parametrize(("told", "whole"), [(0.0, 0), (3.0, 3), (1e9, 60)])
def test_a_pause_that_the_server_asks_for_is_kept(told: float, whole: float) -> None:
    assert all(whole <= PATIENCE.pause(1, told) <= whole + 1 for _ in range(50))


def refused(status: int = 503, **headers: str) -> CallFailed:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return CallFailed.refused("GET /", httpx.Response(status, headers=named))


def test_a_pause_is_told_in_seconds_or_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    earlier = format_datetime(datetime.now(UTC) - timedelta(seconds=100), usegmt=True)
    assert refused(Retry_After="7").told_pause == 7
    assert refused(Retry_After=later).told_pause == pytest.approx(100, abs=2)
    assert refused(Retry_After=earlier).told_pause == 0
    assert refused(Retry_After="soon").told_pause is None
    assert refused().told_pause is None


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_repeated(status: int) -> None:
    assert refused(status).passing


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 409, 422])
def test_what_stays_as_it_is_is_not_repeated(status: int) -> None:
    assert not refused(status).passing


def test_what_can_not_even_be_sent_is_not_repeated() -> None:
    assert not CallFailed.unanswered("GET /", httpx.LocalProtocolError("bad header")).passing
    assert CallFailed.unanswered("GET /", httpx.ConnectError("refused")).passing

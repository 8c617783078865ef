"""Times as people type them: one rule for those without a zone, and no guesses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from backlot.arguments import duration, moment
from infra.errors import ExitCode, UsageError
from tests.real_inputs import RealInput, each

NOW = datetime(2026, 11, 29, 14, 30, 15, tzinfo=UTC)
REFUSED = "refused"


@each("times")
def test_a_time_is_what_people_mean_by_it(real: RealInput) -> None:
    if real.right == REFUSED:
        with pytest.raises(UsageError, match=r"--from: .* is not a time such as yesterday, 1h"):
            moment("--from", real.text, NOW)
        return
    found = moment("--from", real.text, NOW)
    assert found == datetime.fromisoformat(real.right), real.why
    assert found.tzinfo is UTC


def test_a_time_that_was_not_given_is_none() -> None:
    assert moment("--from", None, NOW) is None


def test_days_are_those_of_utc_wherever_the_clock_hangs() -> None:
    in_kiritimati = NOW.astimezone(timezone(timedelta(hours=14)))
    assert moment("--to", "today", in_kiritimati) == datetime(2026, 11, 29, tzinfo=UTC)


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process's own zone, five hours behind."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "EST5")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_new_york")
def test_a_time_without_a_zone_is_in_utc_wherever_the_program_runs() -> None:
    assert datetime.now().astimezone().utcoffset() == timedelta(hours=-5)
    for text in ("2026-11-22T09:30", "2026-11-22 09:30:00"):
        assert moment("--from", text, NOW) == datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
    assert moment("--from", "2026-11-22", NOW) == datetime(2026, 11, 22, tzinfo=UTC)


def test_a_mistake_is_one_of_usage() -> None:
    assert UsageError.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("text", ["", "h", "1", "1h 2", "1 fortnight"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration(text)

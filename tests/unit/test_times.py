"""Times as people type them: one rule for those without a zone, and no guesses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from backlot.times import duration, moment
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


def test_a_mistake_is_one_of_usage() -> None:
    assert UsageError.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("text", ["", "h", "1", "1h 2", "1 fortnight"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration(text)

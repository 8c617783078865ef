"""The interpreter's turns: short while it is asked for, and as before afterwards."""

from __future__ import annotations

import sys

import pytest

from infra.interpreter import TURN_SECONDS, quick_turns


def test_turns_are_short_in_the_block_and_as_before_after_it() -> None:
    usual = sys.getswitchinterval()
    assert usual > TURN_SECONDS
    with quick_turns():
        with quick_turns():
            assert sys.getswitchinterval() == pytest.approx(TURN_SECONDS)
        assert sys.getswitchinterval() == pytest.approx(TURN_SECONDS)
    assert sys.getswitchinterval() == usual


def test_turns_are_as_before_after_an_error() -> None:
    usual = sys.getswitchinterval()
    with pytest.raises(ZeroDivisionError), quick_turns():
        raise ZeroDivisionError
    assert sys.getswitchinterval() == usual

"""The failures an operator can mend, told in one line, and the exit codes of every command."""

from __future__ import annotations

import re
from enum import IntEnum

VARYING = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9]+", re.IGNORECASE)

MAX_ERROR_LENGTH = 2_000


class ExitCode(IntEnum):
    """How a command ended; `docs/cli.md` explains each to whoever writes scripts."""

    DONE = 0
    NOT_WELL = 1
    """It looked, and something is not as it should be."""
    USAGE = 2
    """The command or a setting is wrong; nothing was done."""
    UNCONFIRMED = 3
    """Nobody has agreed to what it was about to do; nothing was changed."""
    FAILED = 4
    """It could not look, or could not do it."""
    OVERDUE = 70
    """It was asked to stop, did not in time, and was ended by force."""
    INTERRUPTED = 130
    """Ctrl-C."""
    CUT_OFF = 141
    """Whoever read its output went away."""


class OperatorError(Exception):
    """An expected failure of starting or running; its text says what is wrong and what to do.

    The command line prints the text after ``backlot:`` and exits with ``exit_code``.
    """

    exit_code = ExitCode.FAILED


class UsageError(OperatorError):
    """A command or a setting that makes no sense as it was given; nothing was done."""

    exit_code = ExitCode.USAGE


def describe(error: BaseException) -> str:
    """Return an error in one storable text of at most 2,000 characters."""
    text = f"{type(error).__name__}: {error}".replace("\x00", "\\0")
    return text.encode(errors="replace").decode()[:MAX_ERROR_LENGTH]


def fault_of(error: str) -> str:
    """Return the first line of an error without ids and numbers, which differ from event to event.

    What comes to the same text is taken for the same fault.
    """
    return VARYING.sub("#", error.partition("\n")[0])

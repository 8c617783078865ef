"""The failures an operator can mend: told in one line, never as a traceback."""

from __future__ import annotations


class OperatorError(Exception):
    """An expected failure of starting or running; its text says what is wrong and what to do.

    The command line prints the text after ``backlot:`` and exits with ``exit_code``.
    """

    exit_code = 1

"""The failures an operator can mend: told in one line, never as a traceback."""

from __future__ import annotations

import re

VARYING = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9]+", re.IGNORECASE)


class OperatorError(Exception):
    """An expected failure of starting or running; its text says what is wrong and what to do.

    The command line prints the text after ``backlot:`` and exits with ``exit_code``.
    """

    exit_code = 1


def fault_of(error: str) -> str:
    """The first line of an error without ids and numbers, which differ from event to event.

    What comes to the same text is taken for the same fault.
    """
    return VARYING.sub("#", error.partition("\n")[0])

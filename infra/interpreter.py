"""How the threads of a process share the interpreter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

TURN_SECONDS = 0.0005


@contextmanager
def quick_turns() -> Iterator[None]:
    """Let a thread go on soon after what it waited for has come, while others compute.

    One that computes without a pause keeps the interpreter for 5 ms, as Python has it, each time
    that another one has been answered by PostgreSQL.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(TURN_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)

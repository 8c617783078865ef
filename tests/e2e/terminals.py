"""Commands of the program on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.e2e.program import Program
from tests.fork_server import ForkedProcess
from tests.support import DEADLINE_SECONDS


class OnTerminal(NamedTuple):
    """How a command ended, what it wrote to its standard output, and what to the terminal."""

    code: int
    out: str
    shown: str


def with_a_bar(program: Program, *words: str, **variables: str) -> OnTerminal:
    """Run a command whose standard error is a terminal of 120 columns."""
    ours, theirs = pty.openpty()
    out = program.home / "with-a-bar"
    out.write_bytes(b"")
    terminal = {"TERM": "xterm", "COLUMNS": "120"}
    process = ForkedProcess(
        "backlot",
        words,
        cwd=program.home,
        env={**program.environment(), **terminal, **variables},
        stdout=out,
        stderr=Path(os.ttyname(theirs)),
    )
    with ThreadPoolExecutor(1) as pool:
        shown = pool.submit(everything_on, ours)
        code = process.wait(DEADLINE_SECONDS)
        os.close(theirs)
        return OnTerminal(code, out.read_text(), shown.result())


def everything_on(terminal: int) -> str:
    """What a program writes to a terminal until it ends."""
    shown = b""
    # Linux tells the end of a terminal as an error.
    with os.fdopen(terminal, "rb", buffering=0) as screen, contextlib.suppress(OSError):
        while chunk := screen.read(65_536):
            shown += chunk
    return shown.decode()

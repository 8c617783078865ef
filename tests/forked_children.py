"""What a program starts beside itself, forked like the programs of `tests.fork_server`.

To import the program takes longer than most of what they do.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast
from uuid import UUID, uuid4

from tests.fork_server import ForkedProcess
from workers.operations.executor import Children


class ForkedChild(ForkedProcess):
    """A process that carries an operation out, in a working folder of that name."""

    def __init__(
        self, work: UUID, folder: Path, environment: Mapping[str, str], stderr: Path
    ) -> None:
        folder.mkdir(parents=True)
        os.mkfifo(folder / "in")
        self.stdin = open(os.open(folder / "in", os.O_RDWR), "wb")  # noqa: PTH123, SIM115
        super().__init__(
            "backlot",
            ["projections", "carry-out", str(work)],
            cwd=folder,
            env=environment,
            stdin=folder / "in",
            stdout=Path(os.devnull),
            stderr=stderr,
            start_new_session=True,
        )


class ForkedChildren(Children):
    """Those of an executor in the process of the tests; what they complain of is kept by each."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        super().__init__((), environment)
        self._folder = folder

    def start(self, work: UUID) -> None:
        self._started[work] = time.monotonic()
        folder = self._folder / uuid4().hex / str(work)
        child = ForkedChild(work, folder, self._environment, self._stderr(folder))
        self.running[work] = cast("subprocess.Popen[bytes]", child)

    def _stderr(self, folder: Path) -> Path:
        return folder / "err"


class ChildrenOfForked(ForkedChildren):
    """Those of a forked program, in its working folder; they complain where it complains."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        super().__init__(Path.cwd() / "operations", environment)

    def _stderr(self, folder: Path) -> Path:
        return _stream(2)


def fork_serving_process(theirs: Connection) -> ForkedProcess:
    """A process that serves beside a forked program, at this end of a pipe."""
    return ForkedProcess(
        "backlot.serving_process",
        [],
        cwd=Path.cwd(),
        env=os.environ,
        stdout=_stream(1),
        stderr=_stream(2),
        start_new_session=True,
        connection=theirs,
    )


def _stream(number: int) -> Path:
    return Path(f"/proc/self/fd/{number}").readlink()

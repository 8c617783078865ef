"""Processes of the program, forked from one that has imported it: a start costs half as much.

What runs there is `python -m MODULE ARGUMENT …` in all that tests can tell: a process of its own
with its environment, folder, streams, signals and exit code. `tests/integration/test_processes.py`
starts the program without it.
"""

from __future__ import annotations

import atexit
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Any
from unittest.mock import patch

from backlot.doctor import examine
from backlot.up import run_up
from tests.support import PROJECT

# What these bring with them is there before the fork.
IMPORTED = (examine, run_up)


class ForkedProcess:
    """One process of the program, with the names that subprocess.Popen has."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: Path,
        stderr: Path,
    ) -> None:
        """The files are written anew; standard input is empty."""
        for path in (stdout, stderr):
            path.write_bytes(b"")
        self._process = _server().Process(
            target=_run, args=(module, arguments, cwd, dict(env), stdout, stderr)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0.0)
        return code

    def send_signal(self, number: Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(SIGTERM)

    def kill(self) -> None:
        self.send_signal(SIGKILL)


@cache
def _server() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with patch.dict(os.environ, PYTHONPATH=str(PROJECT)):
        forkserver.ensure_running()
    return context


def _run(
    module: str, arguments: Sequence[str], cwd: Path, env: dict[str, str], out: Path, err: Path
) -> None:
    """Become what a new interpreter would be, and run the module."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    _redirect(out, err)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        # What ends an interpreter; multiprocessing leaves it out.
        end_threads: Any = vars(threading)["_shutdown"]
        end_threads()
        atexit._run_exitfuncs()


def _redirect(out: Path, err: Path) -> None:
    """Open the standard streams anew, with the buffers that those of an interpreter have."""
    for number, path in enumerate((Path(os.devnull), out, err)):
        opened = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)

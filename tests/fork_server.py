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
from multiprocessing import forkserver, get_context, set_start_method
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Any
from unittest.mock import patch

from tests.support import PROJECT, eventually


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
        stdin: Path = Path(os.devnull),
        start_new_session: bool = False,
        connection: Connection | None = None,
    ) -> None:
        """`module` may be "-c", and the first argument a program then.

        The streams are files, to be written on at their ends, or a terminal, or a FIFO. The number
        of a connection that is passed on is one more argument.
        """
        target, streams = (_run_alone if start_new_session else _run), (stdin, stdout, stderr)
        for path in (stdout, stderr):
            # There from the beginning, as Popen's are: the process opens it only once it runs.
            if not path.exists():
                path.touch(0o600)
        self._process = fork_server().Process(
            target=target, args=(module, arguments, cwd, dict(env), streams, connection)
        )
        eventually(self._started)
        assert self._process.pid is not None
        self.pid = self._process.pid

    def _started(self) -> bool:
        """Start it; return False where the fork server is about to end.

        It does when a program is killed while it asks for a process; the next try begins another.
        """
        try:
            self._process.start()
        except ConnectionRefusedError:
            return False
        return True

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

    def kill_session(self) -> None:
        """Kill it with all that it has started; that is nothing while it has no session yet."""
        try:
            os.killpg(self.pid, SIGKILL)
        except ProcessLookupError:
            self.kill()


@cache
def fork_server() -> ForkServerContext:
    """The context of multiprocessing whose processes have imported the program."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "tests.preloaded"])
    with patch.dict(os.environ, PYTHONPATH=str(PROJECT)):
        forkserver.ensure_running()
    return context


def _run_alone(*args: Any) -> None:
    os.setsid()
    _run(*args)


def _run(
    module: str,
    arguments: Sequence[str],
    cwd: Path,
    env: dict[str, str],
    streams: Sequence[Path],
    connection: Connection | None,
) -> None:
    """Become what a new interpreter would be, and run the module."""
    # Its own children are forked there, too: without this it would start a server of its own.
    forkserver.ensure_running = vars(forkserver)["_forkserver"].ensure_running = lambda: None
    # What an interpreter begins with; here it is as this process was started.
    set_start_method("fork", force=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    _redirect(streams)
    if connection is not None:
        arguments = [*arguments, str(os.dup(connection.fileno()))]
        connection.close()
    try:
        if module == "-c":
            program, *sys.argv[1:] = arguments
            exec(program, {"__name__": "__main__"})
        else:
            sys.argv = [module, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        # What ends an interpreter; multiprocessing leaves it out.
        end_threads: Any = vars(threading)["_shutdown"]
        end_threads()
        atexit._run_exitfuncs()


def _redirect(streams: Sequence[Path]) -> None:
    """Open the standard streams anew, with the buffers that those of an interpreter have."""
    for number, path in enumerate(streams):
        way = os.O_RDWR | os.O_APPEND | os.O_CREAT if number else os.O_RDONLY
        opened = os.open(path, way, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)

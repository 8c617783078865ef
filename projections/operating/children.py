"""Processes for work that takes long: the interpreter lock of this one belongs to its clients.

A child holds the end of a pipe from here. However this process ends, that pipe closes, and the
child stops by itself: it never outlives the database that may have been started here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from threading import Event, Thread
from uuid import UUID

import structlog

log = structlog.get_logger(__name__)

# The least time between two starts of a process for one operation.
PAUSE_SECONDS = 1.0
STOP_SECONDS = 15.0
MAX_CHILDREN = 4
SLOW_EXIT = 70


class Children:
    """The processes at work here, by what they work on; used by one thread."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """`command` gets the id of what is to be done as its last argument."""
        self._command = command
        self._environment = {**os.environ, **environment}
        self._running: dict[UUID, subprocess.Popen[bytes]] = {}
        self._started: dict[UUID, float] = {}
        self._crashes: Counter[UUID] = Counter()

    def busy(self, work: UUID) -> bool:
        """Whether a child is at it."""
        return work in self._running

    def may_start(self, work: UUID) -> bool:
        """Whether there is room for one more, and nobody has only just been at it."""
        latest = self._started.get(work)
        rested = latest is None or time.monotonic() - latest > PAUSE_SECONDS
        return len(self._running) < MAX_CHILDREN and rested

    def start(self, work: UUID) -> None:
        """Begin to work in a process of its own; raises OSError when there can be none."""
        self._started[work] = time.monotonic()
        self._running[work] = subprocess.Popen(
            [*self._command, str(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=self._environment,
            # Its own session: Ctrl-C ends this process first, which then stops the child.
            start_new_session=True,
        )

    def reap(self) -> None:
        """Notice which have ended."""
        for work, process in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            self._close(process)
            del self._running[work]
            if code != 0:
                self._crashes[work] += 1
                log.error("operation_process_died", id=str(work), code=code)

    def crashes(self, work: UUID) -> int:
        """How many processes have died over it."""
        return self._crashes[work]

    def stop(self) -> None:
        """Ask all to stop where they are, wait for that, and kill who takes too long."""
        for process in self._running.values():
            self._close(process)
        deadline = time.monotonic() + STOP_SECONDS
        for work, process in self._running.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("operation_process_killed", id=str(work))
                process.kill()
                process.wait()
        self._running.clear()

    def _close(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            process.stdin.close()


def watch_parent(stopping: Event, *, exit_seconds: float = STOP_SECONDS) -> Thread:
    """In a child: have `stopping` set when the parent is gone or closes the pipe.

    Who does not stop within `exit_seconds` after that is ended by force.
    """

    def watch(end: Callable[[int], object] = os._exit) -> None:
        # Past Python's buffer: its lock, held here, would break the interpreter's end.
        os.read(sys.stdin.fileno(), 1)
        stopping.set()
        time.sleep(exit_seconds)
        end(SLOW_EXIT)

    thread = Thread(target=watch, name="parent", daemon=True)
    thread.start()
    return thread

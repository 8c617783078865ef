"""The processes that serve beside the first one, on all cores of a machine.

The first one runs everything and starts them. Each is told over a pipe what the first has opened,
and lives no longer than the pipe: however the first one ends, nobody is left at its port or data.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Self

import structlog
from pydantic import SecretStr

from backlot.app import Shared
from engine.connections import Backoff, in_thread
from infra.metric_pages import Pages, pages_at
from infra.metrics import counter, gauge
from infra.redis_socket import embedded_redis_at, url_of
from infra.settings import SERVING, Role, Settings

log = structlog.get_logger(__name__)

READY = "ready"
# Theirs take no longer than ten for requests that don't end, and then close connections.
STOP_SECONDS = 25.0
LONGEST_SOCKET_PATH = 103
LONGEST_SOCKET_NAME = "/4194304.sock"

PROCESSES = gauge("backlot_processes", "Processes that answer at this port.")
PROCESS_RESTARTS = counter(
    "backlot_process_restarts", "Times that a process beside the first one ended and was replaced."
)


@dataclass(frozen=True)
class Assignment:
    """What a process beside the first one is told, once that has opened its own parts."""

    settings: Settings
    shared: Shared
    sockets: Path

    @property
    def sum_socket(self) -> Path:
        """Where the first process tells the metrics of all."""
        return self.sockets / "metrics.sock"

    @classmethod
    def of(cls, settings: Settings, database_url: str, sockets: Path) -> Self:
        """Return the assignment of all: to serve, with the settings of the first one."""
        redis = sockets / "redis.sock"
        server = settings.server
        update = {
            "roles": server.roles & (SERVING | {Role.WEB}),
            "configured_processes": server.processes,
        }
        changes: dict[str, object] = {"server": server.model_copy(update=update)}
        if settings.tasks.broker_url is None and Role.TASKS in server.roles:
            # The first one runs what the others send.
            sent = {"own_broker_url": SecretStr(url_of(redis))}
            changes["tasks"] = settings.tasks.model_copy(update=sent)
        shared = Shared(database_url, redis if settings.redis.url is None else None)
        return cls(settings.model_copy(update=changes), shared, sockets)


def start_process(theirs: Connection) -> subprocess.Popen[bytes]:
    """Start a process that serves, at this end of a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "backlot.serving_process", str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        # Ctrl-C in the console is for the first one, which tells the others.
        start_new_session=True,
        pass_fds=[theirs.fileno()],
    )


class ServingProcess:
    """One of them, and those that follow it: it is started again whenever it ends."""

    def __init__(self, number: int, pages: Pages) -> None:
        self.ready = False
        self._pages = pages
        self._assignment: Assignment | None = None
        self._assigned, self._stopping = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name=f"process {number}", daemon=True)

    def start(self) -> None:
        """Have it import what it needs, while the first process opens its parts."""
        self._thread.start()

    def assign(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._assigned.set()

    def tell_stop(self) -> None:
        """Ask it to finish what it has begun, and to end."""
        self._stopping.set()
        self._assigned.set()
        with self._lock:
            if self._process is not None:
                self._process.terminate()

    def join(self, deadline: float) -> None:
        """Return once it has ended; it is killed at the deadline."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            if self._process is not None:
                log.error("process_killed", pid=self._process.pid)
                self._process.kill()
        self._thread.join()

    def _keep(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            ours, theirs = Pipe()
            with ours:
                try:
                    process = self._launch(theirs)
                except OSError as error:
                    # Too many processes, or too little memory, for now.
                    log.error("process_not_started", reason=str(error))
                    process = None
                if process is not None and self._attend(process, ours):
                    backoff.reset()
            if not self._stopping.wait(backoff.next()):
                PROCESS_RESTARTS.inc()

    def _launch(self, theirs: Connection) -> subprocess.Popen[bytes] | None:
        """Start it at the other end of the pipe, unless it is to stop."""
        with theirs, self._lock:
            if not self._stopping.is_set():
                self._process = start_process(theirs)
            return self._process

    def _attend(self, process: subprocess.Popen[bytes], connection: Connection) -> bool:
        """Assign its work and wait until it ends; return whether it was ready once."""
        was_ready = False
        try:
            self._assigned.wait()
            if self._assignment is not None:
                self._pages.expect(process.pid)
                connection.send(self._assignment)
                self.ready = was_ready = connection.recv() == READY
                connection.recv()
        except (EOFError, OSError):
            pass
        self.ready = False
        status = process.wait()
        with self._lock:
            self._process = None
        self._pages.depart(process.pid)
        if not self._stopping.is_set():
            log.error("process_ended", pid=process.pid, status=status, was_ready=was_ready)
        return was_ready


class ServingProcesses:
    """All of them: entering starts them, then they wait for `assign`; leaving stops them."""

    def __init__(self, count: int) -> None:
        self.pages = Pages()
        self._all = [ServingProcess(number, self.pages) for number in range(2, count + 2)]

    def __enter__(self) -> Self:
        for each in self._all:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def ready(self) -> bool:
        """Whether all of them answer."""
        return all(each.ready for each in self._all)

    def assign(self, assignment: Assignment) -> None:
        """Have all of them serve."""
        for each in self._all:
            each.assign(assignment)

    def tell_stop(self) -> None:
        """Ask all of them to finish what they have begun, and to end."""
        for each in self._all:
            each.tell_stop()

    def stop(self) -> None:
        """The same, and return once they have ended; safe to call twice."""
        self.tell_stop()
        deadline = time.monotonic() + STOP_SECONDS
        for each in self._all:
            each.join(deadline)


@asynccontextmanager
async def working(processes: ServingProcesses, assignment: Assignment) -> AsyncIterator[None]:
    """Have all processes serve for the length of the block, out of what this one shares."""
    async with AsyncExitStack() as stack:
        if assignment.shared.redis is not None:
            await stack.enter_async_context(embedded_redis_at(assignment.shared.redis))

        async def page() -> bytes:
            return await processes.pages.whole(assignment.sockets)

        await stack.enter_async_context(pages_at(assignment.sum_socket, page))
        # Before the sockets are closed.
        stack.push_async_callback(in_thread, processes.stop)
        processes.assign(assignment)
        yield


@contextmanager
def socket_folder(data: Path) -> Iterator[Path]:
    """Yield a folder for sockets that only this user may enter: in the data folder, if that fits.

    The path of a socket is limited. What a killed process left there is removed.
    """
    folder = data.absolute() / "processes"
    if len(os.fsencode(folder)) + len(LONGEST_SOCKET_NAME) > LONGEST_SOCKET_PATH:
        with tempfile.TemporaryDirectory(prefix="backlot-") as name:
            yield Path(name)
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

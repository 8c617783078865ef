"""What a failed test leaves behind is ended at once, so that it fails no other test.

A pytest plugin: processes, their pipes and threads that the test itself started, or fixtures of
its own; then whatever only its frames still hold (sockets, files, event loops), whose warnings
would else be those of a later test. Working folder and signal handlers are put back after every
test. What fixtures of a wider scope start is theirs.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakSet

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

THREAD_SECONDS = 5.0
# A test that hangs for longer shows where each of its threads stands, and ends the run.
HANG_SECONDS, WIND_SECONDS = 900.0, 30.0
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD, signal.SIGUSR1)


class Leftovers:
    """What one test has started, and whether it has failed."""

    def __init__(self) -> None:
        self.failed = False
        self.noting = True
        self._processes: list[subprocess.Popen[Any]] = []
        self._threads: list[threading.Thread] = []
        self.known = set(multiprocessing.active_children())

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is started."""
        with (
            patch.object(subprocess.Popen, "__init__", self._noting(_NEW_PROCESS, self._processes)),
            patch.object(threading.Thread, "start", self._noting(_START_THREAD, self._threads)),
        ):
            yield

    def fail(self) -> None:
        """The test has failed: nobody is told of what its threads raise from now on."""
        self.failed = True
        _abandoned.update(self._threads)

    def end(self) -> None:
        """End it all; nothing of that is told of."""
        with _silence():
            for process in self._processes:
                _end_process(process)
            for child in set(multiprocessing.active_children()) - self.known:
                child.kill()
                child.join()
            _abandoned.update(self._threads)
            deadline = time.monotonic() + THREAD_SECONDS
            for thread in self._threads:
                if thread.is_alive() and not thread.daemon:
                    thread.join(max(0.0, deadline - time.monotonic()))
            self._processes.clear()
            self._threads.clear()
            for name in ("last_type", "last_value", "last_traceback", "last_exc"):
                if hasattr(sys, name):
                    delattr(sys, name)
            gc.collect()

    def _noting(self, work: Callable[..., None], noted: list[Any]) -> Callable[..., None]:
        @functools.wraps(work)
        def wrapper(one: Any, *args: Any, **kwargs: Any) -> None:
            work(one, *args, **kwargs)
            if self.noting:
                noted.append(one)

        return wrapper


_NEW_PROCESS: Callable[..., None] = subprocess.Popen.__init__
_START_THREAD: Callable[..., None] = threading.Thread.start
_abandoned: WeakSet[threading.Thread] = WeakSet()
_current: list[Leftovers] = []
WATCHDOG = pytest.StashKey["Watchdog"]()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # So a shell starts what is behind `&`, and every process here would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Watchdog:
    """Ends a run in which a test hangs.

    Pytest's own is a new thread for each test, whose start and end take longer than most tests.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._stderr = config.stash[fault_handler_stderr_fd_key]
        self._wound = -math.inf

    def wind(self) -> None:
        """A test begins: there is as much time again, give or take half a minute."""
        now = time.monotonic()
        if now > self._wound + WIND_SECONDS:
            self._wound = now
            faulthandler.dump_traceback_later(HANG_SECONDS, file=self._stderr, exit=True)

    def stop(self) -> None:
        """It has to be wound again."""
        self._wound = -math.inf
        faulthandler.cancel_dump_traceback_later()


def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    # Pytest stops all watchdogs where a test fails.
    if (watchdog := node.config.stash.get(WATCHDOG, None)) is not None:
        watchdog.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    watchdog = Watchdog(session.config)
    session.config.stash[WATCHDOG] = watchdog
    try:
        return (yield)
    finally:
        watchdog.stop()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    item.config.stash[WATCHDOG].wind()
    leftovers = Leftovers()
    _current.append(leftovers)
    folder = Path.cwd()
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    ended = False
    try:
        with leftovers.noted():
            result = yield
        ended = True
        return result
    finally:
        _current.remove(leftovers)
        os.chdir(folder)
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler and handler is not None:
                signal.signal(number, handler)
        if (leftovers.failed or not ended) and not item.config.option.usepdb:
            leftovers.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and _current:
        _current[-1].fail()
    return report


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object],
) -> Generator[None, object, object]:
    if not _current or fixturedef.scope == "function":
        return (yield)
    leftovers = _current[-1]
    before, leftovers.noting = leftovers.noting, False
    try:
        return (yield)
    finally:
        leftovers.noting = before
        leftovers.known.update(multiprocessing.active_children())


def _end_process(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


@contextmanager
def _silence() -> Iterator[None]:
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook


def pytest_sessionstart() -> None:
    """What a thread raises that a failed test left is nobody's fault later."""
    tell = threading.excepthook

    def told(args: threading.ExceptHookArgs) -> None:
        if args.thread not in _abandoned:
            tell(args)

    threading.excepthook = told

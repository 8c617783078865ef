"""Ctrl-C and SIGTERM on processes of their own: the first stops in order, the second at once."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

# Says `ready` once its work runs, then whatever it does when it is stopped.
LOSING = """
async def work():
    print("ready", flush=True)
    for lost in range({losses}):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            print("lost", flush=True)
    try:
        await asyncio.sleep(3600)
    finally:
        print("cleaned up", flush=True)

try:
    run(work())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
HANGING = """
import threading
with Stop(raises=True, seconds={seconds}), last_word(lambda: os.write(1, b"last word\\n")):
    try:
        print("ready", flush=True)
        time.sleep(3600)
    except KeyboardInterrupt:
        print("cleaning up", flush=True)
        threading.Event().wait()
"""
# The first Ctrl-C comes where Python drops exceptions, and `tail` begins afterwards.
DROPPING = """
class Careless:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(3600)

async def tail():
    await asyncio.sleep(3600)

with Stop(raises=True):
    Careless()
    try:
        run(tail())
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""

# The main thread waits in C for a lock that it holds, and comes by no handler any more.
STUCK = """
import ctypes
c, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with Stop(lambda: os.write(1, b"asked\\n")), last_word(lambda: os.write(1, b"last word\\n")):
    c.pthread_mutex_lock(lock)
    print("ready", flush=True)
    c.pthread_mutex_lock(lock)
"""


@contextmanager
def running(
    source: str, *, ignored: bool = False, stderr: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """A process that runs this, and has said that it is ready."""
    head = "import asyncio, os, time\nfrom backlot.signals import Stop, last_word, run\n"
    handler = signal.SIG_IGN if ignored else signal.default_int_handler
    earlier = signal.signal(signal.SIGINT, handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", head + source],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, earlier)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def end(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Its exit code, and what it has said since it was ready."""
    out, _ = process.communicate(timeout=180)
    return process.returncode, out.splitlines()


@pytest.mark.parametrize("losses", [0, 1, 3])
@pytest.mark.parametrize("ignored", [False, True])
def test_the_first_stops_whatever_loses_cancellations(losses: int, ignored: bool) -> None:
    with running(LOSING.format(losses=losses), ignored=ignored) as process:
        process.send_signal(signal.SIGINT)
        assert end(process) == (0, ["lost"] * losses + ["cleaned up", "interrupted"])


def test_the_second_ends_at_once_after_the_last_words() -> None:
    with running(HANGING.format(seconds=3600)) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "cleaning up\n"
        process.send_signal(signal.SIGINT)
        assert end(process) == (130, ["last word"])


def test_a_main_thread_that_is_stuck_stops_nothing_from_being_heard() -> None:
    with running(STUCK) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        assert end(process) == (130, ["last word"])


def test_a_stop_that_takes_too_long_is_told_of_and_ended() -> None:
    with running(HANGING.format(seconds=0.2)) as process:
        process.send_signal(signal.SIGINT)
        code, said = end(process)
        assert (code, said[0], said[-1]) == (70, "cleaning up", "last word")
        assert "stop_overdue" in " ".join(said)


def test_one_that_was_lost_counts_where_something_runs_next() -> None:
    with running(DROPPING) as process:
        process.send_signal(signal.SIGINT)
        assert end(process) == (0, ["interrupted"])


def test_the_cursor_is_shown_again() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen, os.fdopen(theirs, "wb") as terminal:
        with running(HANGING.format(seconds=3600), stderr=terminal.fileno()) as process:
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert end(process)[0] == 130
        assert screen.read(100) == b"\x1b[?25h"

"""Starts the parts that are measured in processes of their own, and ends them again."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from backlot.demo.client import stop
from infra.errors import OperatorError
from infra.settings import Settings

ROOT = Path(__file__).parent.parent
START_SECONDS = 60.0
STOP_SECONDS = 30.0


class ProcessFailed(OperatorError):
    """A process of the benchmark ended or did not answer; what it said is in the text."""


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers."""

    port: int
    process: psutil.Process
    log: Path

    def said(self) -> str:
        """The end of what it logged."""
        return self.log.read_text(errors="replace")[-4000:]

    def cpu_seconds(self) -> float:
        """Of the process and of those that serve beside it."""
        found = [each.cpu_times() for each in (self.process, *self.process.children())]
        return float(sum(times.user + times.system for times in found))


def command(module: str, *arguments: str) -> list[str]:
    """How to run a module of this package."""
    return [sys.executable, "-m", f"benchmarks.{module}", *arguments]


# What is measured is one process, unless a benchmark says otherwise.
UNLIMITED = {
    "BACKLOT_PROCESSES": "1",
    "RATE_LIMITS": "off",
    "TRANSLATION_CALLS_PER_DAY": "1000000",
    "TRANSLATION_USER_CALLS_PER_DAY": "1000000",
}


def environment(**settings: str) -> dict[str, str]:
    """The caller's environment without any Backlot setting but these; nothing is limited."""
    own = Settings.variables()
    kept = {name: value for name, value in os.environ.items() if name not in own}
    return {**kept, "PYTHONPATH": str(ROOT), **UNLIMITED, **settings}


def free_port() -> int:
    """A TCP port on the loopback address that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(
    module: str, folder: Path, *, health: str, settings: Mapping[str, str]
) -> Iterator[Served]:
    """A server on a free port, from when `health` answers; `folder` is its working directory.

    Raises ProcessFailed when it does not come up.
    """
    port = free_port()
    folder.mkdir()
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(module),
            cwd=folder,
            env=environment(BACKLOT_PORT=str(port), **settings),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _await_answer(process, f"http://127.0.0.1:{port}{health}", log)
        yield Served(port, psutil.Process(process.pid), log)
    finally:
        stop(process, STOP_SECONDS)


def _await_answer(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ProcessFailed(f"{url} does not answer:\n{log.read_text(errors='replace')}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False

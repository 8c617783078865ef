"""What tests of all tiers share and fixtures cannot give."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import pkgutil
import re
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from hashlib import sha256
from itertools import cycle
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import psutil
import pytest

import domain
from domain.model import Aggregate
from infra.cancellation import cancel

T = TypeVar("T")
# What the fixtures `copy_of` and `database_with` are; the text is a URL.
CopyOf = Callable[[str], AbstractContextManager[str]]
DatabaseWith = Callable[[Callable[[str], object]], AbstractContextManager[str]]
PROJECT = Path(__file__).parents[1]
# A test waits for conditions; this only ends one whose condition never comes, however busy the
# machine is.
DEADLINE_SECONDS = 180.0
# Wraps the keys of persons for programs that share a database, and no data folder.
KEY_ENCRYPTION_KEY = sha256(b"of these tests").hexdigest()
# Where no port is given to anybody who does not ask for it.
FIRST_PORT, LAST_PORT = 12_000, 32_768
INSTALL = {
    "chromium": "apt-get install chromium",
    "ffmpeg": "apt-get install ffmpeg",
    "nginx": "apt-get install nginx-light",
    "redis-server": "apt-get install redis-server",
}


def eventually(condition: Callable[[], T], seconds: float = DEADLINE_SECONDS) -> T:
    """Wait until the condition holds and return its value; fail when it does not in time."""
    pauses = _pauses(seconds)
    while not (value := condition()):
        time.sleep(next(pauses))
    return value


async def until(condition: Callable[[], object], seconds: float = DEADLINE_SECONDS) -> None:
    """The same in an event loop, which goes on meanwhile; the condition may be awaitable."""
    for pause in _pauses(seconds):
        holds = condition()
        if await holds if isinstance(holds, Awaitable) else holds:
            return
        await asyncio.sleep(pause)


def _pauses(seconds: float) -> Iterator[float]:
    """Longer and longer pauses, so that a long wait takes little from what it waits for."""
    deadline, pause = time.monotonic() + seconds, 0.002
    while True:
        assert time.monotonic() < deadline, "The condition did not come true in time."
        yield pause
        pause = min(1.2 * pause, 0.1)


def in_ci() -> bool:
    """Whether a missing service is a failure, not a reason to skip."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def requires(program: str) -> str:
    """The path of an installed program; without it, skip, or fail when CI=true."""
    # Debian's servers are in sbin, which is not on everybody's PATH.
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin")
    if path is None:
        unavailable(f"{program} is not installed: {INSTALL.get(program, 'install it')}")
    return path


def unavailable(reason: str) -> NoReturn:
    """End a test that cannot run here: skipped with the reason, failed when CI=true."""
    if in_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def unused_port() -> int:
    """A TCP port on the loopback address on which nobody listens, and which no other test gets.

    The kernel gives it to nobody either, as it gives others to connections and servers: they could
    take it before whoever asks here listens, or while a program is started again.
    """
    while True:
        port = next(_ports())
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@cache
def _ports() -> Iterator[int]:
    """The ports of this process of the run, in turn; each process has others."""
    of_kernel = Path("/proc/sys/net/ipv4/ip_local_port_range")
    end = int(of_kernel.read_text().split()[0]) if of_kernel.exists() else LAST_PORT
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    mine = range(FIRST_PORT, end if end > FIRST_PORT else LAST_PORT)[int(worker) :: workers]
    # Another run beside this one begins elsewhere.
    begin = os.getpid() * 97 % len(mine)
    return cycle([*mine[begin:], *mine[:begin]])


def seeds(numbers: Iterable[int], *, always: int) -> pytest.MarkDecorator:
    """Run a random test once for each seed, as its argument `seed`.

    So many of them always, and the others with the mark `chaos`: they are more of the same.
    """
    return pytest.mark.parametrize(
        "seed",
        [
            pytest.param(number, marks=() if place < always else pytest.mark.chaos)
            for place, number in enumerate(numbers)
        ],
    )


def claims_at(written: str, now: float) -> dict[str, Any]:
    """Claims of a token in JSON, where "now+30" stands for the time half a minute after `now`."""
    claims = json.loads(written)
    for name, value in claims.items():
        if relative := re.fullmatch(r"now([+-][0-9.]+)?", str(value)):
            claims[name] = now + float(relative[1] or 0)
    return dict(claims)


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel them until they are done; raises what one of them has failed with."""
    assert await cancel(*tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


def children(program: str) -> list[psutil.Process]:
    """This process's living children that run `program`, or a Python module of that name."""
    found = []
    for child in psutil.Process().children():
        # It may end, or become a zombie, between the list and the question.
        with suppress(psutil.NoSuchProcess):
            words = child.cmdline() or [""]
            if Path(words[0]).name == program or f"{program}(" in " ".join(words[1:]):
                found.append(child)
    return found


@contextmanager
def hung(postmaster: int) -> Iterator[None]:
    """Stop a PostgreSQL and its children in the middle of what they do, as SIGSTOP does."""
    server = psutil.Process(postmaster)
    # The postmaster first: it would make new children.
    server.suspend()
    stopped = [server, *server.children(recursive=True)]
    for process in stopped[1:]:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def aggregates() -> list[type[Aggregate]]:
    """Every aggregate of the product, by its file and its place in that."""
    for module in pkgutil.iter_modules(domain.__path__):
        importlib.import_module(f"domain.{module.name}")
    return [each for each in Aggregate.__subclasses__() if each.__module__.startswith("domain.")]

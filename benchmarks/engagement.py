"""CPU of a like, a watch and a comment, of the program and of PostgreSQL, until all follows."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import httpx
import psutil
import psycopg
from psycopg.rows import TupleRow

from benchmarks.bench import Bench, say
from benchmarks.like import PATHS, Clients
from benchmarks.log import VIDEOS
from benchmarks.processes import Served, serving
from benchmarks.results import Comparison, Side
from infra.http.auth import mint_token

MOST_SECONDS = 120.0
LOOK_SECONDS = 0.1
MILLISECONDS = 1000.0
# Whoever follows the log or the telemetry is at its end, and no comment waits for its language.
BEHIND = """
SELECT (SELECT count(*) FROM backlot_checkpoints AS c
        JOIN (SELECT 'events', max(notification_id) FROM backlot_events
              UNION ALL SELECT 'telemetry', max(seq) FROM backlot_telemetry) AS head (source, at)
            USING (source)
        WHERE kind IN ('projection', 'consumer') AND position < at)
    + (SELECT count(*) FROM comments.comments WHERE translation_status = 'pending')
"""


@dataclass(frozen=True, slots=True)
class Deed:
    """What viewers do, how, and how many ms of CPU one of it may cost."""

    name: str
    paths: list[str]
    most: float
    body: str = ""


ENGLISH = '{"content": "What a fine film! I have seen it three times, and cried each time."}'
DEEDS = (
    Deed("like", PATHS, 0.4),
    Deed("watch", [f"/videos/{video}/watch" for video in VIDEOS], 0.6),
    Deed("comment that needs no provider", [f"/videos/{v}/comments" for v in VIDEOS], 1.3, ENGLISH),
)


@dataclass(frozen=True, slots=True)
class Backlot:
    """A server with all roles, and the PostgreSQL that it has for itself."""

    served: Served
    conn: psycopg.Connection[TupleRow]
    postgres: psutil.Process

    def cpu_seconds(self) -> float:
        """Return what both have spent, with all their processes, those that have ended too."""
        return _spent(self.served.process) + _spent(self.postgres)

    def behind(self) -> int:
        """Return how many checkpoints are not at their end, and comments without an outcome."""
        return sum(self.conn.execute(BEHIND).fetchone() or (0,))

    def admit(self, tokens: list[str]) -> None:
        """Have each token verified, which costs more than what it is for."""
        with httpx.Client(trust_env=False) as client:
            for token in tokens:
                client.get(
                    f"http://127.0.0.1:{self.served.port}{PATHS[0]}",
                    headers={"Authorization": f"Bearer {token}"},
                ).raise_for_status()


def run(bench: Bench) -> list[Comparison]:
    """Milliseconds of CPU for each, beyond what the same time costs when nobody does anything."""
    secret = secrets.token_urlsafe(32)
    tokens = [mint_token(secret, f"viewer-{n}") for n in range(bench.size(3_000, 100))]
    clients = Clients(tokens, 0.0, bench.size(5, 1))
    with _backlot(bench, secret) as backlot:
        backlot.admit(tokens)
        # Everything is loaded, and every statement prepared.
        for deed in DEEDS:
            clients.load(backlot.served, deed.paths, 0, body=deed.body)
        _await_all(backlot)
        idle = _idle(backlot, bench.size(20, 2))
        contenders = {deed.name: partial(_cost, backlot, clients, deed, idle) for deed in DEEDS}
        rounds = bench.interleave(bench.size(3, 1), contenders)
    notes = {"idle CPU %": idle * 100}
    return [
        Comparison(
            "engagement",
            "ms of CPU",
            Side(f"{deed.name}, until all has followed", rounds[deed.name], notes),
            Side("the bound", [deed.most]),
            at_most=1,
        )
        for deed in DEEDS
    ]


def _cost(backlot: Backlot, clients: Clients, deed: Deed, idle: float, number: int) -> float:
    before, started = backlot.cpu_seconds(), time.monotonic()
    _, answered = clients.load(backlot.served, deed.paths, number + 1, body=deed.body)
    _await_all(backlot)
    spent = backlot.cpu_seconds() - before - idle * (time.monotonic() - started)
    return spent / answered * MILLISECONDS


def _idle(backlot: Backlot, seconds: float) -> float:
    """Return how much CPU is spent per second while nothing happens, the looks of this included."""
    say("idle")
    shares = []
    for _ in range(2):
        before, started = backlot.cpu_seconds(), time.monotonic()
        while time.monotonic() - started < seconds / 2:
            backlot.behind()
            time.sleep(LOOK_SECONDS)
        shares.append((backlot.cpu_seconds() - before) / (time.monotonic() - started))
    return median(shares)


def _await_all(backlot: Backlot) -> None:
    started = time.monotonic()
    while left := backlot.behind():
        if time.monotonic() - started > MOST_SECONDS:
            raise TimeoutError(f"{left} comments and checkpoints are behind.")
        time.sleep(LOOK_SECONDS)


def _spent(process: psutil.Process) -> float:
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


@contextmanager
def _backlot(bench: Bench, secret: str) -> Iterator[Backlot]:
    url = bench.log(bench.size(30_000, 1_000))
    settings = {
        "DATABASE_URL": url,
        "JWT_SECRET": secret,
        "KEY_ENCRYPTION_KEY": secrets.token_hex(32),
        "BACKLOT_DATA_DIR": "data",
        "LOG_LEVEL": "warning",
    }
    pid = bench.server.pid
    if pid is None:
        raise RuntimeError("PostgreSQL is away.")
    folder = bench.folder / "engagement"
    with (
        serving("server", folder, health="/readyz", settings=settings) as served,
        psycopg.connect(url, autocommit=True) as conn,
    ):
        yield Backlot(served, conn, psutil.Process(pid))

"""Two processes behind one port, against one: on two cores and more."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack

import httpx

from benchmarks.bench import Bench
from benchmarks.like import Clients, Server, backlot, side
from benchmarks.processes import START_SECONDS, ProcessFailed
from benchmarks.results import Comparison
from infra.http.auth import mint_token

PROCESSES = {"one process": 1, "two processes": 2}
LIVENESS, READ, LIKE = "GET /healthz", "GET like with a token", "like"
LEAST_RATIO = 1.5

Contender = Callable[[int], tuple[float, dict[str, float]]]


def run(bench: Bench) -> list[Comparison]:
    """Requests/s at 64 connections; the load and PostgreSQL take the same cores."""
    secret = secrets.token_urlsafe(32)
    viewers = range(bench.size(3_000, 100))
    tokens = [mint_token(secret, f"viewer-{number}") for number in viewers]
    clients = Clients(tokens, 0.5, bench.size(3, 1))
    contenders: dict[str, Contender] = {}
    with ExitStack() as stack:
        for name, count in PROCESSES.items():
            ours = backlot(bench, secret, f"cores-{count}", BACKLOT_PROCESSES=str(count))
            server = stack.enter_context(ours)
            _await_all(server, count)
            contenders |= _asked(clients, server, name)
        measured = bench.interleave(bench.size(4, 1), contenders)
    sides = {name: side(name, rounds[1:] or rounds) for name, rounds in measured.items()}
    one, two = PROCESSES
    return [
        Comparison(
            "cores",
            "requests/s",
            sides[f"{what}, {two}"],
            sides[f"{what}, {one}"],
            at_least=LEAST_RATIO if what == LIVENESS else None,
        )
        for what in (LIVENESS, READ, LIKE)
    ]


def _asked(clients: Clients, server: Server, name: str) -> dict[str, Contender]:
    """Return what is asked of a server."""
    return {
        f"{LIVENESS}, {name}": lambda number: clients.get(server, number, "/healthz"),
        f"{READ}, {name}": lambda number: clients.get(
            server, number, "/videos/{}/like", known=True
        ),
        f"{LIKE}, {name}": lambda number: clients.like(server, number),
    }


def _await_all(server: Server, count: int) -> None:
    """Wait until all processes answer; a connection goes to those that do."""
    deadline = time.monotonic() + START_SECONDS
    url, wanted = f"http://127.0.0.1:{server.served.port}/metrics", f"\nbacklot_processes {count}.0"
    while wanted not in httpx.get(url, trust_env=False).text:
        if time.monotonic() > deadline:
            raise ProcessFailed(f"{count} processes do not answer:\n{server.served.said()}")
        time.sleep(0.1)

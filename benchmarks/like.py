"""Liking over HTTP: against a POST that does nothing, and against the design without events."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field

import psycopg
import redis

from benchmarks import crud_app
from benchmarks.bench import Bench, medians
from benchmarks.load import Order, Report
from benchmarks.log import VIDEOS
from benchmarks.processes import ProcessFailed, Served, command, environment, serving
from benchmarks.results import Comparison, Side
from infra.errors import OperatorError
from infra.http.auth import mint_token

LIKE, NOOP = "like, all in one process", "no-op POST, same process"
CRUD, CRUD_TIGHT = "like, CRUD with outbox as planned", "like, CRUD as tight as it goes"
APART = "like, projections in another process"
CPU_NOTE, REDIS_NOTE = "server CPU µs", "Redis CPU µs"
PATHS = [f"/videos/{video}/like" for video in VIDEOS]
CATCH_UP_SECONDS = 900.0

BACKLOT_RECORDED = "SELECT max(notification_id) FROM backlot_events"
BACKLOT_PROJECTED = "SELECT position FROM backlot_checkpoints WHERE subscription = 'likes'"
CRUD_RECORDED = "SELECT count(*) FROM outbox"


class Lost(OperatorError):
    """What was answered and what is stored differ: then no figure counts."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server, its database, how many toggles that has recorded and projected, and its Redis."""

    served: Served
    url: str
    recorded: str
    projected: str
    redis_url: str | None


@dataclass(frozen=True, slots=True)
class Clients:
    """The load that every server gets alike; through a proxy, if the clients have `addresses`."""

    tokens: list[str]
    warmup_seconds: float
    seconds: float
    addresses: list[str] = field(default_factory=list)

    def like(
        self, server: Server, number: int, paths: list[str] = PATHS
    ) -> tuple[float, dict[str, float]]:
        """Toggle at random, and see that each answer stands for a change in the database."""
        before = _ask(server.url, server.recorded)
        spent = redis_seconds(server)
        result, answered = self.load(server.served, paths, number)
        spent = redis_seconds(server) - spent
        recorded = _ask(server.url, server.recorded) - before
        if recorded != answered:
            raise Lost(f"{answered} toggles were answered, {recorded} are stored.")
        seconds = _await_projected(server)
        notes = {**result[1], "s until projected": seconds}
        if server.redis_url is not None:
            notes[REDIS_NOTE] = spent / answered * 1e6
        return result[0], notes

    def noop(self, server: Server, number: int) -> tuple[float, dict[str, float]]:
        return self.load(server.served, ["/noop"], number)[0]

    def get(
        self, server: Server, number: int, path: str, *, known: bool = False
    ) -> tuple[float, dict[str, float]]:
        """Read, with a token where `known`; `{}` in the path stands for a video."""
        paths = [path.format(video) for video in VIDEOS]
        return self.load(server.served, paths, number, method="GET", known=known)[0]

    def load(
        self,
        served: Served,
        paths: list[str],
        seed: int,
        *,
        method: str = "POST",
        known: bool = True,
        body: str = "",
        pace: float = 0.0,
        once: bool = False,
    ) -> tuple[tuple[float, dict[str, float]], int]:
        """Return the rate with its notes, and how many requests were answered; `pace` and `once`
        are as in an Order."""
        cpu = served.cpu_seconds()
        report = self.report(
            served, paths, seed, method=method, known=known, body=body, pace=pace, once=once
        )
        notes = {
            "p50 ms": report.p50_ms,
            "p99 ms": report.p99_ms,
            CPU_NOTE: (served.cpu_seconds() - cpu) / report.answered * 1e6,
            "load CPU %": report.cpu_share * 100,
        }
        return (report.rate, notes), report.answered

    def report(
        self,
        served: Served,
        paths: list[str],
        seed: int,
        *,
        method: str = "POST",
        known: bool = True,
        body: str = "",
        pace: float = 0.0,
        once: bool = False,
    ) -> Report:
        """Return what the load says for itself."""
        tokens = self.tokens if known else []
        order = Order(
            served.port,
            paths,
            tokens,
            seed,
            self.warmup_seconds,
            self.seconds,
            method=method,
            addresses=self.addresses,
            body=body,
            pace=pace,
            once=once,
        )
        done = subprocess.run(
            command("load"),
            env=environment(),
            input=json.dumps(asdict(order)),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ProcessFailed(f"The load ended early:\n{done.stderr}\n{served.said()}")
        return Report(**json.loads(done.stdout))


def run(bench: Bench) -> list[Comparison]:
    """Requests/s at 64 connections, several hundred videos and several thousand viewers."""
    secret = secrets.token_urlsafe(32)
    viewers = [f"viewer-{number}" for number in range(bench.size(3_000, 100))]
    tokens = [mint_token(secret, viewer) for viewer in viewers]
    clients = Clients(tokens, 0.5, bench.size(3, 1))
    with ExitStack() as stack:
        one = stack.enter_context(backlot(bench, secret, "one"))
        apart = stack.enter_context(backlot(bench, secret, "apart", apart=True))
        planned = stack.enter_context(crud(bench, secret, "crud"))
        tight = stack.enter_context(crud(bench, secret, "crud-tight", tight=True))
        measured = bench.interleave(
            bench.size(4, 1),
            {
                NOOP: lambda number: clients.noop(one, number),
                LIKE: lambda number: clients.like(one, number),
                CRUD: lambda number: clients.like(planned, number),
                CRUD_TIGHT: lambda number: clients.like(tight, number),
                APART: lambda number: clients.like(apart, number),
            },
        )
    # The first round warms up: among others, every token is verified once.
    sides = {name: side(name, rounds[1:] or rounds) for name, rounds in measured.items()}
    return [
        Comparison("like", "requests/s", sides[LIKE], sides[NOOP], at_least=0.45),
        Comparison("like", "requests/s", sides[LIKE], sides[CRUD], at_least=4),
        Comparison("like", "requests/s", sides[LIKE], sides[CRUD_TIGHT]),
        Comparison("like", "requests/s", sides[APART], sides[LIKE]),
    ]


Rounds = list[tuple[float, dict[str, float]]]


def side(name: str, rounds: Rounds) -> Side:
    return Side(name, [rate for rate, _ in rounds], medians([notes for _, notes in rounds]))


@contextmanager
def backlot(
    bench: Bench,
    secret: str,
    name: str,
    *,
    apart: bool = False,
    events: int | None = None,
    url: str | None = None,
    roles: str = "commands,queries,projections,workers",
    projected: str = BACKLOT_PROJECTED,
    **more: str,
) -> Iterator[Server]:
    """The whole of Backlot on a log of its own, or on that at a `url`; `apart`: the projections in
    a second process."""
    url = url or bench.log(events or bench.size(30_000, 1_000))
    common = {"KEY_ENCRYPTION_KEY": secrets.token_hex(32), "LOG_LEVEL": "warning", **more}
    common |= {"DATABASE_URL": url, "JWT_SECRET": secret}
    with ExitStack() as stack:
        if apart:
            roles = "commands,queries,workers"
            folder = bench.folder / f"{name}-projections"
            settings = {**common, "BACKLOT_ROLES": "projections", "BACKLOT_DATA_DIR": "data"}
            stack.enter_context(serving("server", folder, health="/readyz", settings=settings))
        settings = {**common, "BACKLOT_ROLES": roles, "BACKLOT_DATA_DIR": "data"}
        served = stack.enter_context(
            serving("server", bench.folder / name, health="/readyz", settings=settings)
        )
        server = Server(served, url, BACKLOT_RECORDED, projected, more.get("REDIS_URL"))
        _await_projected(server)
        yield server


@contextmanager
def crud(
    bench: Bench, secret: str, name: str, *, tight: bool = False, **more: str
) -> Iterator[Server]:
    url = bench.database()
    crud_app.prepare(url, VIDEOS)
    settings = {"DATABASE_URL": url, "JWT_SECRET": secret, "LOG_LEVEL": "warning", **more}
    settings |= {crud_app.TIGHT: "yes"} if tight else {}
    with serving("crud_app", bench.folder / name, health="/healthz", settings=settings) as served:
        # Its counts are right at once: that is what it has for its price.
        yield Server(served, url, CRUD_RECORDED, CRUD_RECORDED, more.get("REDIS_URL"))


def _ask(url: str, question: str) -> int:
    with psycopg.connect(url) as conn:
        row = conn.execute(question).fetchone()
    return int(row[0]) if row else 0


def redis_seconds(server: Server) -> float:
    """CPU seconds that the server's Redis has taken; 0 without one."""
    if server.redis_url is None:
        return 0.0
    with redis.Redis.from_url(server.redis_url) as client:
        told = client.info("cpu")
    return float(told["used_cpu_user"] + told["used_cpu_sys"])


def _await_projected(server: Server) -> float:
    """Seconds until the likes have caught up with what was recorded."""
    started = time.monotonic()
    goal = _ask(server.url, server.recorded)
    while _ask(server.url, server.projected) < goal:
        if time.monotonic() - started > CATCH_UP_SECONDS:
            raise TimeoutError("The likes are not projected.")
        time.sleep(0.01)
    return time.monotonic() - started

"""Replaying read models: against the stock runner, against only reading the log, and beside likes.

A replay is timed as an operator sees it: from asking for it until the copy is switched in, with
its comparison where there is something to compare.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from uuid import uuid4

import psutil
import psycopg
from eventsourcing.persistence import StoredEvent
from psycopg import Connection
from psycopg.rows import TupleRow

from benchmarks import stock
from benchmarks.bench import Bench, say
from benchmarks.delays import Delays, paced_likes
from benchmarks.like import backlot
from benchmarks.log import comment_event, fill, like_event, upload_event
from benchmarks.processes import ProcessFailed, command, environment
from benchmarks.results import Comparison, Side
from engine import checkpoints
from engine.connections import connect
from engine.installation import create, install
from engine.log import Log
from engine.projection import Applier, Projection
from engine.replay.records import Replay, ReplayOptions, ReplayState
from engine.replay.replay import BATCH_EVENTS, carry_on
from engine.replay.requests import begin
from infra.http.auth import mint_token
from infra.logging import configure_logging
from infra.settings import load_settings
from projections.catalog import Catalog
from projections.comments import Comments
from projections.likes import Likes

MIB = 1024 * 1024
MODELS: list[tuple[type[Projection], Callable[[int], StoredEvent], int]] = [
    (Likes, like_event, 150_000),
    (Comments, comment_event, 40_000),
    (Catalog, upload_event, 40_000),
]
"""Each with its events, and how many of them it is measured over."""
STOCK = "stock ProjectionRunner, the same rows"


def run(bench: Bench) -> list[Comparison]:
    """Rates in events/s, memory in MiB, delays in ms."""
    return [*rates(bench), memory(bench), lag(bench)]


def rates(bench: Bench) -> Iterator[Comparison]:
    """Every projection over its log, and a stock runner over as many events as it manages."""
    for kind, make, usual in MODELS:
        yield from _rates(bench, kind(), make, bench.size(usual, 5_000, 4 * usual))


def _rates(
    bench: Bench, model: Projection, make: Callable[[int], StoredEvent], events: int
) -> Iterator[Comparison]:
    url = bench.log(events, make)
    bring_up(url, model, events)
    ours, decode = f"replay of {model.name}, {events:,} events", "only reading and decoding them"
    shared = f"{ours}, --workers 2"
    measured = bench.interleave(
        bench.size(3, 1),
        {
            ours: lambda _: events / replay(url, model),
            shared: lambda _: events / replay(url, model, 2),
            decode: lambda _: events / read_and_decode(url, model, events),
            STOCK: lambda _: by_stock(url, model, bench.size(4, 1)),
        },
    )
    sides = {name: Side(name, values) for name, values in measured.items()}
    least = 0.5 if isinstance(model, Likes) else None
    yield Comparison("replaying", "events/s", sides[ours], sides[STOCK], at_least=20)
    yield Comparison("replaying", "events/s", sides[shared], sides[decode], at_least=least)
    yield Comparison("replaying", "events/s", sides[ours], sides[decode])


def bring_up(url: str, model: Projection, events: int) -> None:
    """Install the live copy and let it catch up, so that a replay has something to replace."""
    conn: Connection[TupleRow]
    with connect(url, "bench") as conn:
        install(conn, [model])
        applier = Applier(model, batch_events=BATCH_EVENTS)
        while (seen := checkpoints.look(conn, model.schema)) and seen.position < events:
            applier.advance(conn, seen.position, events)


def replay(url: str, model: Projection, workers: int = 1) -> float:
    """Replay, with comparison and switch; seconds from asking for it."""
    started = time.perf_counter()
    ended = _once(url, model, workers)
    if ended.state is not ReplayState.SWITCHED:
        raise RuntimeError(f"The replay is {ended.state}: {ended.error}")
    return time.perf_counter() - started


def read_and_decode(url: str, model: Projection, events: int) -> float:
    """Seconds to read the same log in the same windows, and decode it, and nothing else."""
    log = Log(model.events, batch_events=BATCH_EVENTS)
    conn: Connection[TupleRow]
    with connect(url, "bench") as conn:
        started, position = time.perf_counter(), 0
        while position < events:
            window = log.read(conn, position, events)
            for stored in window.events:
                stored.decode()
            position = window.until
        return time.perf_counter() - started


def by_stock(url: str, model: Projection, seconds: int) -> float:
    """The stock runner's events/s, from where it stopped the last time."""
    rows = model.beside(f"stock_{model.name}")
    with psycopg.connect(url, autocommit=True) as conn:
        if conn.execute("SELECT to_regnamespace(%s)", (rows.schema,)).fetchone() == (None,):
            create(conn, rows)
    return stock.project(url, seconds, *stock.rows_of(rows))


def memory(bench: Bench) -> Comparison:
    """Resident memory of a process that replays, at its end, for a log ten times as long."""
    first, last = bench.size(15_000, 2_000, 100_000), bench.size(150_000, 20_000, 1_000_000)
    url = bench.log(first)
    few = _ask_memory(url, first)
    say(f"filling the log up to {last:,} events")
    fill(url, last)
    return Comparison("replaying", "MiB", _ask_memory(url, last), few, at_most=1.1)


def _ask_memory(url: str, events: int) -> Side:
    done = subprocess.run(
        command("replaying", url, str(events)),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ProcessFailed(f"The replaying process ended: {done.stderr}")
    return Side(f"peak memory of replaying {events:,} events", [json.loads(done.stdout)])


def lag(bench: Bench) -> Comparison:
    """How long a like takes to be visible at 500 likes/s, while a replay runs and without one."""
    secret = secrets.token_urlsafe(32)
    tokens = [mint_token(secret, f"viewer-{n}") for n in range(bench.size(3_000, 100))]
    seconds = bench.size(8, 1)
    with backlot(bench, secret, "lagging", events=bench.size(150_000, 2_000)) as server:
        quiet = asyncio.run(paced_likes(server, tokens, seconds))
        with _replaying_always(server.url):
            busy = asyncio.run(paced_likes(server, tokens, seconds))
    return Comparison(
        "replaying",
        "ms (median)",
        _side("like to visible, likes being replayed", busy),
        _side("like to visible, no replay", quiet),
        at_most=2,
    )


def _side(name: str, delays: Delays) -> Side:
    return Side(name, [median(delays.visible)], delays.notes())


@contextmanager
def _replaying_always(url: str) -> Iterator[None]:
    """One replay of the likes after another, in a process of its own, as operators start them."""
    with subprocess.Popen(
        command("replaying", url, "0"), env=environment(), stdin=subprocess.PIPE
    ) as process:
        try:
            time.sleep(1)
            yield
            if process.poll() is not None:
                raise ProcessFailed("The replaying process ended early.")
        finally:
            process.terminate()


def serve(url: str, events: int) -> None:
    """Replay the likes once and tell the peak of the memory used (MiB); with 0 events, for ever."""
    model = Likes()
    if events:
        bring_up(url, model, events)
    while not events:
        _once(url, model)
    _once(url, model)
    print(json.dumps(_peak()), flush=True)


def _once(url: str, model: Projection, workers: int = 1) -> Replay:
    options = ReplayOptions(confirmed=True, workers=workers)
    with psycopg.connect(url, autocommit=True) as conn:
        asked = begin(conn, model, options, requested_by="bench", operation_id=uuid4())
    return carry_on(url, asked.id, {model.name: model})


def _peak() -> float:
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - a kernel's file
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return float(psutil.Process().memory_info().rss) / MIB


if __name__ == "__main__":
    # Logs to stderr: standard output carries the answer.
    configure_logging(load_settings({"LOG_LEVEL": "warning"}).logs)
    serve(sys.argv[1], int(sys.argv[2]))

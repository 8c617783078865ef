"""Projecting likes from a log that exists: against the library's own projection runner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

from benchmarks import stock
from benchmarks.bench import Bench
from benchmarks.results import Comparison, Side
from engine.connections import connect
from engine.installation import create, drop, install
from engine.projection_subscription import ProjectionHost
from engine.subscription import Notifications, State
from infra.cancellation import alongside
from projections.likes import Likes

OURS, STOCK = "ours, batches with their position", "stock ProjectionRunner, a commit per event"
LOOK_SECONDS = 0.02
MOST_SECONDS = 600.0


def run(bench: Bench) -> list[Comparison]:
    """Rates in events/s: ours over the whole log, the stock one over as much as it manages."""
    events, rounds = bench.size(200_000, 5_000), bench.size(3, 1)
    url = bench.log(events)
    rates = bench.interleave(
        rounds,
        {
            OURS: lambda _: from_nothing(url, events),
            STOCK: lambda _: stock.project(url, bench.size(6, 1)),
        },
    )
    sides = {name: Side(name, values) for name, values in rates.items()}
    return [Comparison("projecting", "events/s", sides[OURS], sides[STOCK], at_least=20)]


def from_nothing(url: str, events: int) -> float:
    """Build the likes from an empty copy up to that position; events/s, start included."""
    likes = Likes()
    with psycopg.connect(url, autocommit=True) as conn:
        drop(conn, likes.schema)
        create(conn, likes)
        started = time.perf_counter()
        with projecting(url, likes) as host:
            await_position(conn, host, events)
        return events / (time.perf_counter() - started)


@contextmanager
def projecting(url: str, likes: Likes) -> Iterator[ProjectionHost]:
    """The projection as a process of Backlot runs it."""
    with connect(url, "bench") as conn:
        install(conn, [likes])
    notifications = Notifications(url)
    host = ProjectionHost(url, [likes], notifications)
    loop, done = asyncio.new_event_loop(), asyncio.Event()

    async def work() -> None:
        async with alongside(notifications.run(), host.run()):
            await done.wait()

    thread = Thread(target=loop.run_until_complete, args=(work(),))
    thread.start()
    try:
        yield host
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


def await_position(conn: Connection[TupleRow], host: ProjectionHost, position: int) -> None:
    """Return when the likes have applied that much of the log. Raises RuntimeError if they can't.

    `host` is asked only whether it still runs.
    """
    deadline = time.monotonic() + MOST_SECONDS
    while time.monotonic() < deadline:
        row = conn.execute(
            "SELECT position FROM backlot_checkpoints WHERE subscription = 'likes'"
        ).fetchone()
        if row is not None and row[0] >= position:
            return
        broken = [status for status in host.status() if status.state is State.STOPPED]
        if broken:
            raise RuntimeError(f"The projection stopped: {broken[0].detail}")
        time.sleep(LOOK_SECONDS)
    raise TimeoutError(f"The projection did not reach {position} in {MOST_SECONDS:.0f} s.")

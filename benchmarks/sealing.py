"""What sealing costs those who append: beside them in their process, and in one of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from threading import Event, Thread

import psycopg

from backlot.demo.client import stop
from benchmarks.append import CALLERS, by_tasks
from benchmarks.bench import Bench, medians
from benchmarks.log import first_likes
from benchmarks.processes import ROOT, command, environment
from benchmarks.results import Comparison, Side
from benchmarks.sealer import make_sealer
from engine.event_store import GroupCommitRecorder, open_recorder
from infra.settings import load_settings
from workers.maintenance import LONGEST_PAUSE_SECONDS

ALONE = "appends, nobody seals"
BESIDE = "appends, sealed by the same process"
APART = "appends, sealed by another process"
STOP_SECONDS = 30.0
LAG = "lag at the end"


def run(bench: Bench) -> list[Comparison]:
    """Rates in events/s, each round long enough for many seals; how far these are behind."""
    count = CALLERS * bench.size(800, 4)
    sets = [first_likes(count, prefix=f"sealing-{number}") for number in range(bench.size(7, 2))]
    with ExitStack() as stack:
        urls = {name: bench.database() for name in (ALONE, BESIDE, APART)}
        recorders = {name: _recorder(url, stack) for name, url in urls.items()}
        lags: dict[str, list[Mapping[str, float]]] = {BESIDE: [], APART: []}

        def sealed(name: str, number: int) -> float:
            sealing = beside if name == BESIDE else apart
            with sealing(urls[name]):
                rate = by_tasks(recorders[name], sets[number])
                lags[name].append({LAG: _lag(urls[name])})
                _await_sealed(urls[name])
            return rate

        rates = bench.interleave(
            len(sets),
            {
                ALONE: lambda number: by_tasks(recorders[ALONE], sets[number]),
                BESIDE: lambda number: sealed(BESIDE, number),
                APART: lambda number: sealed(APART, number),
            },
        )
    # The first round warms up.
    alone = Side(ALONE, rates[ALONE][1:])
    return [
        Comparison(
            "sealing",
            "events/s",
            Side(name, rates[name][1:], medians(lags[name][1:])),
            alone,
            at_least=0.95,
        )
        for name in (APART, BESIDE)
    ]


@contextmanager
def beside(url: str) -> Iterator[None]:
    """A sealer in a thread, as the embedded shape has it."""
    ended = Event()

    def seal(folder: str) -> None:
        sealer = make_sealer(url, folder)
        while not ended.is_set():
            if sealer.turn() == 0:
                ended.wait(LONGEST_PAUSE_SECONDS)
        sealer.close()

    with TemporaryDirectory() as folder:
        thread = Thread(target=seal, args=(folder,))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def apart(url: str) -> Iterator[None]:
    """A sealer in a process of its own."""
    process = subprocess.Popen(
        command("sealer", url), cwd=ROOT, env=environment(), stdout=subprocess.PIPE
    )
    try:
        if process.stdout is None or not process.stdout.readline():
            raise RuntimeError("the sealer's process did not start")
        yield
    finally:
        stop(process, STOP_SECONDS)
        if process.stdout is not None:
            process.stdout.close()


def _recorder(url: str, stack: ExitStack) -> GroupCommitRecorder:
    recorder = open_recorder(url)
    stack.callback(recorder.close)
    return recorder


def _lag(url: str) -> int:
    with psycopg.connect(url) as conn:
        row = conn.execute(
            "SELECT (SELECT coalesce(max(notification_id), 0) FROM backlot_events)"
            " - (SELECT coalesce(max(last), 0) FROM backlot_seals)"
        ).fetchone()
    return int(row[0]) if row else 0


def _await_sealed(url: str) -> None:
    """The next round must not have to make up for this one; an unfinished block may stay."""
    while _lag(url) >= load_settings({}).seals.block_events:
        time.sleep(0.1)

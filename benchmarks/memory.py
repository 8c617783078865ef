"""Memory of projecting: a process that has applied ten times the events should need no more."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import IO, Any

import psutil
import psycopg

from benchmarks.bench import Bench, say
from benchmarks.log import fill
from benchmarks.processes import ProcessFailed, command, environment
from benchmarks.projecting import await_position, projecting
from benchmarks.results import Comparison, Side
from infra.logging import configure_logging
from infra.settings import load_settings
from projections.likes import Likes

MIB = 1024 * 1024


def run(bench: Bench) -> list[Comparison]:
    """Resident memory in MiB of one process after a part of the log, and after ten times that."""
    first, last = bench.size(50_000, 2_000, 100_000), bench.size(500_000, 20_000, 1_000_000)
    url = bench.log(first)
    with subprocess.Popen(
        command("memory", url),
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        few = _ask(process, first)
        say(f"filling the log up to {last:,} events")
        fill(url, last)
        many = _ask(process, last)
    return [Comparison("memory of projecting", "MiB", many, few, at_most=1.1)]


def _ask(process: subprocess.Popen[str], position: int) -> Side:
    if process.stdin is None or process.stdout is None:
        raise ProcessFailed("The projecting process has no pipes.")
    say(f"projecting up to {position:,} events")
    print(position, file=process.stdin, flush=True)
    answer = process.stdout.readline()
    if not answer:
        raise ProcessFailed(f"The projecting process ended: {process.wait()}.")
    notes: dict[str, float] = json.loads(answer)
    return Side(f"ours, after {position:,} events", [notes.pop("resident")], notes)


def serve(url: str, orders: IO[str]) -> None:
    """Project likes; for each position read from `orders`, tell the memory used once there."""
    with projecting(url, Likes()) as host, psycopg.connect(url, autocommit=True) as conn:
        for line in orders:
            await_position(conn, host, int(line))
            print(json.dumps(_memory()), flush=True)


def _memory() -> dict[str, Any]:
    used = psutil.Process().memory_full_info()
    return {"resident": used.rss / MIB, "unique": used.uss / MIB}


if __name__ == "__main__":
    # Logs to stderr: standard output carries the answers.
    configure_logging(load_settings({"LOG_LEVEL": "warning"}).logs)
    serve(sys.argv[1], sys.stdin)

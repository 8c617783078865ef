"""What every benchmark stands on: one shipped PostgreSQL, fresh databases, sizes, fair rounds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TypeVar

import psycopg
from eventsourcing.persistence import StoredEvent
from psycopg import sql

from backlot.features import TABLES
from benchmarks.log import fill, like_event
from engine.installation import make_tables
from infra.postgres.server import EmbeddedPostgres

T = TypeVar("T")
OF_SEVERAL_PROGRAMS = {"max_connections": "300"}


class Scale(StrEnum):
    """How much a run measures with."""

    QUICK = "quick"
    USUAL = "usual"
    LARGE = "large"


@dataclass(frozen=True)
class Bench:
    """One run: its server, its folder, and how much it measures with."""

    server: EmbeddedPostgres
    folder: Path
    scale: Scale
    _numbers: Iterator[int] = field(default_factory=count)
    _logs: dict[tuple[str, int], str] = field(default_factory=dict)

    def size(self, usual: int, quick: int, large: int | None = None) -> int:
        """Return how much of something: enough to measure, just enough to run, or what there is to
        measure for whoever has hours."""
        sizes = {Scale.USUAL: usual, Scale.QUICK: quick, Scale.LARGE: large or usual}
        return sizes[self.scale]

    def database(self, *, template: str = "template1") -> str:
        """The URL of a new database with the tables of Backlot, empty or a copy."""
        name = f"bench_{next(self._numbers)}"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        with psycopg.connect(self.server.url, autocommit=True) as conn:
            conn.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        url = self.server.url_of(name)
        with psycopg.connect(url, autocommit=True) as conn:
            make_tables(conn, *TABLES)
        return url

    def log(self, events: int, make: Callable[[int], StoredEvent] = like_event) -> str:
        """The URL of a new database whose event store holds that many events, as `make` gives."""
        key = make.__name__, events
        if key not in self._logs:
            say(f"filling a log with {events:,} events")
            url = self.database()
            fill(url, events, make)
            self._logs[key] = str(psycopg.conninfo.conninfo_to_dict(url)["dbname"])
        return self.database(template=self._logs[key])

    def interleave(
        self, rounds: int, contenders: Mapping[str, Callable[[int], T]]
    ) -> dict[str, list[T]]:
        """Let the contenders take turns, so that a busy minute of the machine hits all alike.

        Each gets the number of the round, from 0, and may return what it likes.
        """
        results: dict[str, list[T]] = {name: [] for name in contenders}
        for number in range(rounds):
            for name, run in contenders.items():
                say(f"round {number + 1} of {rounds}: {name}")
                results[name].append(run(number))
        return results

    @property
    def postgres_version(self) -> str:
        with psycopg.connect(self.server.url) as conn:
            row = conn.execute("SHOW server_version").fetchone()
        return str(row[0]).split()[0] if row else "unknown"


@contextmanager
def open_bench(scale: Scale) -> Iterator[Bench]:
    """A bench on a server of its own, as it is shipped: durable, with its default settings.

    Only its connections are more: several programs use it at once, where elsewhere one does.
    """
    with TemporaryDirectory(prefix="backlot-bench-") as name:
        folder = Path(name)
        with EmbeddedPostgres(folder / "postgres", settings=OF_SEVERAL_PROGRAMS) as server:
            yield Bench(server, folder, scale)


def medians(notes: list[Mapping[str, float]]) -> dict[str, float]:
    """The median of each note over the rounds."""
    return {name: median(note[name] for note in notes) for name in notes[0]} if notes else {}


def say(line: str) -> None:
    """Progress, for whoever watches; the results alone go to standard output."""
    print(f"  {line}", file=sys.stderr, flush=True)

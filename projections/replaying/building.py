"""Builds a copy from the log: the next window is read and decoded while the last one is applied."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Full, Queue
from threading import Event, Thread
from types import TracebackType
from typing import Protocol, Self

from eventsourcing.persistence import MapperDeserialisationError
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.checkpoints import Superseded
from engine.connections import connect, is_outage
from infra.cancellation import join
from projections.applying import Applier, Step
from projections.log import LogWindow
from projections.projection import Batch, RangeProjection

LOOK_UP_SECONDS = 0.2
TURN_SECONDS = 0.0005


class Pacer(Protocol):
    """Hears of progress, and says whether to go on."""

    def at(self, position: int) -> bool:
        """The copy is at that position; False when the work is to end there."""


@dataclass(frozen=True, slots=True)
class PrefetchedWindow:
    """A window with its events, or with what kept them from being decoded."""

    before: int
    window: LogWindow
    batch: Batch | Exception


class ReadAhead:
    """A thread with a connection of its own that is one window ahead."""

    def __init__(self, database_url: str, applier: Applier, before: int, goal: int) -> None:
        self._database_url = database_url
        self._applier = applier
        self._before, self._goal = before, goal
        self._queue: Queue[PrefetchedWindow | Exception | None] = Queue(maxsize=1)
        self._ended = Event()
        self._thread = Thread(target=self._run, name="replay reader", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        join(self._thread)

    def __iter__(self) -> Iterator[PrefetchedWindow]:
        """The windows up to the goal; raises what reading raised, such as OperationalError."""
        while (ahead := self._queue.get()) is not None:
            if isinstance(ahead, Exception):
                raise ahead
            yield ahead

    def _run(self) -> None:
        try:
            with connect(self._database_url, "replay reader") as conn:
                self._read(conn)
        except Exception as error:  # noqa: BLE001 - raised again where the windows are taken
            self._put(error)
        else:
            self._put(None)

    def _read(self, conn: Connection[TupleRow]) -> None:
        before = self._before
        while before < self._goal and not self._ended.is_set():
            window = self._applier.log.read(conn, before, self._goal)
            self._put(PrefetchedWindow(before, window, self._decoded(window)))
            before = window.until

    def _decoded(self, window: LogWindow) -> Batch | Exception:
        try:
            return self._applier.decode(window)
        except MapperDeserialisationError as error:
            # Which event it was is found, and dealt with, by whoever applies.
            return error

    def _put(self, ahead: PrefetchedWindow | Exception | None) -> None:
        while not self._ended.is_set():
            try:
                self._queue.put(ahead, timeout=LOOK_UP_SECONDS)
            except Full:
                continue
            return


def build(
    database_url: str,
    conn: Connection[TupleRow],
    applier: Applier,
    before: int,
    goal: int,
    pace: Pacer,
) -> int:
    """Apply the log after `before` up to `goal`; returns where it ended.

    That is short of the goal when `pace` said so, or at an event that stopped the copy. Raises
    Superseded, and what the database raises when it is away.
    """
    if isinstance(applier.projection, RangeProjection):
        return _build_ranges(conn, applier, before, goal, pace)
    position = before
    with _quick_turns(), ReadAhead(database_url, applier, before, goal) as windows:
        for ahead in windows:
            position = _apply(conn, applier, ahead).until
            if not pace.at(position) or position < ahead.window.until:
                break
    return position


@contextmanager
def _quick_turns() -> Iterator[None]:
    """Let the thread that applies go on soon after PostgreSQL has answered it.

    The thread that decodes never waits for anything, and would keep the interpreter for 5 ms at
    each of the answers: a tenth of the whole replay.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(TURN_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _apply(conn: Connection[TupleRow], applier: Applier, ahead: PrefetchedWindow) -> Step:
    before, window, batch = ahead.before, ahead.window, ahead.batch
    if isinstance(batch, Exception):
        return applier.sort_out(conn, before, window, batch)
    try:
        return applier.apply(conn, before, window, batch)
    except Superseded:
        raise
    except Exception as error:
        if is_outage(error):
            raise
        return applier.sort_out(conn, before, window, error)


def _build_ranges(
    conn: Connection[TupleRow], applier: Applier, position: int, goal: int, pace: Pacer
) -> int:
    while position < goal:
        step = applier.advance(conn, position, goal)
        position = step.until
        if step.broken or not pace.at(position):
            break
    return position

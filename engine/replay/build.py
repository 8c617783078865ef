"""Build a copy from the log, in this process or in parts by several.

The next window is read and decoded while the last one is applied.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event as ProcessEvent
from queue import Full, Queue
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import structlog
from eventsourcing.persistence import MapperDeserialisationError
from psycopg import Connection, OperationalError
from psycopg.errors import DeadlockDetected
from psycopg.rows import TupleRow

from engine import checkpoints
from engine.applier import Applier, Step
from engine.checkpoints import Checkpoint, CheckpointStatus, Superseded, of_part
from engine.connections import connect, is_outage
from engine.log import Log, LogWindow, StreamShare
from engine.projection import Batch, Projection, RangeProjection
from engine.replay.cutover import advance_to, look
from engine.replay.records import Replay
from infra.cancellation import join
from infra.errors import describe

log = structlog.get_logger(__name__)

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

    Faults = SimpleQueue[tuple[bool, str]]
    """Whether it was an outage, and what went wrong."""

LOOK_UP_SECONDS = 0.2
TURN_SECONDS = 0.0005
LOOK_SECONDS = 0.1
STOP_SECONDS = 10.0
# What comes last is rare: between looks whether to end, so many positions.
FINISH_POSITIONS = 1_000_000


class Pacer(Protocol):
    """Hears of progress, and says whether to go on."""

    def at(self, position: int) -> bool:
        """The copy is at that position; False when the work is to end there."""


@dataclass(frozen=True, slots=True)
class PrefetchedWindow:
    """A window with its events, or with the error of decoding them."""

    before: int
    window: LogWindow
    batch: Batch | Exception


class PartFailed(Exception):
    """A process that built a part ended otherwise than it should."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """What the processes are given: the copy that they build together, how far, and the means."""

    database_url: str
    replay: Replay
    copy: Projection
    goal: int
    batch_events: int

    def applier(self, part: StreamShare) -> Applier:
        """Return what applies a part's streams, but not what comes last."""
        wanted = [event for event in self.copy.events if event not in self.copy.absorbing]
        place = of_part(self.copy.schema, self.copy.version, part.number)
        events = Log(wanted, batch_events=self.batch_events, part=part)
        return self._applier(events, place)

    def last(self) -> Applier:
        """Return what applies the events that come when all parts are done."""
        events = Log(self.copy.absorbing, batch_events=self.batch_events)
        return self._applier(events, None)

    def _applier(self, events: Log, place: Checkpoint | None) -> Applier:
        size = self.batch_events
        return Applier(self.copy, batch_events=size, place=place, log=events)


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
        """Yield the windows up to the goal.

        Raise what reading raised, such as OperationalError.
        """
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
            # Which event it was is found when the window is applied.
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
    """Apply the log after `before` up to `goal`; return where it ended.

    That is short of the goal when `pace` said so, or at an event that stopped the copy. Raise
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

    The thread that decodes never waits for anything, and would hold the interpreter for 5 ms at
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
    return applier.take_in(conn, before, window, batch)


def _build_ranges(
    conn: Connection[TupleRow], applier: Applier, position: int, goal: int, pace: Pacer
) -> int:
    while position < goal:
        step = applier.advance(conn, position, goal)
        position = step.until
        if step.broken or not pace.at(position):
            break
    return position


class Orders:
    """What a process hears: that all are to end, or that the one which gave orders is gone."""

    def __init__(self, stopping: ProcessEvent) -> None:
        self._stopping = stopping

    def at(self, position: int) -> bool:
        parent = multiprocessing.parent_process()
        return not self._stopping.is_set() and (parent is None or parent.is_alive())


def prepare(conn: Connection[TupleRow], replay: Replay, goal: int) -> int:
    """Make the parts' rows where there are none; return the position that they are to reach."""
    return checkpoints.begin_parts(
        conn, replay.schema, replay.version, count=replay.workers, target=goal
    )


def behind(conn: Connection[TupleRow], replay: Replay) -> int:
    """Return how far the part is that is behind all others.

    0 when a cancelled replay has lost them.
    """
    return min(positions_of(conn, replay), default=0)


def positions_of(conn: Connection[TupleRow], replay: Replay) -> list[int]:
    """Return how far each part is, by number; none before they are made."""
    return [position for position, _ in checkpoints.parts(conn, replay.schema)]


def build_parts(conn: Connection[TupleRow], sharing: Sharing, pace: Pacer) -> None:
    """Build all parts until they are at the goal, `pace` says to end, or one of them stops.

    Raise PartFailed, and OperationalError when a process has lost the database.
    """
    context = multiprocessing.get_context("spawn")
    stopping, faults = context.Event(), context.SimpleQueue()
    count = sharing.replay.workers
    processes: list[BaseProcess] = [
        context.Process(
            target=work, args=(sharing, StreamShare(number, count), stopping, faults), daemon=True
        )
        for number in range(count)
    ]
    try:
        for process in processes:
            process.start()
        _watch(conn, sharing.replay, processes, stopping, pace)
    finally:
        _end(processes, stopping)
    _raise_fault(processes, faults)


def finish(conn: Connection[TupleRow], sharing: Sharing, pace: Pacer) -> bool:
    """Apply what comes last and move the copy to the goal; return False when it is to end before.

    Raise CopyStopped.
    """
    applier, schema = sharing.last(), sharing.copy.schema
    while (position := look(conn, schema).position) < sharing.goal:
        advance_to(conn, applier, min(sharing.goal, position + FINISH_POSITIONS))
        if not pace.at(sharing.goal):
            return False
    checkpoints.drop_parts(conn, schema)
    return True


def _watch(
    conn: Connection[TupleRow],
    replay: Replay,
    processes: Sequence[BaseProcess],
    stopping: ProcessEvent,
    pace: Pacer,
) -> None:
    while any(process.is_alive() for process in processes):
        for process in processes:
            process.join(LOOK_SECONDS / len(processes))
        stopped = look(conn, replay.schema).status == CheckpointStatus.STOPPED
        failed = any(process.exitcode for process in processes)
        if not pace.at(behind(conn, replay)) or stopped or failed:
            stopping.set()


def _end(processes: Sequence[BaseProcess], stopping: ProcessEvent) -> None:
    stopping.set()
    for process in processes:
        if process.pid is not None:
            process.join(STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _raise_fault(processes: Sequence[BaseProcess], faults: Faults) -> None:
    if not faults.empty():
        outage, error = faults.get()
        raise OperationalError(error) if outage else PartFailed(error)
    codes = [process.exitcode for process in processes if process.exitcode]
    if codes:
        raise PartFailed(f"A process that built a part ended with exit code {codes[0]}.")


def work(sharing: Sharing, part: StreamShare, stopping: ProcessEvent, faults: Faults) -> None:
    """A process: build one part. An error that is not an event's goes to `faults`, exit code 1."""
    # Ctrl-C reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with connect(sharing.database_url, f"replay part {part.number}") as conn:
            _build(conn, sharing, part, Orders(stopping))
    except Superseded as reason:
        log.info("replay_part_superseded", part=part.number, reason=str(reason))
    except Exception as error:
        faults.put((is_outage(error), describe(error)))
        raise SystemExit(1) from error


def _build(conn: Connection[TupleRow], sharing: Sharing, part: StreamShare, orders: Orders) -> None:
    applier = sharing.applier(part)
    while True:
        before = dict(enumerate(positions_of(conn, sharing.replay))).get(part.number)
        if before is None:
            raise Superseded("The replay was cancelled.")
        try:
            build(sharing.database_url, conn, applier, before, sharing.goal, orders)
        except DeadlockDetected:
            # Parts that sort out a bad event, one by one, may wait for each other's counts.
            continue
        return

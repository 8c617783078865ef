"""Build a copy from the log, in this process or in parts by several.

The next window is read and decoded while the last one is applied.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event as ProcessEvent
from queue import Full, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from eventsourcing.persistence import MapperDeserialisationError
from psycopg import Connection, OperationalError
from psycopg.errors import DeadlockDetected
from psycopg.rows import TupleRow

from engine.checkpoints import CheckpointStatus, Superseded
from engine.connections import connect, is_outage
from engine.log import MAPPER, Ciphers, Log, LogWindow, StreamShare
from engine.projection import Applier, Batch, Projection, RangeProjection
from engine.replay.cutover import advance_to, look
from engine.replay.records import Replay, drop_parts, of_part, parts
from infra.cancellation import join
from infra.errors import describe
from infra.interpreter import quick_turns

log = structlog.get_logger(__name__)

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

    Faults = SimpleQueue[tuple[bool, str]]
    """Whether it was an outage, and what went wrong."""

GoesOn = Callable[[int], bool]
"""Hears at which position the copy is; returns whether the work goes on behind it."""

PUT_SECONDS = 0.2
LOOK_SECONDS = 0.1
STOP_SECONDS = 10.0
# What comes last is rare: between looks whether to end, so many positions.
FINISH_POSITIONS = 1_000_000


class PrefetchedWindow(NamedTuple):
    """A window after the position `before`, with its events or the error of decoding them."""

    before: int
    window: LogWindow
    batch: Batch | Exception


class PartFailed(Exception):
    """A process that built a part ended otherwise than it should."""


@dataclass(frozen=True, slots=True)
class SharedBuild:
    """What the processes are given: the copy that they build together, how far, and the means."""

    database_url: str
    replay: Replay
    copy: Projection
    goal: int
    batch_events: int
    ciphers: Ciphers | None = field(default_factory=lambda: MAPPER.ciphers)

    def applier(self, part: StreamShare | None = None) -> Applier:
        """Return what applies the streams of a part, or without one what comes last of all."""
        copy, size, last = self.copy, self.batch_events, self.copy.absorbing
        if part is None:
            return Applier(copy, batch_events=size, log=Log(last, batch_events=size))
        wanted = [event for event in copy.events if event not in last]
        place = of_part(copy.schema, copy.version, part.number)
        events = Log(wanted, batch_events=size, part=part)
        return Applier(copy, batch_events=size, place=place, log=events)


def build(
    database_url: str,
    conn: Connection[TupleRow],
    applier: Applier,
    before: int,
    goal: int,
    goes_on: GoesOn,
) -> int:
    """Apply the log after `before` up to `goal`; return where it ended.

    That is short of the goal where `goes_on` said no, or at an event that stopped the copy. Raise
    Superseded, and what the database raises when it is away.
    """
    if isinstance(applier.projection, RangeProjection):
        return _build_ranges(conn, applier, before, goal, goes_on)
    position = before
    # The thread that decodes never waits for anything: without that, a tenth of the whole replay.
    with quick_turns(), _read_ahead(database_url, applier, before, goal) as windows:
        for ahead in windows:
            if isinstance(ahead, Exception):
                raise ahead
            position = _apply(conn, applier, ahead)
            if not goes_on(position) or position < ahead.window.until:
                break
    return position


@contextmanager
def _read_ahead(
    database_url: str, applier: Applier, before: int, goal: int
) -> Iterator[Iterator[PrefetchedWindow | Exception]]:
    """Yield the windows up to the goal; a thread reads one window ahead of what is applied."""
    queue: Queue[PrefetchedWindow | Exception | None] = Queue(maxsize=1)
    ended = Event()

    def read() -> None:
        for ahead in _windows(database_url, applier, before, goal):
            if not _put(queue, ahead, ended):
                return

    thread = Thread(target=read, name="replay reader", daemon=True)
    thread.start()
    try:
        yield iter(queue.get, None)
    finally:
        ended.set()
        join(thread)


def _put(queue: Queue[Any], ahead: object, ended: Event) -> bool:
    """Wait until there is room; return False when nobody takes anything any more."""
    while not ended.is_set():
        with suppress(Full):
            queue.put(ahead, timeout=PUT_SECONDS)
            return True
    return False


def _windows(
    database_url: str, applier: Applier, before: int, goal: int
) -> Iterator[PrefetchedWindow | Exception | None]:
    """Read on a connection of its own; the last one is the error of reading, or else None."""
    try:
        with connect(database_url, "replay reader") as conn:
            while before < goal:
                window = applier.log.read(conn, before, goal)
                yield PrefetchedWindow(before, window, _decoded(applier, window))
                before = window.until
    except Exception as error:  # noqa: BLE001 - raised again where the windows are taken
        yield error
    else:
        yield None


def _decoded(applier: Applier, window: LogWindow) -> Batch | Exception:
    try:
        return applier.decode(window)
    except MapperDeserialisationError as error:
        # Which event it was is found when the window is applied.
        return error


def _apply(conn: Connection[TupleRow], applier: Applier, ahead: PrefetchedWindow) -> int:
    before, window, batch = ahead
    if isinstance(batch, Exception):
        return applier.sort_out(conn, before, window, batch).until
    return applier.take_in(conn, before, window, batch).until


def _build_ranges(
    conn: Connection[TupleRow], applier: Applier, position: int, goal: int, goes_on: GoesOn
) -> int:
    while position < goal:
        step = applier.advance(conn, position, goal)
        position = step.until
        if step.broken or not goes_on(position):
            break
    return position


def behind(conn: Connection[TupleRow], replay: Replay) -> int:
    """Return the position of the part that is behind all others; 0 where there are no parts."""
    return min(positions_of(conn, replay), default=0)


def positions_of(conn: Connection[TupleRow], replay: Replay) -> list[int]:
    """Return how far each part is, by number; none before they are made."""
    return [position for position, _ in parts(conn, replay.schema)]


def build_parts(conn: Connection[TupleRow], shared: SharedBuild, goes_on: GoesOn) -> None:
    """Build all parts until they are at the goal, `goes_on` says no, or one of them stops.

    Raise PartFailed, and OperationalError when a process has lost the database.
    """
    context = multiprocessing.get_context("spawn")
    stopping, faults = context.Event(), context.SimpleQueue()
    count = shared.replay.workers
    processes: list[BaseProcess] = [
        context.Process(
            target=work, args=(shared, StreamShare(number, count), stopping, faults), daemon=True
        )
        for number in range(count)
    ]
    try:
        for process in processes:
            process.start()
        _watch(conn, shared.replay, processes, stopping, goes_on)
    finally:
        _end(processes, stopping)
    if not faults.empty():
        outage, error = faults.get()
        raise OperationalError(error) if outage else PartFailed(error)
    if codes := [process.exitcode for process in processes if process.exitcode]:
        raise PartFailed(f"A process that built a part ended with exit code {codes[0]}.")


def finish(conn: Connection[TupleRow], shared: SharedBuild, goes_on: GoesOn) -> bool:
    """Apply what comes last and move the copy to the goal; return False when it is to end before.

    Raise CopyStopped.
    """
    applier, schema = shared.applier(), shared.copy.schema
    while (position := look(conn, schema).position) < shared.goal:
        advance_to(conn, applier, min(shared.goal, position + FINISH_POSITIONS))
        if not goes_on(shared.goal):
            return False
    drop_parts(conn, schema)
    return True


def _watch(
    conn: Connection[TupleRow],
    replay: Replay,
    processes: Sequence[BaseProcess],
    stopping: ProcessEvent,
    goes_on: GoesOn,
) -> None:
    while any(process.is_alive() for process in processes):
        for process in processes:
            process.join(LOOK_SECONDS / len(processes))
        stopped = look(conn, replay.schema).status == CheckpointStatus.STOPPED
        failed = any(process.exitcode for process in processes)
        if not goes_on(behind(conn, replay)) or stopped or failed:
            stopping.set()


def _end(processes: Sequence[BaseProcess], stopping: ProcessEvent) -> None:
    stopping.set()
    for process in processes:
        if process.pid is not None:
            process.join(STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def work(shared: SharedBuild, part: StreamShare, stopping: ProcessEvent, faults: Faults) -> None:
    """Build one part, as a process. What is no event's error goes to `faults`: exit code 1."""
    # Ctrl-C reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    MAPPER.ciphers = shared.ciphers
    try:
        with connect(shared.database_url, f"replay part {part.number}") as conn:
            _build_part(conn, shared, part, stopping)
    except Superseded as reason:
        log.info("replay_part_superseded", part=part.number, reason=str(reason))
    except Exception as error:
        faults.put((is_outage(error), describe(error)))
        raise SystemExit(1) from error


def _build_part(
    conn: Connection[TupleRow], shared: SharedBuild, part: StreamShare, stopping: ProcessEvent
) -> None:
    applier, parent = shared.applier(part), multiprocessing.parent_process()

    def goes_on(position: int) -> bool:
        """Go on until all are to end, or the process that started this one is gone."""
        return not stopping.is_set() and (parent is None or parent.is_alive())

    while positions := positions_of(conn, shared.replay):
        # Parts that sort out a bad event, one by one, may wait for each other's counts.
        with suppress(DeadlockDetected):
            before = positions[part.number]
            build(shared.database_url, conn, applier, before, shared.goal, goes_on)
            return
    raise Superseded("The replay was cancelled.")

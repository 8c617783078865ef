"""Builds a copy in parts, each by a process of its own that applies its share of the streams.

Each part's position moves in the transaction that changes its rows, as that of a copy does. Events
that end what other streams have begun come last, when all parts have reached the target.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import TYPE_CHECKING

import structlog
from psycopg import Connection, OperationalError
from psycopg.errors import DeadlockDetected
from psycopg.rows import TupleRow

from engine import checkpoints
from engine.checkpoints import Checkpoint, Status, Superseded, of_part
from engine.connections import connect, is_outage
from infra.errors import describe
from projections.applying import Applier
from projections.log import Log, StreamShare
from projections.projection import Projection
from projections.replaying.building import Pacer, build
from projections.replaying.rows import Replay
from projections.replaying.switching import advance_to, look

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

    Faults = SimpleQueue[tuple[bool, str]]
    """Whether it was an outage, and what went wrong."""

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.1
STOP_SECONDS = 10.0
# What comes last is rare: between looks whether to end, so many positions.
FINISH_POSITIONS = 1_000_000


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
        """What applies a part's streams, but not what comes last."""
        wanted = [event for event in self.copy.events if event not in self.copy.absorbing]
        place = of_part(self.copy.schema, self.copy.version, part.number)
        events = Log(wanted, batch_events=self.batch_events, part=part)
        return self._applier(events, place)

    def last(self) -> Applier:
        """What applies the events that come when all parts are done."""
        events = Log(self.copy.absorbing, batch_events=self.batch_events)
        return self._applier(events, None)

    def _applier(self, events: Log, place: Checkpoint | None) -> Applier:
        size = self.batch_events
        return Applier(self.copy, batch_events=size, place=place, log=events)


class Orders:
    """What a process hears: that all are to end, or that the one which gave orders is gone."""

    def __init__(self, stopping: Event) -> None:
        self._stopping = stopping

    def at(self, position: int) -> bool:
        parent = multiprocessing.parent_process()
        return not self._stopping.is_set() and (parent is None or parent.is_alive())


def prepare(conn: Connection[TupleRow], replay: Replay, goal: int) -> int:
    """Make the parts' rows where there are none; returns the position that they are to reach."""
    return checkpoints.begin_parts(
        conn, replay.schema, replay.version, count=replay.workers, target=goal
    )


def behind(conn: Connection[TupleRow], replay: Replay) -> int:
    """How far the part is that is behind all others; 0 when a cancelled replay has lost them."""
    return min(positions_of(conn, replay), default=0)


def positions_of(conn: Connection[TupleRow], replay: Replay) -> list[int]:
    """How far each part is, by number; none before they are made."""
    return [position for position, _ in checkpoints.parts(conn, replay.schema)]


def build_parts(conn: Connection[TupleRow], sharing: Sharing, pace: Pacer) -> None:
    """Build all parts until they are at the goal, `pace` says to end, or one of them stops.

    Raises PartFailed, and OperationalError when a process has lost the database.
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
    """Apply what comes last and move the copy itself to the goal; False when told to end before.

    Raises CopyStopped.
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
    stopping: Event,
    pace: Pacer,
) -> None:
    while any(process.is_alive() for process in processes):
        for process in processes:
            process.join(LOOK_SECONDS / len(processes))
        stopped = look(conn, replay.schema).status == Status.STOPPED
        failed = any(process.exitcode for process in processes)
        if not pace.at(behind(conn, replay)) or stopped or failed:
            stopping.set()


def _end(processes: Sequence[BaseProcess], stopping: Event) -> None:
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


def work(sharing: Sharing, part: StreamShare, stopping: Event, faults: Faults) -> None:
    """A process: build one part. An error that is not an event's is told, and ends it with 1."""
    # Ctrl-C reaches the whole group; who gave the orders decides.
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

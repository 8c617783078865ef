"""Runs one projection: takes the lock, follows the log, moves rows and position together.

The connection that applies is the one that holds the lock, so a runner that lost the lock can't
write: the right to run and the means to do it end at the same moment.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from threading import Event, Thread

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from engine import checkpoints, dead_letters
from engine.checkpoints import LOCK_CLASS, Seen, Status, Superseded, lock_key
from infra.cancellation import join
from infra.codec import EventMapper
from projections.applying import Applier
from projections.connecting import Backoff, connect, is_outage
from projections.gauges import Gauges
from projections.poison import describe
from projections.projection import Projection
from projections.replaying.rows import newest

log = structlog.get_logger(__name__)

TAKEOVER_SECONDS = 1.0
# Where no event of a window was wanted, the next may take longer than where some were.
GATHER_UNWANTED_SECONDS = 0.5
MEASURE_AGE_SECONDS = 1.0
LOOK_ASIDE_SECONDS = 1.0
STOP_SECONDS = 10.0
OUTDATED = "version changed: replay needed"
GOES_ON = "version {} goes on until then"
NOT_INSTALLED = "its tables are gone: a restart makes them anew"


class State(StrEnum):
    """What a runner is doing, in this process."""

    STARTING = "starting"
    STANDBY = "standby"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    OUTDATED = "outdated"
    UNAVAILABLE = "unavailable"


def why_outdated(projection: Projection, version: int) -> str:
    """What is said of a live copy of another version than this program's."""
    fed = version in projection.versions
    return f"{OUTDATED}; {GOES_ON.format(version)}" if fed else OUTDATED


@dataclass(frozen=True, slots=True)
class RunnerStatus:
    """A runner as it was when it last looked; lag in positions and in seconds.

    `detail` says why it does not run. Position and lag are known only where it is active.
    """

    name: str
    version: int
    state: State = State.STARTING
    position: int | None = None
    lag_events: int | None = None
    lag_seconds: float | None = None
    detail: str | None = None

    @property
    def in_order(self) -> bool:
        """Whether it follows the log, or leaves that to another process, or rests on purpose."""
        return self.state in (State.RUNNING, State.STANDBY, State.PAUSED)

    @property
    def serves(self) -> bool:
        """Whether its read model can be read, be it old; not so before the runner's first look."""
        return self.state not in (State.STARTING, State.UNAVAILABLE)


class Runner:
    """One projection's thread; see `ProjectionHost` for all of a process."""

    def __init__(
        self,
        database_url: str,
        projection: Projection,
        *,
        wake: Event,
        hurry: Event,
        mapper: EventMapper,
        batch_events: int,
        poll_seconds: float,
    ) -> None:
        self._database_url = database_url
        self._projection = projection
        self._mapper = mapper
        self._batch_events = batch_events
        self._applier = self._applier_of(projection)
        self._wake = wake
        self._hurry = hurry
        self._followers: list[Event] = []
        self._poll_seconds = poll_seconds
        self._stopping = Event()
        self._backoff = Backoff()
        self._gauges = Gauges(projection.name, [str(state) for state in State])
        self._status = RunnerStatus(projection.name, projection.version)
        self._age_measured = 0.0
        self._looked_aside = 0.0
        self._thread = Thread(target=self._run, name=f"projection {projection.name}", daemon=True)

    def follow(self) -> Event:
        """An event that is set whenever this runner has moved; to be asked for before `start`."""
        moved = Event()
        self._followers.append(moved)
        return moved

    def start(self) -> None:
        self._thread.start()

    def ask_to_stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        self._hurry.set()

    def stop(self) -> None:
        """Finish the transaction at hand and end; what was applied is committed."""
        self.ask_to_stop()
        join(self._thread, STOP_SECONDS)
        self._gauges.withdraw()

    def status(self) -> RunnerStatus:
        return self._status

    def _run(self) -> None:
        name = self._projection.name
        while not self._stopping.is_set():
            try:
                with connect(self._database_url, f"projection {name}") as conn:
                    self._serve(conn)
            # Whatever it is, the projection has to go on once it is over.
            except Exception as error:
                log.warning(
                    "projection_interrupted",
                    projection=name,
                    error=describe(error),
                    exc_info=None if is_outage(error) else error,
                )
                self._enter(State.UNAVAILABLE, detail=describe(error))
                self._stopping.wait(self._backoff.next())

    def _serve(self, conn: Connection[TupleRow]) -> None:
        """Compete for the lock, and follow the log while holding it; returns when stopping."""
        while not self._stopping.is_set():
            seen = checkpoints.look(conn, self._projection.schema)
            fed = self._projection.of_version(seen.version) if seen else None
            if fed is None:
                self._enter(State.OUTDATED, detail=OUTDATED if seen else NOT_INSTALLED)
            elif self._try_lock(conn):
                self._applier = self._applier_of(fed)
                self._follow(conn)
                self._unlock(conn)
                continue
            else:
                self._enter(State.STANDBY)
            self._backoff.reset()
            self._stopping.wait(TAKEOVER_SECONDS)

    def _applier_of(self, fed: Projection) -> Applier:
        return Applier(fed, mapper=self._mapper, batch_events=self._batch_events)

    def _try_lock(self, conn: Connection[TupleRow]) -> bool:
        key = (LOCK_CLASS, lock_key(self._projection.schema))
        row = conn.execute("SELECT pg_try_advisory_lock(%s, %s)", key).fetchone()
        return row is not None and bool(row[0])

    def _unlock(self, conn: Connection[TupleRow]) -> None:
        key = (LOCK_CLASS, lock_key(self._projection.schema))
        conn.execute("SELECT pg_advisory_unlock(%s, %s)", key)

    def _follow(self, conn: Connection[TupleRow]) -> None:
        """Apply what comes, until stopping or until the copy is of another version."""
        schema, version = self._projection.schema, self._applier.projection.version
        if checkpoints.retry(conn, schema):
            log.info("projection_retries", projection=self._projection.name)
        self._look_aside(conn)
        while True:
            # Cleared before looking: what is appended, or asked of us, from here on wakes us again.
            self._wake.clear()
            self._hurry.clear()
            if self._stopping.is_set():
                return
            seen = checkpoints.look(conn, schema)
            if seen is None or seen.version != version:
                return
            self._report(conn, seen)
            self._backoff.reset()
            if seen.status != Status.RUNNING or seen.head == seen.position:
                self._wake.wait(self._poll_seconds)
            else:
                self._hurry.wait(self._advance(conn, seen))

    def _advance(self, conn: Connection[TupleRow], seen: Seen) -> float:
        """Apply the next window; returns how long others may gather (seconds): 0 if more waits."""
        try:
            step = self._applier.advance(conn, seen.position, seen.head)
        except Superseded as reason:
            log.info("projection_superseded", projection=self._projection.name, reason=str(reason))
            return self._projection.gather_seconds
        self._gauges.applied(step.applied)
        if step.broken:
            self._look_aside(conn)
        for follower in self._followers:
            follower.set()
        if step.until < seen.head:
            return 0
        return self._projection.gather_seconds if step.applied else GATHER_UNWANTED_SECONDS

    def _report(self, conn: Connection[TupleRow], seen: Seen) -> None:
        """Make position, lag and state known; what takes a query of its own, once a second."""
        lag = seen.head - seen.position
        seconds = self._status.lag_seconds or 0.0
        if lag == 0:
            seconds = 0.0
        elif time.monotonic() - self._age_measured >= MEASURE_AGE_SECONDS:
            self._age_measured = time.monotonic()
            oldest = self._applier.log.recorded_at(conn, seen.position + 1) or seen.updated_at
            seconds = max(0.0, (datetime.now(UTC) - oldest).total_seconds())
        if time.monotonic() - self._looked_aside >= LOOK_ASIDE_SECONDS:
            self._look_aside(conn)
        self._gauges.progress(seen.position, lag, seconds)
        outdated = seen.status == Status.RUNNING and seen.version != self._projection.version
        self._enter(
            State.OUTDATED if outdated else State(seen.status),
            position=seen.position,
            lag_events=lag,
            lag_seconds=seconds,
            detail=why_outdated(self._projection, seen.version) if outdated else seen.error,
        )

    def _look_aside(self, conn: Connection[TupleRow]) -> None:
        """What other processes do here: operators retry what is parked, replays go on."""
        self._looked_aside = time.monotonic()
        self._gauges.parked(dead_letters.count_parked(conn, self._projection.schema))
        self._gauges.replay(newest(conn, self._projection.name))

    def _enter(
        self,
        state: State,
        *,
        position: int | None = None,
        lag_events: int | None = None,
        lag_seconds: float | None = None,
        detail: str | None = None,
    ) -> None:
        before = self._status
        name, version = before.name, before.version
        self._status = RunnerStatus(name, version, state, position, lag_events, lag_seconds, detail)
        if state is before.state:
            return
        self._gauges.state(state)
        if position is None:
            self._gauges.withdraw()
        log.info("projection_state", projection=name, state=str(state), detail=detail)

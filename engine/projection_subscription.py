"""Projections as subscriptions: each follows the log, moving rows and checkpoint together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from engine import checkpoints
from engine.checkpoints import CheckpointStatus, Seen, SubscriptionKind, Superseded
from engine.connections import LeaderLock, ThreadedConnection, is_outage
from engine.dead_letters import LetterStatus, count
from engine.log import LogWindow
from engine.projection import Applier, Projection, Step
from engine.replay.records import Replay, ReplayState, newest
from engine.subscription import (
    EVENTS,
    Handler,
    Notifications,
    Place,
    Restart,
    Resting,
    State,
    Subscription,
    woken,
)
from infra.advisory_locks import copy_lock
from infra.cancellation import together
from infra.errors import describe
from infra.metrics import counter, gauge

log = structlog.get_logger(__name__)

PROJECTION_LAG_EVENTS = gauge(
    "backlot_projection_lag_events",
    "Positions between the end of the event store and the projection.",
    ("projection",),
)
PROJECTION_LAG_SECONDS = gauge(
    "backlot_projection_lag_seconds",
    "Age of the oldest event that the projection has not applied; 0 when it is caught up.",
    ("projection",),
)
PROJECTION_POSITION = gauge(
    "backlot_projection_position",
    "Position up to which the projection has applied the event store.",
    ("projection",),
)
PROJECTION_EVENTS = counter(
    "backlot_projection_events_applied",
    "Events applied by the projection; its rate is the projection's speed.",
    ("projection",),
)
PROJECTION_PARKED = gauge(
    "backlot_projection_parked",
    "Events set aside because the projection failed on them.",
    ("projection",),
)
PROJECTION_STATE = gauge(
    "backlot_projection_state",
    "1 for the state that the projection is in, 0 for the others.",
    ("projection", "state"),
)
REPLAY_STATE = gauge(
    "backlot_replay_state",
    "1 for the state of the projection's last replay, 0 for the others.",
    ("projection", "state"),
)
REPLAY_POSITION = gauge(
    "backlot_replay_position",
    "Position up to which the last replay has applied the event store.",
    ("projection",),
)
REPLAY_EVENTS = gauge(
    "backlot_replay_events", "Events that the last replay has applied.", ("projection",)
)
REPLAY_RATE = gauge(
    "backlot_replay_rate",
    "Positions per second that the last replay makes; 0 when it rests or has ended.",
    ("projection",),
)
REPLAY_SECONDS = gauge(
    "backlot_replay_seconds",
    "How long the last replay has taken, to its end or so far.",
    ("projection",),
)

PROGRESS = (
    *(PROJECTION_POSITION, PROJECTION_LAG_EVENTS, PROJECTION_LAG_SECONDS, PROJECTION_PARKED),
    *(REPLAY_POSITION, REPLAY_EVENTS, REPLAY_RATE, REPLAY_SECONDS),
)
PAUSED = "paused"

# Where no event of a window was wanted, the next may take longer than where some were.
GATHER_UNWANTED_SECONDS = 0.5
MEASURE_AGE_SECONDS = 1.0
OUTDATED = "version changed: replay needed"
GOES_ON = "version {} goes on until then"
NOT_INSTALLED = "its tables are gone: a restart makes them anew"
EVENT_LOG: Place = ("events", 0)


@dataclass(frozen=True, slots=True)
class SubscriptionStatus:
    """A projection's subscription as it was when it last looked; lag in positions and in seconds.

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
        """Whether its read model can be read, be it old; not so before the first look."""
        return self.state not in (State.STARTING, State.UNAVAILABLE)


class Turn(NamedTuple):
    """The checkpoint as it was seen, and the events behind it; None where there are none."""

    seen: Seen
    window: LogWindow | None


def why_outdated(projection: Projection, version: int) -> str:
    """Return the detail of a live copy of another version than this program's."""
    fed = version in projection.versions
    return f"{OUTDATED}; {GOES_ON.format(version)}" if fed else OUTDATED


class LiveCopy:
    """The checkpoint of a live copy and the log behind it.

    Operators pause the copy, and a replay puts another one in its place, so that the checkpoint is
    looked at each time.
    """

    def __init__(
        self,
        projection: Projection,
        *,
        wake: asyncio.Event,
        hurry: asyncio.Event,
        batch_events: int,
    ) -> None:
        self._projection = projection
        self._wake = wake
        self._hurry = hurry
        self._batch_events = batch_events
        self._conn: ThreadedConnection | None = None
        self._is_idle = False
        self.applier = Applier(projection, batch_events=batch_events)
        """Applies events to the copy that was seen last, whatever its version."""

    def prepare(self, conn: Connection[TupleRow]) -> None:
        """The copies' tables are made before anything runs."""

    def look(self, conn: Connection[TupleRow]) -> Mapping[Place, int]:
        seen = checkpoints.look(conn, self._projection.schema)
        if seen is None:
            raise Resting(State.OUTDATED, NOT_INSTALLED)
        projection = self._projection.of_version(seen.version)
        if projection is None:
            raise Resting(State.OUTDATED, OUTDATED)
        self.applier = Applier(projection, batch_events=self._batch_events)
        return {EVENT_LOG: seen.position}

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        self._conn = conn
        self._is_idle = False

    async def fetch(self, at_most_seconds: float) -> Turn:
        if self._conn is None:
            raise RuntimeError("It has not been started.")
        if self._is_idle:
            await woken(self._wake, at_most_seconds)
        # Cleared before looking: what is appended, or asked of us, from here on wakes us again.
        self._wake.clear()
        self._hurry.clear()
        turn = await self._conn.do(self._read)
        self._is_idle = turn.window is None
        return turn

    async def stop(self) -> None:
        self._conn = None

    def _read(self, conn: Connection[TupleRow]) -> Turn:
        """Return the next turn; raise Restart where the live copy is of another version now."""
        seen = checkpoints.look(conn, self._projection.schema)
        if seen is None or seen.version != self.applier.projection.version:
            raise Restart
        if seen.status != CheckpointStatus.RUNNING or seen.head == seen.position:
            return Turn(seen, None)
        return Turn(seen, self.applier.read(conn, seen.position, seen.head))


class ProjectionHandler(Handler[Turn]):
    """Applies what comes to the live copy, and measures how far that is."""

    def __init__(self, projection: Projection, copy: LiveCopy, hurry: asyncio.Event) -> None:
        """`hurry` is set when a query waits for the read model: it ends the gathering."""
        self._projection = projection
        self._copy = copy
        self._hurry = hurry
        self._age_measured = 0.0
        self.followers: list[asyncio.Event] = []
        """Set whenever the read model has moved in this process."""
        self.status = SubscriptionStatus(projection.name, projection.version)

    async def start(self, conn: ThreadedConnection) -> None:
        if await conn.do(checkpoints.retry, self._projection.schema):
            log.info("projection_retries", projection=self._projection.name)

    async def handle(self, conn: ThreadedConnection, batch: Turn) -> None:
        seen, window = batch
        await self._report(conn, seen)
        if window is not None and (pause := await self._take_in(conn, seen, window)):
            await woken(self._hurry, pause)

    async def look_aside(self, conn: ThreadedConnection) -> None:
        """Tell what other processes do here: operators retry what is parked, replays go on."""
        name = self._projection.name
        parked, replay = await conn.do(self._parked_and_newest)
        PROJECTION_PARKED.labels(name).set(parked)
        if replay is None:
            return
        present = PAUSED if replay.paused and not replay.finished else str(replay.state)
        for state in (*ReplayState, PAUSED):
            REPLAY_STATE.labels(name, state).set(state == present)
        REPLAY_POSITION.labels(name).set(replay.position)
        REPLAY_EVENTS.labels(name).set(replay.events_applied)
        REPLAY_RATE.labels(name).set(0 if replay.rests else replay.rate or 0)
        REPLAY_SECONDS.labels(name).set(replay.seconds)

    def _parked_and_newest(self, conn: Connection[TupleRow]) -> tuple[int, Replay | None]:
        of = SubscriptionKind.PROJECTION, self._projection.schema, [LetterStatus.PARKED]
        return count(conn, *of), newest(conn, self._projection.name)

    async def stop(self) -> None:
        self._withdraw()

    def _withdraw(self) -> None:
        """Say nothing of progress, because another process may be making it."""
        for each in PROGRESS:
            each.remove(self._projection.name)
        for state in (*ReplayState, PAUSED):
            REPLAY_STATE.remove(self._projection.name, state)

    def enter(
        self,
        state: State,
        detail: str | None = None,
        position: int | None = None,
        lag_events: int | None = None,
        lag_seconds: float | None = None,
    ) -> None:
        name, version, before = self.status.name, self.status.version, self.status.state
        progress = position, lag_events, lag_seconds
        self.status = SubscriptionStatus(name, version, state, *progress, detail)
        if state is before:
            return
        for each in State:
            PROJECTION_STATE.labels(name, each).set(each == state)
        if position is None:
            self._withdraw()
        log.info("projection_state", projection=name, state=str(state), detail=detail)

    def failed(self, error: Exception) -> None:
        """Log what interrupted the projection."""
        log.warning(
            "projection_interrupted",
            projection=self._projection.name,
            error=describe(error),
            exc_info=None if is_outage(error) else error,
        )

    async def _take_in(self, conn: ThreadedConnection, seen: Seen, window: LogWindow) -> float:
        """Apply a window; return how long others may gather (seconds): 0 if more waits."""
        name, gather_seconds = self._projection.name, self._projection.gather_seconds
        try:
            step: Step = await conn.do(self._copy.applier.take_in, seen.position, window)
        except Superseded as reason:
            log.info("projection_superseded", projection=name, reason=str(reason))
            return gather_seconds
        PROJECTION_EVENTS.labels(name).inc(step.applied)
        if step.broken:
            await self.look_aside(conn)
        for follower in self.followers:
            follower.set()
        if step.until < seen.head:
            return 0
        return gather_seconds if step.applied else GATHER_UNWANTED_SECONDS

    async def _report(self, conn: ThreadedConnection, seen: Seen) -> None:
        """Make position, lag and state known."""
        name, version = self._projection.name, self._projection.version
        lag = seen.head - seen.position
        seconds = await self._lag_seconds(conn, seen) if lag else 0.0
        PROJECTION_POSITION.labels(name).set(seen.position)
        PROJECTION_LAG_EVENTS.labels(name).set(lag)
        PROJECTION_LAG_SECONDS.labels(name).set(seconds)
        state, detail = State(seen.status), seen.error
        if state is State.RUNNING and seen.version != version:
            state, detail = State.OUTDATED, why_outdated(self._projection, seen.version)
        self.enter(state, detail, seen.position, lag, seconds)

    async def _lag_seconds(self, conn: ThreadedConnection, seen: Seen) -> float:
        """Return the age of the oldest event that waits; measured once a second."""
        if time.monotonic() - self._age_measured < MEASURE_AGE_SECONDS:
            return self.status.lag_seconds or 0.0
        self._age_measured = time.monotonic()
        recorded = await conn.do(self._copy.applier.log.recorded_at, seen.position + 1)
        oldest = recorded or seen.updated_at
        return max(0.0, (datetime.now(UTC) - oldest).total_seconds())


class ProjectionHost:
    """All projections of one process; across processes, one subscription of each is active."""

    def __init__(
        self,
        database_url: str,
        projections: Sequence[Projection],
        notifications: Notifications,
        *,
        batch_events: int = 5000,
        poll_seconds: float = 1.0,
    ) -> None:
        """`batch_events` bounds a transaction, `poll_seconds` the delay when a NOTIFY is lost."""
        self._database_url = database_url
        self._notifications = notifications
        self._batch_events = batch_events
        self._poll_seconds = poll_seconds
        self._handlers: dict[str, ProjectionHandler] = {}
        self._subscriptions = [self._subscribe(projection) for projection in projections]

    def follow(self, name: str) -> asyncio.Event:
        """Return an event that is set whenever this projection has moved in this process."""
        moved = asyncio.Event()
        self._handlers[name].followers.append(moved)
        return moved

    async def run(self) -> None:
        """Apply what is recorded until cancelled; what is being applied then is finished."""
        await together(*(subscription.run() for subscription in self._subscriptions))

    def status(self) -> list[SubscriptionStatus]:
        """Return what each subscription does, without a query."""
        return [handler.status for handler in self._handlers.values()]

    def _subscribe(self, projection: Projection) -> Subscription[Turn]:
        hurry = self._notifications.hurried() if projection.hurries else asyncio.Event()
        wake = self._notifications.subscribe(EVENTS)
        copy = LiveCopy(projection, wake=wake, hurry=hurry, batch_events=self._batch_events)
        handler = ProjectionHandler(projection, copy, hurry)
        self._handlers[projection.name] = handler
        return Subscription(
            self._database_url,
            f"projection {projection.name}",
            source=copy,
            checkpoint=copy,
            handler=handler,
            on_error=handler.failed,
            leader=LeaderLock(copy_lock(projection.schema)),
            poll_seconds=self._poll_seconds,
        )

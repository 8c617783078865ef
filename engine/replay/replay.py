"""Replays: a second copy is built beside the live one, caught up, compared, and switched in.

The database holds how far a replay is, so that a killed one goes on where it stood, in any
process; an advisory lock on the connection that applies lets only one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from uuid import UUID, uuid4

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from engine.applier import Applier
from engine.checkpoints import CheckpointStatus
from engine.comparison import Difference, compare
from engine.connections import connect, is_outage
from engine.projection import Projection
from engine.replay import build as partitions
from engine.replay.build import build
from engine.replay.cutover import CopyStopped, goal_of, look, same_moment, switch
from engine.replay.records import (
    ProgressMeter,
    Purpose,
    Replay,
    ReplayError,
    ReplayOptions,
    ReplayState,
    Report,
    checkpoint,
    enter,
    find,
    halt,
    tell_nobody,
)
from engine.replay.requests import OtherVersion, begin, discard
from infra.advisory_locks import replay_lock, try_lock, unlock
from infra.errors import describe

log = structlog.get_logger(__name__)

# A copy that is so near gets the rest while the live one stands still for a moment.
NEAR_EVENTS = 500
TABLES_OF = (
    "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r'"
)

# Larger ones are slower: reading ahead and applying take turns less often.
BATCH_EVENTS = 5_000


@dataclass(frozen=True, slots=True)
class Means:
    """What a replay is worked on with; `report` hears of progress, `stopping` ends the work.

    `compared` hears what the comparison found.
    """

    database_url: str
    batch_events: int
    report: Report
    stopping: Event
    compared: Callable[[Difference], None]


class ReplayElsewhere(ReplayError):
    """Another process works on this replay."""


class ReplayWork:
    """One process's work on one replay, of which it alone has the right to change the copy."""

    def __init__(
        self, conn: Connection[TupleRow], replay: Replay, copy: Projection, means: Means
    ) -> None:
        self._conn = conn
        self._replay = replay
        self._copy = copy
        self._means = means
        self._applier = Applier(copy, batch_events=means.batch_events)

    def run(self) -> Replay:
        """Take steps until there is nothing to do for now; raise what an outage raises."""
        steps = {
            ReplayState.BUILDING: self._build,
            ReplayState.CATCHING_UP: self._catch_up,
            ReplayState.COMPARING: self._compare,
            ReplayState.WAITING: lambda: self._enter(ReplayState.CATCHING_UP),
        }
        while not (self._replay.rests or self._means.stopping.is_set()):
            self._take(steps[self._replay.state])
            self._replay = find(self._conn, self._replay.id)
        return self._replay

    def _take(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (CopyStopped, partitions.PartFailed) as error:
            self._halt(str(error))
        except Exception as error:
            if is_outage(error):
                raise
            # It may have been cancelled, and its copy dropped, while we applied to it.
            if not find(self._conn, self._replay.id).finished:
                self._fail(error)

    def _build(self) -> None:
        if not (self._apply_in_parts() if self._in_parts() else self._apply()):
            return
        self._analyze()
        look_only = self._replay.purpose is Purpose.LOOK
        self._enter(ReplayState.KEPT if look_only else ReplayState.CATCHING_UP)

    def _catch_up(self) -> None:
        position, goal = self._stretch()
        if goal - position > NEAR_EVENTS:
            self._apply()
        elif self._to_be_compared():
            self._enter(ReplayState.COMPARING)
        elif switch(self._conn, self._replay, self._applier):
            log.info("replay_switched", projection=self._replay.name, replay=self._replay.id)

    def _compare(self) -> None:
        database_url, copy = self._means.database_url, self._replay.schema
        with same_moment(database_url, self._conn, self._applier) as reader:
            checkpoint(
                self._conn, self._replay, look(reader, copy).position, self._replay.rate or 0
            )
            difference = compare(reader, self._replay.name, copy)
        self._means.compared(difference)
        result = difference.as_dict()
        if difference.differs:
            log.warning("replay_differs", projection=self._replay.name, rows=difference.total)
        if self._replay.purpose is Purpose.VERIFY:
            self._enter(ReplayState.VERIFIED, result)
            discard(self._conn, self._replay)
        elif difference.differs and not self._replay.confirmed:
            self._enter(ReplayState.WAITING, result)
        else:
            self._enter(ReplayState.CATCHING_UP, result)

    def _apply(self) -> bool:
        """Apply up to where the copy is to be now; whether it got there. Raise CopyStopped."""
        position, goal = self._stretch()
        meter = self._meter(position, goal)
        reached = build(self._means.database_url, self._conn, self._applier, position, goal, meter)
        meter.show(reached)
        self._require_running()
        return reached >= goal

    def _in_parts(self) -> bool:
        """Only from the beginning: what has come farther goes on serially."""
        if self._replay.workers == 1:
            return False
        begun = partitions.positions_of(self._conn, self._replay)
        return bool(begun) or self._stretch()[0] == 0

    def _apply_in_parts(self) -> bool:
        """The same by several processes; afterwards, what may come only when they are done."""
        conn, means = self._conn, self._means
        goal = partitions.prepare(conn, self._replay, self._stretch()[1])
        sharing = partitions.Sharing(
            means.database_url, self._replay, self._copy, goal, means.batch_events
        )
        meter = self._meter(partitions.behind(conn, self._replay), goal)
        partitions.build_parts(conn, sharing, meter)
        reached = partitions.behind(conn, self._replay)
        meter.show(reached)
        self._require_running()
        return reached >= goal and partitions.finish(conn, sharing, meter)

    def _stretch(self) -> tuple[int, int]:
        """Return where the copy is, and up to where it is to be applied now."""
        position = look(self._conn, self._replay.schema).position
        if self._replay.target is not None:
            return position, self._replay.target
        live = look(self._conn, self._replay.name)
        if self._to_be_compared():
            return position, live.position
        return position, goal_of(live, self._replay)

    def _to_be_compared(self) -> bool:
        """Rows of another version, or those that are wanted back, differ by intention."""
        if self._replay.purpose is Purpose.ROLLBACK or self._replay.result is not None:
            return False
        return look(self._conn, self._replay.name).version == self._replay.version

    def _meter(self, position: int, goal: int) -> ProgressMeter:
        stretch, means = (position, goal), self._means
        return ProgressMeter(self._conn, self._replay, stretch, means.report, means.stopping)

    def _require_running(self) -> None:
        seen = look(self._conn, self._replay.schema)
        if seen.status == CheckpointStatus.STOPPED:
            raise CopyStopped(seen.error)

    def _analyze(self) -> None:
        """So that the first readers' queries are planned for what is there."""
        schema = self._replay.schema
        for (table,) in self._conn.execute(TABLES_OF, (schema,)).fetchall():
            self._conn.execute(SQL("ANALYZE {}").format(Identifier(schema, table)))

    def _enter(self, state: ReplayState, result: dict[str, object] | None = None) -> None:
        enter(self._conn, self._replay, state, result=result)
        log.info("replay_state", projection=self._replay.name, state=str(state))

    def _halt(self, error: str) -> None:
        halt(self._conn, self._replay, error)
        log.error("replay_stopped", projection=self._replay.name, error=error)

    def _fail(self, error: Exception) -> None:
        name, replay_id = self._replay.name, self._replay.id
        log.error("replay_failed", projection=name, replay=replay_id, exc_info=error)
        if enter(self._conn, self._replay, ReplayState.FAILED, error=describe(error)):
            discard(self._conn, self._replay)


def carry_on(
    database_url: str,
    replay_id: int,
    models: Mapping[str, Projection],
    *,
    report: Report = tell_nobody,
    stopping: Event | None = None,
    batch_events: int = BATCH_EVENTS,
    after_switch: Callable[[Replay], None] | None = None,
    compared: Callable[[Difference], None] = tell_nobody,
) -> Replay:
    """Work on a replay from where it stands until it has ended, is paused or waits for an answer.

    Also ends when `stopping` is set; the returned replay shows why. `models` are the live
    projections of this program by name. Raise ReplayElsewhere, OtherVersion, NoReplay, and
    OperationalError when the database is away: then it can be carried on later. Whatever else
    goes wrong ends the replay as failed.
    """
    with connect(database_url, "replay") as conn, _claimed(conn, replay_id):
        conn.execute("SET statement_timeout = 0")
        replay = find(conn, replay_id)
        projection = models[replay.name]
        if replay.version != projection.version:
            raise OtherVersion(
                f"Replay {replay.id} makes version {replay.version} of {replay.name}, and this "
                f"program makes version {projection.version}."
            )
        means = Means(
            database_url,
            batch_events,
            report,
            stopping or Event(),
            compared,
        )
        replay = ReplayWork(conn, replay, projection.beside(replay.schema), means).run()
    if replay.state is ReplayState.SWITCHED and after_switch is not None:
        after_switch(replay)
    return replay


def replay_now(
    database_url: str,
    projection: Projection,
    options: ReplayOptions = ReplayOptions(),  # noqa: B008 - it is frozen
    *,
    requested_by: str,
    operation_id: UUID | None = None,
    report: Report = tell_nobody,
    stopping: Event | None = None,
    compared: Callable[[Difference], None] = tell_nobody,
) -> Replay:
    """Begin a replay, and work on it here; raise as `begin` and `carry_on` do."""
    with connect(database_url, "replay request") as conn:
        replay = begin(
            conn,
            projection,
            options,
            requested_by=requested_by,
            operation_id=operation_id or uuid4(),
        )
    models = {projection.name: projection}
    return carry_on(
        database_url, replay.id, models, report=report, stopping=stopping, compared=compared
    )


@contextmanager
def _claimed(conn: Connection[TupleRow], replay_id: int) -> Iterator[None]:
    """Hold the lock of this replay; raise ReplayElsewhere where another process holds it."""
    if not try_lock(conn, replay_lock(replay_id)):
        raise ReplayElsewhere(f"Another process works on replay {replay_id}.")
    yield
    # Said, not left to the end of the connection: the server may notice that only later, and
    # a process that carries on meanwhile would be refused.
    unlock(conn, replay_lock(replay_id))

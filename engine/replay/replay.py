"""Replays: a second copy is built beside the live one, caught up, compared, and switched in.

The database holds how far a replay is, so that a killed one goes on where it stood, in any
process; an advisory lock on the connection that applies lets only one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Event
from uuid import uuid4

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from engine.checkpoints import CheckpointStatus
from engine.comparison import Difference, compare
from engine.connections import connect, is_outage
from engine.projection import Applier, Projection
from engine.replay.build import (
    PartFailed,
    SharedBuild,
    behind,
    build,
    build_parts,
    finish,
    positions_of,
)
from engine.replay.cutover import CopyStopped, goal_of, look, same_moment, switch
from engine.replay.records import (
    ProgressMeter,
    Purpose,
    Replay,
    ReplayError,
    ReplayOptions,
    ReplayState,
    Report,
    begin_parts,
    checkpoint,
    enter,
    find,
    set_paused,
    tell_nobody,
)
from engine.replay.requests import OtherVersion, begin, discard
from infra.advisory_locks import hold, replay_lock
from infra.errors import describe

log = structlog.get_logger(__name__)

# A copy that is so near gets the rest while the live one stands still for a moment.
NEAR_EVENTS = 500
TABLES_OF = (
    "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r'"
)

# Larger ones are slower: reading ahead and applying take turns less often.
BATCH_EVENTS = 5_000


class ReplayElsewhere(ReplayError):
    """Another process works on this replay."""


@dataclass
class ReplayWork:
    """One process's work on one replay, of which it alone has the right to change the copy.

    `report` hears of progress, `compared` what the comparison found; `stopping` ends the work.
    """

    conn: Connection[TupleRow]
    database_url: str
    replay: Replay
    copy: Projection
    batch_events: int
    report: Report
    stopping: Event
    compared: Callable[[Difference], None]

    def __post_init__(self) -> None:
        self.applier = Applier(self.copy, batch_events=self.batch_events)

    def run(self) -> Replay:
        """Take steps until there is nothing to do for now; raise what an outage raises."""
        steps = {
            ReplayState.BUILDING: self._build,
            ReplayState.CATCHING_UP: self._catch_up,
            ReplayState.COMPARING: self._compare,
            ReplayState.WAITING: lambda: self._enter(ReplayState.CATCHING_UP),
        }
        while not (self.replay.rests or self.stopping.is_set()):
            self._take(steps[self.replay.state])
            self.replay = find(self.conn, self.replay.id)
        return self.replay

    def _take(self, step: Callable[[], None]) -> None:
        name, replay_id = self.replay.name, self.replay.id
        try:
            step()
        except (CopyStopped, PartFailed) as error:
            set_paused(self.conn, self.replay, True, str(error))
            log.error("replay_stopped", projection=name, error=str(error))
        except Exception as error:
            if is_outage(error):
                raise
            # The replay may have been cancelled, and its copy dropped, during the step.
            if find(self.conn, replay_id).finished:
                return
            log.error("replay_failed", projection=name, replay=replay_id, exc_info=error)
            if enter(self.conn, self.replay, ReplayState.FAILED, error=describe(error)):
                discard(self.conn, self.replay)

    def _build(self) -> None:
        if not (self._apply_in_parts() if self._in_parts() else self._apply()):
            return
        self._analyze()
        look_only = self.replay.purpose is Purpose.LOOK
        self._enter(ReplayState.KEPT if look_only else ReplayState.CATCHING_UP)

    def _catch_up(self) -> None:
        position, goal = self._stretch()
        if goal - position > NEAR_EVENTS:
            self._apply()
        elif self._to_be_compared():
            self._enter(ReplayState.COMPARING)
        elif switch(self.conn, self.replay, self.applier):
            log.info("replay_switched", projection=self.replay.name, replay=self.replay.id)

    def _compare(self) -> None:
        with same_moment(self.database_url, self.conn, self.applier) as reader:
            position = look(reader, self.replay.schema).position
            checkpoint(self.conn, self.replay, position, self.replay.rate or 0)
            difference = compare(reader, self.replay.name, self.replay.schema)
        self.compared(difference)
        result = difference.as_dict()
        if difference.differs:
            log.warning("replay_differs", projection=self.replay.name, rows=difference.total)
        if self.replay.purpose is Purpose.VERIFY:
            self._enter(ReplayState.VERIFIED, result)
            discard(self.conn, self.replay)
        elif difference.differs and not self.replay.confirmed:
            self._enter(ReplayState.WAITING, result)
        else:
            self._enter(ReplayState.CATCHING_UP, result)

    def _apply(self) -> bool:
        """Apply up to where the copy is to be now; return whether it got there.

        Raise CopyStopped.
        """
        position, goal = self._stretch()
        meter = self._meter(position, goal)
        url, conn = self.database_url, self.conn
        return self._ended(meter, build(url, conn, self.applier, position, goal, meter.at))

    def _in_parts(self) -> bool:
        """Return whether several processes build the copy: only from its beginning."""
        if self.replay.workers == 1:
            return False
        return bool(positions_of(self.conn, self.replay)) or self._stretch()[0] == 0

    def _apply_in_parts(self) -> bool:
        """Apply by several processes, then what may come only when they are done; as `_apply`."""
        conn, replay = self.conn, self.replay
        goal = begin_parts(
            conn, replay.schema, replay.version, count=replay.workers, target=self._stretch()[1]
        )
        shared = SharedBuild(self.database_url, replay, self.copy, goal, self.batch_events)
        meter = self._meter(behind(conn, replay), goal)
        build_parts(conn, shared, meter.at)
        return self._ended(meter, behind(conn, replay)) and finish(conn, shared, meter.at)

    def _ended(self, meter: ProgressMeter, position: int) -> bool:
        """Show where the copy is now; return whether that is the goal. Raise CopyStopped."""
        meter.show(position)
        seen = look(self.conn, self.replay.schema)
        if seen.status == CheckpointStatus.STOPPED:
            raise CopyStopped(seen.error)
        return position >= meter.goal

    def _stretch(self) -> tuple[int, int]:
        """Return where the copy is, and up to where it is to be applied now."""
        position = look(self.conn, self.replay.schema).position
        if self.replay.target is not None:
            return position, self.replay.target
        live = look(self.conn, self.replay.name)
        if self._to_be_compared():
            return position, live.position
        return position, goal_of(live, self.replay)

    def _to_be_compared(self) -> bool:
        """Rows of another version, or those that are wanted back, differ by intention."""
        if self.replay.purpose is Purpose.ROLLBACK or self.replay.result is not None:
            return False
        return look(self.conn, self.replay.name).version == self.replay.version

    def _meter(self, first: int, goal: int) -> ProgressMeter:
        return ProgressMeter(self.conn, self.replay, first, goal, self.report, self.stopping)

    def _analyze(self) -> None:
        """Have the first readers' queries planned for the rows that are there."""
        schema = self.replay.schema
        for (table,) in self.conn.execute(TABLES_OF, (schema,)).fetchall():
            self.conn.execute(SQL("ANALYZE {}").format(Identifier(schema, table)))

    def _enter(self, state: ReplayState, result: dict[str, object] | None = None) -> None:
        enter(self.conn, self.replay, state, result=result)
        log.info("replay_state", projection=self.replay.name, state=str(state))


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
    with (
        connect(database_url, "replay") as conn,
        # Freed by hand: the server may notice the end of the connection only later, and would
        # refuse a process that carries on meanwhile.
        hold(conn, replay_lock(replay_id), wait=False) as mine,
    ):
        if not mine:
            raise ReplayElsewhere(f"Another process works on replay {replay_id}.")
        conn.execute("SET statement_timeout = 0")
        replay = find(conn, replay_id)
        projection = models[replay.name]
        if replay.version != projection.version:
            raise OtherVersion(
                f"Replay {replay.id} makes version {replay.version} of {replay.name}, and this "
                f"program makes version {projection.version}."
            )
        copy, until = projection.beside(replay.schema), stopping or Event()
        replay = ReplayWork(
            conn, database_url, replay, copy, batch_events, report, until, compared
        ).run()
    if replay.state is ReplayState.SWITCHED and after_switch is not None:
        after_switch(replay)
    return replay


def replay_now(
    database_url: str, projection: Projection, options: ReplayOptions, *, requested_by: str
) -> Replay:
    """Begin a replay, and work on it here; raise as `begin` and `carry_on` do."""
    with connect(database_url, "replay request") as conn:
        replay = begin(conn, projection, options, requested_by=requested_by, operation_id=uuid4())
    return carry_on(database_url, replay.id, {projection.name: projection})

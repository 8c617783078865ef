"""Replays: a second copy is built beside the live one, caught up, compared, and switched in.

The database holds how far a replay is, so that a killed one goes on where it stood, in any
process; an advisory lock on the connection that applies lets only one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Event
from uuid import UUID

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier

from infra.codec import EventMapper
from projections import positions
from projections.applying import Applier
from projections.compare import compare
from projections.connecting import connect, is_outage
from projections.poison import describe
from projections.positions import LOCK_CLASS, Status, lock_key
from projections.projection import Projection
from projections.replay_building import build
from projections.replay_operations import OtherVersion, begin, discard
from projections.replay_progress import Report, Telling, tell_nobody
from projections.replays import (
    Purpose,
    Replay,
    ReplayError,
    ReplayOptions,
    ReplayState,
    enter,
    find,
    halt,
)
from projections.switching import CopyStopped, goal_of, look, same_moment, switch

log = structlog.get_logger(__name__)

BATCH_EVENTS = 20_000
# A copy that is so near gets the rest while the live one stands still for a moment.
NEAR_EVENTS = 500
TABLES_OF = (
    "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r'"
)


class ReplayElsewhere(ReplayError):
    """Another process works on this replay."""


def carry_on(
    database_url: str,
    replay_id: int,
    models: Mapping[str, Projection],
    *,
    report: Report = tell_nobody,
    stopping: Event | None = None,
    mapper: EventMapper | None = None,
    batch_events: int = BATCH_EVENTS,
    after_switch: Callable[[Replay], None] | None = None,
) -> Replay:
    """Work on a replay from where it stands until it has ended, is paused or waits for an answer.

    Also ends when `stopping` is set; the replay that is returned tells. `models` are the live
    projections of this program by name. Raises ReplayElsewhere, OtherVersion, NoReplay, and
    OperationalError when the database is away: then it can be carried on later. Whatever else
    goes wrong ends the replay as failed.
    """
    with connect(database_url, "replay") as conn:
        conn.execute("SET statement_timeout = 0")
        _claim(conn, replay_id)
        replay = find(conn, replay_id)
        projection = models[replay.name]
        if replay.version != projection.version:
            raise OtherVersion(
                f"Replay {replay.id} makes version {replay.version} of {replay.name}, and this "
                f"program makes version {projection.version}."
            )
        copy = projection.beside(replay.schema)
        applier = Applier(copy, mapper=mapper or EventMapper(), batch_events=batch_events)
        work = Work(database_url, conn, replay, applier, report, stopping or Event())
        replay = work.run()
    if replay.state is ReplayState.SWITCHED and after_switch is not None:
        after_switch(replay)
    return replay


def rollback(
    database_url: str,
    projection: Projection,
    *,
    requested_by: str,
    operation_id: UUID,
    report: Report = tell_nobody,
    stopping: Event | None = None,
    mapper: EventMapper | None = None,
    after_switch: Callable[[Replay], None] | None = None,
) -> Replay:
    """Bring the previous copy up to date and make it the live one again; raises as `begin` does."""
    options = ReplayOptions(Purpose.ROLLBACK)
    with connect(database_url, "rollback") as conn:
        replay = begin(
            conn, projection, options, requested_by=requested_by, operation_id=operation_id
        )
    return carry_on(
        database_url,
        replay.id,
        {projection.name: projection},
        report=report,
        stopping=stopping,
        mapper=mapper,
        after_switch=after_switch,
    )


def _claim(conn: Connection[TupleRow], replay_id: int) -> None:
    key = (LOCK_CLASS, lock_key(f"replay {replay_id}"))
    row = conn.execute("SELECT pg_try_advisory_lock(%s, %s)", key).fetchone()
    if row is None or not row[0]:
        raise ReplayElsewhere(f"Another process works on replay {replay_id}.")


class Work:
    """One process's work on one replay."""

    def __init__(
        self,
        database_url: str,
        conn: Connection[TupleRow],
        replay: Replay,
        applier: Applier,
        report: Report,
        stopping: Event,
    ) -> None:
        self._database_url = database_url
        self._conn = conn
        self._replay = replay
        self._applier = applier
        self._report = report
        self._stopping = stopping

    def run(self) -> Replay:
        """Step after step until there is nothing to do for now."""
        steps = {
            ReplayState.BUILDING: self._build,
            ReplayState.CATCHING_UP: self._catch_up,
            ReplayState.COMPARING: self._compare,
            ReplayState.WAITING: lambda: self._enter(ReplayState.CATCHING_UP),
        }
        while not (self._replay.rests or self._stopping.is_set()):
            self._take(steps[self._replay.state])
            self._replay = find(self._conn, self._replay.id)
        return self._replay

    def _take(self, step: Callable[[], None]) -> None:
        try:
            step()
        except CopyStopped as error:
            self._halt(str(error))
        except Exception as error:
            if is_outage(error):
                raise
            # It was cancelled, and its copy dropped, while we applied to it.
            if not find(self._conn, self._replay.id).finished:
                self._fail(error)

    def _build(self) -> None:
        if not self._apply():
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
        copy = self._replay.schema
        with same_moment(self._database_url, self._conn, self._applier) as reader:
            difference = compare(reader, self._replay.name, copy)
        told = difference.as_dict()
        if difference.differs:
            log.warning("replay_differs", projection=self._replay.name, rows=difference.total)
        if self._replay.purpose is Purpose.VERIFY:
            self._enter(ReplayState.VERIFIED, told)
            discard(self._conn, self._replay)
        elif difference.differs and not self._replay.confirmed:
            self._enter(ReplayState.WAITING, told)
        else:
            self._enter(ReplayState.CATCHING_UP, told)

    def _apply(self) -> bool:
        """Apply up to where it is to be now; whether it got there."""
        position, goal = self._stretch()
        told = Telling(self._conn, self._replay, (position, goal), self._report, self._stopping)
        reached = build(self._database_url, self._conn, self._applier, position, goal, told)
        told.tell(reached)
        seen = look(self._conn, self._replay.schema)
        if seen.status == Status.STOPPED:
            raise CopyStopped(seen.error)
        return reached >= goal

    def _stretch(self) -> tuple[int, int]:
        """Where the copy is, and up to where it is to be applied now."""
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
        live = positions.look(self._conn, self._replay.name)
        return live is not None and live.version == self._replay.version

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

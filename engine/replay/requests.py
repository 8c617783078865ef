"""What operators do about replays: begin one, pause it, go on, confirm its difference, give it up.

Nothing is built here: `replay.carry_on` does the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from uuid import UUID, uuid4

import structlog
from psycopg import Connection
from psycopg.errors import UniqueViolation
from psycopg.rows import TupleRow

from engine import checkpoints
from engine.checkpoints import Seen
from engine.installation import create, drop
from engine.projection import Projection
from engine.replay.records import (
    NoReplay,
    Purpose,
    Replay,
    ReplayError,
    ReplayOptions,
    ReplayState,
    ReplayUnderWay,
    drop_parts,
    enter,
    find,
    set_paused,
    unfinished,
)
from infra.advisory_locks import Lock, lock_in_transaction
from infra.settings.features import MAX_REPLAY_WORKERS

log = structlog.get_logger(__name__)

# The schemas of copies: the projection's name, and a position or the number of a replay.
PREVIOUS = "{}__previous"
NEXT = "{}__next"
LOOK = "{}__at_{}"
VERIFY = "{}__verify_{}"
OLD = "{}__old_{}"
SCHEMAS: Mapping[Purpose, str] = MappingProxyType(
    {
        Purpose.SWITCH: NEXT,
        Purpose.LOOK: LOOK,
        Purpose.VERIFY: VERIFY,
        Purpose.ROLLBACK: PREVIOUS,
    }
)

NEW_ID = "SELECT nextval(pg_get_serial_sequence('projections.replays', 'id'))"
INSERT = """
INSERT INTO projections.replays
    (id, name, version, schema, purpose, target, workers, state, confirmed, requested_by,
     operation_id)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
CONFIRM = """
UPDATE projections.replays SET confirmed = true, updated_at = clock_timestamp() WHERE id = %s
"""


class BadTarget(ReplayError):
    """A position at which no look can be had."""


class BadWorkers(ReplayError):
    """A number of processes that is none, or too many."""


class NoCopy(ReplayError):
    """There is no such copy of a projection."""


class OtherVersion(ReplayError):
    """The copy was made by another version of the code than this one."""


def begin(
    conn: Connection[TupleRow],
    projection: Projection,
    options: ReplayOptions,
    *,
    requested_by: str,
    operation_id: UUID,
) -> Replay:
    """Ask for a replay and make its empty copy; `projection` is the live one of this program.

    Raise ReplayUnderWay when it has an unfinished one, BadTarget for a position outside the log,
    BadWorkers, NoCopy without a live copy, or a previous one to go back to, and OtherVersion when
    that, or the live copy that is to be verified, is not of this program's version.
    """
    name = projection.name
    workers = options.workers if projection.by_stream else 1
    if workers != options.workers:
        log.info("replay_serial", projection=name, reason="its events depend on each other")
    back = options.purpose is Purpose.ROLLBACK
    state = ReplayState.CATCHING_UP if back else ReplayState.BUILDING
    with conn.transaction():
        lock_in_transaction(conn, Lock.PROJECTION_TABLES)
        _check(conn, projection, options)
        (replay_id,) = conn.execute(NEW_ID).fetchone() or (0,)
        schema = SCHEMAS[options.purpose].format(name, options.to or replay_id)
        copy = (replay_id, name, projection.version, schema, options.purpose, options.to)
        work = (workers, state, options.confirmed or back, requested_by, operation_id)
        try:
            conn.execute(INSERT, (*copy, *work))
        except UniqueViolation:
            raise ReplayUnderWay(f"{name} is being replayed; let that end, or cancel it.") from None
        sweep(conn, name)
        if back:
            # It may have been paused or stopped while it was the live one.
            checkpoints.resume(conn, schema)
        else:
            create(conn, projection.beside(schema))
    log.info("replay_begun", projection=name, replay=replay_id, purpose=str(options.purpose))
    return find(conn, replay_id)


def pause(conn: Connection[TupleRow], name: str) -> Replay:
    """Have the projection's replay rest where it is; raise NoReplay."""
    replay = _unfinished(conn, name)
    set_paused(conn, replay, True)
    return find(conn, replay.id)


def resume(conn: Connection[TupleRow], name: str) -> Replay:
    """Let a paused replay go on, in front of a bad event by trying it again; raise NoReplay."""
    replay = _unfinished(conn, name)
    with conn.transaction():
        checkpoints.retry(conn, replay.schema)
        set_paused(conn, replay, False)
    return find(conn, replay.id)


def confirm(conn: Connection[TupleRow], name: str) -> Replay:
    """Let a replay switch although its copy differs from the live one; raise NoReplay."""
    replay = _unfinished(conn, name)
    conn.execute(CONFIRM, (replay.id,))
    return find(conn, replay.id)


def cancel(conn: Connection[TupleRow], name: str) -> Replay:
    """Give the replay up and drop what it has built, wherever it is worked on; raise NoReplay."""
    replay = _unfinished(conn, name)
    with conn.transaction():
        if not enter(conn, replay, ReplayState.CANCELLED):
            raise NoReplay(f"The replay of {name} has just ended.")
        if replay.purpose is not Purpose.ROLLBACK:
            discard(conn, replay)
    log.info("replay_cancelled", projection=name, replay=replay.id)
    return find(conn, replay.id)


def discard(conn: Connection[TupleRow], replay: Replay) -> None:
    """Drop the copy that a replay has built; waits for what is just being applied to it."""
    with conn.transaction():
        # A process that applies holds these until it commits, and finds them gone after that.
        drop_parts(conn, replay.schema)
        checkpoints.lock(conn, replay.schema)
        drop(conn, replay.schema)


def drop_old(conn: Connection[TupleRow], name: str) -> None:
    """Drop the copy that `rollback` would go back to; raise NoCopy, and ReplayUnderWay."""
    replay = unfinished(conn, name)
    if replay is not None and replay.purpose is Purpose.ROLLBACK:
        raise ReplayUnderWay(f"{name} is being rolled back to that copy.")
    schema = PREVIOUS.format(name)
    if checkpoints.look(conn, schema) is None:
        raise NoCopy(f"{name} has no previous copy.")
    _drop_alone(conn, schema)


def drop_look(conn: Connection[TupleRow], schema: str) -> None:
    """Drop a look at the past, such as `likes__at_1000`; raise NoCopy, and ReplayUnderWay."""
    name, _, position = schema.rpartition("__at_")
    if not name or not position.isdigit() or checkpoints.look(conn, schema) is None:
        raise NoCopy(f"There is no look {schema}.")
    replay = unfinished(conn, name)
    if replay is not None and replay.schema == schema:
        raise ReplayUnderWay(f"{schema} is being built; cancel that instead.")
    _drop_alone(conn, schema)


def _drop_alone(conn: Connection[TupleRow], schema: str) -> None:
    """Drop a copy while no cutover can rename it."""
    with conn.transaction():
        lock_in_transaction(conn, Lock.PROJECTION_TABLES)
        drop(conn, schema)


def sweep(conn: Connection[TupleRow], name: str) -> None:
    """Drop what a crash has left behind: superseded copies, and those of ended replays."""
    for kind in (NEXT, VERIFY, OLD):
        for schema in checkpoints.copies(conn, name, kind.format(name, "")):
            with conn.transaction():
                drop(conn, schema)


def _unfinished(conn: Connection[TupleRow], name: str) -> Replay:
    replay = unfinished(conn, name)
    if replay is None:
        raise NoReplay(f"{name} has no unfinished replay.")
    return replay


def _check(conn: Connection[TupleRow], projection: Projection, options: ReplayOptions) -> None:
    name = projection.name
    if not 1 <= options.workers <= MAX_REPLAY_WORKERS:
        raise BadWorkers(f"The number of workers is from 1 to {MAX_REPLAY_WORKERS}.")
    live = checkpoints.look(conn, name)
    if live is None:
        raise NoCopy(f"{name} is not installed; it is when a process has started.")
    if options.purpose is Purpose.LOOK:
        if options.to is None or not 1 <= options.to <= live.head:
            raise BadTarget(f"A look needs a position from 1 to {live.head}, the end of the log.")
        schema = LOOK.format(name, options.to)
        if checkpoints.look(conn, schema) is not None:
            raise BadTarget(f"There is a look at that position already: {schema}.")
    elif options.to is not None:
        raise BadTarget("A position is for a look at the past only.")
    if options.purpose is Purpose.VERIFY:
        _require_version(live, projection, "live")
    if options.purpose is Purpose.ROLLBACK:
        previous = checkpoints.look(conn, PREVIOUS.format(name))
        if previous is None:
            raise NoCopy(f"{name} has no previous copy to go back to.")
        _require_version(previous, projection, "previous")


def _require_version(copy: Seen, projection: Projection, which: str) -> None:
    if copy.version != projection.version:
        raise OtherVersion(
            f"The {which} copy of {projection.name} is of version {copy.version}, and this "
            f"program makes version {projection.version}."
        )


def outdated(conn: Connection[TupleRow], models: Mapping[str, Projection]) -> list[Projection]:
    """Return the projections whose live copy was made by an older version of the code.

    A copy that a newer version has made stays: a release that was not stopped yet must not take
    away what its successor has built. Going back is an operator's decision.
    """
    copies = [(model, checkpoints.look(conn, model.schema)) for model in models.values()]
    return [model for model, copy in copies if copy and copy.version < model.version]


def begin_for_outdated(
    conn: Connection[TupleRow], models: Mapping[str, Projection], *, requested_by: str
) -> list[Replay]:
    """Begin a replay of each outdated projection, which switches without a question.

    It replaces an unfinished replay of an older version. A replay that another process begins at
    the same moment is left to that process.
    """
    begun, options = [], ReplayOptions(confirmed=True)
    for projection in outdated(conn, models):
        try:
            older = unfinished(conn, projection.name)
            if older is not None and older.version < projection.version:
                log.warning("replay_given_up", projection=older.name, version=older.version)
                cancel(conn, older.name)
            found = begin(
                conn, projection, options, requested_by=requested_by, operation_id=uuid4()
            )
            begun.append(found)
        except (ReplayUnderWay, NoReplay) as reason:
            log.info("replay_not_begun", projection=projection.name, reason=str(reason))
    return begun

"""Cutover: another copy replaces the live one, in a transaction that no reader notices.

A copy's name is that of its PostgreSQL schema. Renaming takes no lock that a reader waits for; a
statement that has resolved its names reads on in the copy that was live, which stays as it was,
and the next one finds the other copy, which is never behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from psycopg import Connection, IsolationLevel
from psycopg.errors import LockNotAvailable
from psycopg.rows import TupleRow

from engine import checkpoints
from engine.checkpoints import CheckpointStatus, Seen
from engine.connections import connect
from engine.installation import drop, rename
from engine.projection import Applier
from engine.replay.records import Replay, ReplayState, checkpoint, enter, find
from engine.replay.requests import OLD, PREVIOUS
from engine.subscription import notify
from infra.advisory_locks import Lock, lock_in_transaction

log = structlog.get_logger(__name__)

LOCK_REPLAY = b"SELECT FROM projections.replays WHERE id = %s FOR UPDATE"


class LiveCopyGone(Exception):
    """Somebody removed the live copy, or the one that was built, by hand."""


class CopyStopped(Exception):
    """The copy stopped in front of an event that it can't apply."""


def goal_of(live: Seen, replay: Replay) -> int:
    """Up to where a copy has to be applied to take the place of the live one.

    As far as that one, so that nothing goes back, and no farther, so that both agree on what a
    position holds; but one that does not move by itself any more is no measure.
    """
    moves = live.version == replay.version and live.status != CheckpointStatus.STOPPED
    return live.position if moves else max(live.position, live.head)


def advance_to(conn: Connection[TupleRow], applier: Applier, goal: int) -> None:
    """Apply what is missing up to a position; raise CopyStopped, and Superseded."""
    schema = applier.projection.schema
    while (seen := look(conn, schema)).position < goal:
        if seen.status == CheckpointStatus.STOPPED:
            raise CopyStopped(seen.error)
        applier.advance(conn, seen.position, goal)


def look(conn: Connection[TupleRow], schema: str) -> Seen:
    """Return the state of a copy that has to be there; raise LiveCopyGone."""
    seen = checkpoints.look(conn, schema)
    if seen is None:
        raise LiveCopyGone(f"There is no copy {schema}.")
    return seen


@contextmanager
def same_moment(
    database_url: str, conn: Connection[TupleRow], applier: Applier
) -> Iterator[Connection[TupleRow]]:
    """Yield a connection that sees the live copy and the other one at one position, until it ends.

    The live one stands still only while the snapshot is taken. Raise CopyStopped.
    """
    with connect(database_url, "replay comparison") as reader:
        reader.execute("SET statement_timeout = 0")
        reader.isolation_level = IsolationLevel.REPEATABLE_READ
        with reader.transaction():
            with connect(database_url, "replay") as holder, holder.transaction():
                checkpoints.lock(holder, applier.projection.name)
                live = look(holder, applier.projection.name)
                advance_to(conn, applier, live.position)
                # The first statement fixes what the transaction sees.
                reader.execute("SELECT 1")
            yield reader


def switch(conn: Connection[TupleRow], replay: Replay, applier: Applier) -> bool:
    """Make the replay's copy the live one and the other the previous one.

    Return False when the replay was paused or cancelled first. Raise CopyStopped.
    """
    name = replay.name
    with conn.transaction():
        # What was answered by the new copy must not be forgotten in a crash.
        conn.execute("SET LOCAL synchronous_commit = on")
        lock_in_transaction(conn, Lock.PROJECTION_TABLES)
        conn.execute(LOCK_REPLAY, (replay.id,))
        if find(conn, replay.id).rests:
            return False
        checkpoints.lock(conn, name)
        live = look(conn, name)
        advance_to(conn, applier, goal_of(live, replay))
        checkpoint(conn, replay, look(conn, replay.schema).position, replay.rate or 0)
        _swap(conn, replay)
        if live.status == CheckpointStatus.PAUSED:
            checkpoints.pause(conn, name)
        enter(conn, replay, ReplayState.SWITCHED)
        notify(conn)
    _drop_superseded(conn, replay)
    return True


def _swap(conn: Connection[TupleRow], replay: Replay) -> None:
    name, previous = replay.name, PREVIOUS.format(replay.name)
    aside = f"{name}__aside_{replay.id}"
    rename(conn, name, aside)
    rename(conn, replay.schema, name)
    # A rollback has just taken the previous copy away; otherwise the older one makes room.
    if checkpoints.look(conn, previous) is not None:
        rename(conn, previous, OLD.format(name, replay.id))
    rename(conn, aside, previous)


def _drop_superseded(conn: Connection[TupleRow], replay: Replay) -> None:
    """Drop it only after the switch: dropping waits for queries that still read there."""
    schema = OLD.format(replay.name, replay.id)
    try:
        with conn.transaction():
            drop(conn, schema)
    except LockNotAvailable:
        # The next replay sweeps it up.
        log.warning("replay_left_copy", projection=replay.name, schema=schema)

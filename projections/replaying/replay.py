"""Replays: a second copy is built beside the live one, caught up, compared, and switched in.

The database holds how far a replay is, so that a killed one goes on where it stood, in any
process; an advisory lock on the connection that applies lets only one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from engine.checkpoints import LOCK_CLASS, lock_key
from infra.codec import EventMapper
from projections.connecting import connect
from projections.projection import Projection
from projections.proving.compare import Difference
from projections.replaying.asking import OtherVersion, begin
from projections.replaying.progress import Report, tell_nobody
from projections.replaying.rows import (
    Purpose,
    Replay,
    ReplayError,
    ReplayOptions,
    ReplayState,
    find,
)
from projections.replaying.work import Means, Work

# Larger ones are slower: reading ahead and applying take turns less often.
BATCH_EVENTS = 5_000


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
    compared: Callable[[Difference], None] = tell_nobody,
) -> Replay:
    """Work on a replay from where it stands until it has ended, is paused or waits for an answer.

    Also ends when `stopping` is set; the replay that is returned tells. `models` are the live
    projections of this program by name. Raises ReplayElsewhere, OtherVersion, NoReplay, and
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
            mapper or EventMapper(),
            batch_events,
            report,
            stopping or Event(),
            compared,
        )
        replay = Work(conn, replay, projection.beside(replay.schema), means).run()
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


@contextmanager
def _claimed(conn: Connection[TupleRow], replay_id: int) -> Iterator[None]:
    """Hold the lock of this replay; raises ReplayElsewhere where another process holds it."""
    key = (LOCK_CLASS, lock_key(f"replay {replay_id}"))
    row = conn.execute("SELECT pg_try_advisory_lock(%s, %s)", key).fetchone()
    if row is None or not row[0]:
        raise ReplayElsewhere(f"Another process works on replay {replay_id}.")
    yield
    # Said, not left to the end of the connection: the server may notice that only later, and
    # whoever carries on meanwhile would be told that another process is at it.
    conn.execute("SELECT pg_advisory_unlock(%s, %s)", key)

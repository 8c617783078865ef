"""Checkpoints: how far each subscription has come, and queries that wait until it has.

One table for projections, consumers, the relay. A checkpoint whose subscription writes rows lies in
their database and moves in the transaction that changes them, so each event counts exactly once.

One poller serves all waiting queries of a process, and runs only while there are some.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

import structlog
from psycopg import Connection, Cursor, Error
from psycopg.errors import UndefinedTable
from psycopg.rows import TupleRow, class_row
from psycopg.sql import SQL
from psycopg_pool import AsyncConnectionPool

from engine.event_store import EVENTS, EVENTS_CHANNEL
from engine.overview import ACTIVE
from engine.subscription import HURRY, NOTIFY, Place, notify
from infra.advisory_locks import LockClass, copy_lock
from infra.http.shapes import BEGINNING, Position
from infra.postgres.connection import LiveAsyncConnection

if TYPE_CHECKING:
    from engine.projection import Projection

log = structlog.get_logger(__name__)

LOOK = f"""
SELECT version, position, status, error, updated_at,
       (SELECT coalesce(max(notification_id), 0) FROM {EVENTS}) AS head
FROM backlot_checkpoints WHERE kind = 'projection' AND subscription = %s
""".encode()

# A process that reads an old position, or loses the right to run, changes nothing.
RUNNING_AT = """
WHERE kind = %s AND subscription = %s AND source = %s AND partition = %s AND version = %s
      AND position = %s AND status = 'running'
"""
# Until the transaction ends, no other process renames the copy, or changes its rows.
HOLD = f"SELECT FROM backlot_checkpoints {RUNNING_AT} FOR NO KEY UPDATE".encode()
MOVE = f"UPDATE backlot_checkpoints SET position = %s, updated_at = now() {RUNNING_AT}".encode()
STOP = f"""
UPDATE backlot_checkpoints
SET position = %s, status = 'stopped', error = %s, error_position = %s, updated_at = now()
{RUNNING_AT}
""".encode()
RUN = b"""
UPDATE backlot_checkpoints SET status = 'running', error = NULL, error_position = NULL
WHERE kind = 'projection' AND subscription = %s AND status = ANY (%s)
"""
PAUSE = b"""
UPDATE backlot_checkpoints SET status = 'paused'
WHERE kind = 'projection' AND subscription = %s AND status = 'running'
"""
STOPPED = b"""
SELECT error_position, error FROM backlot_checkpoints
WHERE kind = 'projection' AND subscription = %s AND status = 'stopped'
      AND position = error_position - 1
FOR NO KEY UPDATE
"""
SKIP = b"""
UPDATE backlot_checkpoints
SET position = error_position, status = 'running', error = NULL, error_position = NULL,
    updated_at = now()
WHERE kind = 'projection' AND subscription = %s
"""
CREATE = b"""
INSERT INTO backlot_checkpoints (kind, subscription, projection, version)
VALUES ('projection', %s, %s, %s)
"""
LOCK = b"""
SELECT version, position FROM backlot_checkpoints
WHERE kind = 'projection' AND subscription = %s FOR UPDATE
"""
SET_VERSION = b"""
UPDATE backlot_checkpoints SET version = %s WHERE kind = 'projection' AND subscription = %s
"""
COPIES = b"""
SELECT subscription FROM backlot_checkpoints
WHERE kind = 'projection' AND projection = %s AND starts_with(subscription, %s)
"""
BEGIN = b"""
INSERT INTO backlot_checkpoints (kind, subscription, source)
SELECT %s, %s, unnest(%s::text[]) ON CONFLICT DO NOTHING
"""
POSITIONS = b"""
SELECT source, partition, position FROM backlot_checkpoints
WHERE kind = %s AND subscription = %s ORDER BY source, partition
"""
SET = b"""
INSERT INTO backlot_checkpoints (kind, subscription, source, partition, position)
SELECT %b, %b, * FROM unnest(%b::text[], %b::int[], %b::bigint[])
ON CONFLICT (kind, subscription, source, partition)
DO UPDATE SET position = excluded.position, updated_at = now()
"""


class SubscriptionKind(StrEnum):
    """What has checkpoints and dead letters: a copy of a read model, a part of one, and so on."""

    PROJECTION = "projection"
    REPLAY = "replay"
    CONSUMER = "consumer"
    RELAY = "relay"
    WEBHOOK = "webhook"


class CheckpointStatus(StrEnum):
    """What an operator or a poison event decided; it holds for every process."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class Superseded(Exception):
    """Another process moved the checkpoint, or an operator withdrew the right to run."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The checkpoint of one subscription in one partition of one source.

    Each method raises Superseded when it is no longer running at `before`.
    """

    kind: SubscriptionKind
    subscription: str
    version: int = 0
    source: str = "events"
    partition: int = 0

    def hold(self, cursor: Cursor[Any], before: int) -> None:
        """Lock it until the transaction ends; to be called before rows change.

        Names are resolved statement by statement: without the lock, a switch in the middle of a
        transaction would put some rows into one copy, and the others with the position into
        another.
        """
        self._require(cursor.execute(HOLD, (*self._key, before)).rowcount, before)

    def move(self, cursor: Cursor[Any], before: int, after: int) -> None:
        """Advance it, in the transaction that changed the rows."""
        self._require(cursor.execute(MOVE, (after, *self._key, before)).rowcount, before)

    def stop(self, cursor: Cursor[Any], before: int, *, culprit: int, error: str) -> None:
        """Halt in front of the event at `culprit`, which can't be applied."""
        values = (max(before, culprit - 1), error, culprit, *self._key, before)
        self._require(cursor.execute(STOP, values).rowcount, before)

    @property
    def _key(self) -> tuple[str, str, str, int, int]:
        return self.kind, self.subscription, self.source, self.partition, self.version

    def _require(self, rows: int, before: int) -> None:
        if rows != 1:
            raise Superseded(f"{self.subscription} is no longer running at position {before}.")


@dataclass(frozen=True, slots=True)
class Seen:
    """A copy's checkpoint, and the end of the log at the same moment."""

    version: int
    position: int
    status: str
    error: str | None
    updated_at: datetime
    head: int


def of_copy(schema: str, version: int) -> Checkpoint:
    """Return the checkpoint of a copy of a projection."""
    return Checkpoint(SubscriptionKind.PROJECTION, schema, version)


def look(conn: Connection[TupleRow], schema: str) -> Seen | None:
    """Return the state of one copy; None before it was made."""
    with conn.cursor(row_factory=class_row(Seen)) as cursor:
        return cursor.execute(LOOK, (schema,)).fetchone()


def position_of(schema: str) -> bytes:
    """Return SQL that asks how far the copy of that name is; NULL before it was made."""
    statement = SQL(
        "SELECT position FROM backlot_checkpoints "
        "WHERE kind = 'projection' AND subscription = {schema}"
    )
    return statement.format(schema=schema).as_bytes(None)


def retry(conn: Connection[TupleRow], schema: str) -> bool:
    """Let a copy that a poison event stopped try again; return whether it was stopped."""
    return conn.execute(RUN, (schema, [CheckpointStatus.STOPPED])).rowcount == 1


def pause(conn: Connection[Any], schema: str) -> bool:
    """Have the copy rest where it stands, in any process; return False if it did not run."""
    changed = conn.execute(PAUSE, (schema,)).rowcount == 1
    notify(conn)
    return changed


def resume(conn: Connection[Any], schema: str) -> bool:
    """Have a paused or stopped copy go on; return False if it was neither."""
    statuses = [CheckpointStatus.PAUSED, CheckpointStatus.STOPPED]
    changed = conn.execute(RUN, (schema, statuses)).rowcount == 1
    notify(conn)
    return changed


def culprit_of(cursor: Cursor[Any], schema: str) -> tuple[int, str] | None:
    """Return the event that a copy stopped in front of, with its error, and lock the copy."""
    return cast("tuple[int, str] | None", cursor.execute(STOPPED, (schema,)).fetchone())


def skip(cursor: Cursor[Any], schema: str) -> None:
    """Let a stopped copy run behind the event that it stopped in front of."""
    cursor.execute(SKIP, (schema,))
    notify(cursor)


def create(conn: Connection[Any], schema: str, projection: str, version: int) -> None:
    """Begin the checkpoint of a new copy at position 0."""
    conn.execute(CREATE, (schema, projection, version))


def lock(conn: Connection[Any], schema: str) -> tuple[int, int] | None:
    """Keep a copy as it is until the transaction ends; return its version and its position."""
    return cast("tuple[int, int] | None", conn.execute(LOCK, (schema,)).fetchone())


def set_version(conn: Connection[Any], schema: str, version: int) -> None:
    """Say that a copy is of this version now."""
    conn.execute(SET_VERSION, (version, schema))


def copies(conn: Connection[Any], projection: str, prefix: str) -> list[str]:
    """Return the schemas of a projection's copies that begin with a prefix."""
    return [schema for (schema,) in conn.execute(COPIES, (projection, prefix)).fetchall()]


def begin(
    conn: Connection[Any], kind: SubscriptionKind, subscription: str, sources: Iterable[str]
) -> None:
    """Begin a subscription at position 0 of each source where it has no checkpoint."""
    conn.execute(BEGIN, (kind, subscription, list(sources)))


def positions(conn: Connection[Any], kind: SubscriptionKind, subscription: str) -> dict[Place, int]:
    """Return how far a subscription has come in each partition of its sources."""
    rows = conn.execute(POSITIONS, (kind, subscription)).fetchall()
    return {(source, partition): position for source, partition, position in rows}


def set_positions(
    conn: Connection[Any], kind: SubscriptionKind, subscription: str, moved: Mapping[Place, int]
) -> None:
    """Write down how far a subscription has come; one that only its leader calls."""
    if moved:
        rows = [(source, partition, at) for (source, partition), at in moved.items()]
        columns = map(list, zip(*rows, strict=True))
        conn.execute(SET, (kind, subscription, *columns), prepare=True)


Pool = AsyncConnectionPool[LiveAsyncConnection[TupleRow]]

POLL_SECONDS = 0.01
# A query with no time left still gets one look.
SHORTEST_WAIT_SECONDS = 0.1
# A call may come just before what is waited for can be read (from Kafka, say): hence again.
CALL_SECONDS = 0.1
READ_MODELS = b"""
SELECT subscription, position, 0, version, status = 'running' FROM backlot_checkpoints
WHERE kind = 'projection'
"""
# A process of the release before that takes over from another one needs less.
UNFED_SECONDS = 2.0


class ReadModelBehind(Exception):
    """A position was not reached in time.

    `wanted` and `positions` say how far everything that was waited for should be, and is.
    """

    def __init__(self, wanted: Mapping[str, Position], positions: Mapping[str, Position]) -> None:
        super().__init__("The read model has not come that far yet; try again.")
        self.wanted = dict(wanted)
        self.positions = dict(positions)


@dataclass(frozen=True, slots=True)
class Freshness:
    """What an answer has to include, and until when it may wait for that (by `time.monotonic`).

    `tell` hears how far the answer is, `fall_behind` how far in the log it is where that is less
    than is known, and `admit` where it is less than was asked for and can't be changed.
    """

    position: Position = BEGINNING
    deadline: float = 0.0
    admit: Callable[[int], None] = lambda position: None
    fall_behind: Callable[[int], None] = lambda position: None
    tell: Callable[[Position], None] = lambda position: None

    @property
    def is_asked(self) -> bool:
        """Return whether the client named a position."""
        return self.position != BEGINNING

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


WHATEVER_THERE_IS = Freshness()


@dataclass(slots=True, eq=False)
class Wait:
    """A query that waits for each of these names to reach its position."""

    wanted: Mapping[str, Position]
    reached: asyncio.Future[None]
    # Whether it ends, too, where what it waits for stands still.
    settles: bool = False


class Waiting:
    """Waits for read models, or for consumers; to be used from one event loop."""

    def __init__(
        self,
        pool: Pool,
        projections: Iterable[Projection] = (),
        *,
        query: bytes = READ_MODELS,
        log_pool: Pool | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """`query` says on `pool` how far each is; they are called where the log is.

        `projections` are those of this program: it can tell which copies it can't feed. Whatever
        else is waited for is assumed to be fed by some process.
        """
        self._pool = pool
        self._query = query
        self._log_pool = log_pool or pool
        self._versions = {each.schema: each.versions for each in projections}
        # Copies of versions that this program can't feed, and since when none does.
        self._unfed: dict[str, float] = {}
        # Copies that were stopped or paused.
        self._resting: frozenset[str] = frozenset()
        # How far those had come that were waited for in vain.
        self._given_up: dict[str, int] = {}
        self._poll_seconds = poll_seconds
        self._waits: set[Wait] = set()
        self._positions: Mapping[str, Position] = {}
        self._poller: asyncio.Task[None] | None = None
        # Whether a query has begun to wait since the last call to hurry, and when that call was.
        self._uncalled = False
        self._called = float("-inf")

    async def until(
        self, wanted: Mapping[str, Position], timeout_seconds: float, *, settles: bool = False
    ) -> int | None:
        """Return when each of these (by schema, or by consumer) has taken its position in.

        A copy that no process can feed until its replay has ended is not waited for: then this
        returns how far in the log the one that is farthest behind has come; otherwise None. Raise
        ReadModelBehind after the timeout, and what the database raises when it is away.
        """
        if self.covers(wanted):
            return None
        wait = Wait(wanted, asyncio.get_running_loop().create_future(), settles)
        self._waits.add(wait)
        self._uncalled = True
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            async with asyncio.timeout(max(timeout_seconds, SHORTEST_WAIT_SECONDS)):
                await wait.reached
        except TimeoutError as error:
            if not self._is_over(wait, self._unfed):
                raise ReadModelBehind(wanted, {name: self._at(name) for name in wanted}) from error
        finally:
            self._waits.discard(wait)
        behind = [self._at(name).events for name in wanted if not self._covers(name, wanted[name])]
        if not behind:
            return None
        return min(behind)

    def covers(self, wanted: Mapping[str, Position]) -> bool:
        """Return whether each of these was seen to have come so far."""
        return all(self._covers(name, position) for name, position in wanted.items())

    async def settle(self, wanted: Mapping[str, Position], timeout_seconds: float) -> int | None:
        """Return as `until` does, and without an error when one does not come so far in time.

        What rests is not waited for, nor what was waited for in vain, until it moves.
        """
        try:
            return await self.until(wanted, timeout_seconds, settles=True)
        except ReadModelBehind as behind:
            late = {
                name: at.events
                for name, at in behind.positions.items()
                if not at.covers(behind.wanted[name])
            }
            self._given_up |= late
            log.warning("read_models_behind", wanted=behind.wanted, positions=behind.positions)
            return min(late.values())

    def _stands(self, name: str) -> bool:
        return name in self._resting or self._given_up.get(name) == self._at(name).events

    async def _poll(self) -> None:
        try:
            while self._waits:
                await self._look()
                self._release()
                await self._call()
                if self._waits:
                    await asyncio.sleep(self._poll_seconds)
        except Error as error:
            for wait in self._waits:
                if not wait.reached.done():
                    wait.reached.set_exception(error)
        finally:
            self._poller = None

    async def _look(self) -> None:
        async with self._pool.connection() as conn:
            try:
                rows = await (await conn.execute(self._query)).fetchall()
            except UndefinedTable:
                # None of them has ever begun.
                rows = []
            self._positions = {name: Position(*numbers) for name, *numbers, _, _ in rows}
            self._resting = frozenset(name for name, *_, runs in rows if not runs)
            # Copies of read models of this program, of versions that it can't feed.
            fed = self._versions
            foreign = [name for name, *_, at, _ in rows if name in fed and at not in fed[name]]
            self._unfed = await self._without_runner(conn, foreign) if foreign else {}

    async def _call(self) -> None:
        """Have what is waited for hurry."""
        if self._waits and (self._uncalled or time.monotonic() - self._called >= CALL_SECONDS):
            self._uncalled, self._called = False, time.monotonic()
            async with self._log_pool.connection() as conn:
                await conn.execute(NOTIFY, (EVENTS_CHANNEL, HURRY))

    async def _without_runner(
        self, conn: LiveAsyncConnection[TupleRow], schemas: Collection[str]
    ) -> dict[str, float]:
        """Return the copies that no process runs, with the time of the first look."""
        active = await conn.execute(ACTIVE, (int(LockClass.PROJECTION),))
        held = {key for (key,) in await active.fetchall()}
        now = time.monotonic()
        unfed = {s: self._unfed.get(s, now) for s in schemas if copy_lock(s).key not in held}
        for schema in unfed.keys() - self._unfed.keys():
            position = self._at(schema).events
            log.warning("read_model_unfed", projection=schema, position=position)
        return unfed

    def _release(self) -> None:
        long_ago = time.monotonic() - UNFED_SECONDS
        standing = {schema for schema, since in self._unfed.items() if since <= long_ago}
        for wait in list(self._waits):
            if self._is_over(wait, standing):
                self._waits.discard(wait)
                if not wait.reached.done():
                    wait.reached.set_result(None)

    def _is_over(self, wait: Wait, standing: Collection[str]) -> bool:
        """Return whether each that is waited for has come as far as is wanted, or stands still."""
        return all(
            name in standing
            or self._covers(name, position)
            or (wait.settles and self._stands(name))
            for name, position in wait.wanted.items()
        )

    def _covers(self, name: str, position: Position) -> bool:
        return name in self._positions and self._positions[name].covers(position)

    def _at(self, name: str) -> Position:
        return self._positions.get(name, BEGINNING)

"""Applies stretches of the log to one copy of a projection: rows, ledger and position together.

The runner of a live copy and the replay of another one go through here, so that each event counts
exactly once in both. A position says how far a copy has come. The ledger says that nothing was left
out or counted twice on the way, and in which block of positions it was if something was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from psycopg import Connection, Cursor, ProgrammingError
from psycopg.rows import TupleRow

from engine import dead_letters
from engine.checkpoints import Checkpoint, Superseded, of_copy
from engine.connections import is_outage
from engine.log import Log, LogWindow, Stored
from engine.projection import Batch, Projection, RangeProjection
from infra.errors import describe

log = structlog.get_logger(__name__)

BLOCK_POSITIONS = 10_000
"""Positions 1 to 10,000 are block 0, and so on: a million events cost a copy a hundred rows."""

# In the order of the blocks, so that two processes that apply to one copy never deadlock.
ACCOUNT = b"""
INSERT INTO projections.ledger AS l (schema, block, applied, positions)
SELECT %b, * FROM unnest(%b::bigint[], %b::bigint[], %b::numeric[])
ON CONFLICT (schema, block) DO UPDATE
SET applied = l.applied + excluded.applied, positions = l.positions + excluded.positions
"""
ACCOUNT_RANGE = b"""
INSERT INTO projections.ledger AS l (schema, block, applied, positions)
SELECT %(schema)s, block, until - after, (until - after) * (after + 1 + until)::numeric / 2
FROM (SELECT block, greatest(%(after)s, block * %(size)s) AS after,
             least(%(until)s, (block + 1) * %(size)s) AS until
      FROM generate_series(%(after)s::bigint / %(size)s, (%(until)s::bigint - 1) / %(size)s)
           AS block) AS blocks
ON CONFLICT (schema, block) DO UPDATE
SET applied = l.applied + excluded.applied, positions = l.positions + excluded.positions
"""


def account(cursor: Cursor[Any], schema: str, positions: Sequence[int]) -> None:
    """Account events that are applied in this transaction: their number, and their positions' sum.

    The positions are in rising order. To be called last, before the copy's position moves.
    """
    rows, begin = [], 0
    while begin < len(positions):
        block = (positions[begin] - 1) // BLOCK_POSITIONS
        end = bisect_right(positions, (block + 1) * BLOCK_POSITIONS, begin)
        rows.append((block, end - begin, sum(positions[begin:end])))
        begin = end
    if rows:
        cursor.execute(ACCOUNT, (schema, *map(list, zip(*rows, strict=True))), prepare=True)


def account_range(cursor: Cursor[Any], schema: str, after: int, until: int) -> None:
    """Account every event of a stretch of the log; its first position is `after` + 1."""
    if after < until:
        size = BLOCK_POSITIONS
        values = {"schema": schema, "after": after, "until": until, "size": size}
        cursor.execute(ACCOUNT_RANGE, values)


@dataclass(frozen=True, slots=True)
class Step:
    """What one transaction came to: the copy's new position, events applied, whether some broke.

    `until` is where it stands now, which is before the broken event when that stopped it.
    """

    until: int
    applied: int
    broken: bool = False


def try_event(
    conn: Connection[TupleRow], cursor: Cursor[TupleRow], projection: Projection, stored: Stored
) -> Exception | None:
    """Apply one event under a savepoint; return what it broke on, and raise an outage."""
    try:
        with conn.transaction():
            projection.apply([stored.decode()], cursor)
    except Exception as error:
        if is_outage(error):
            raise
        return error
    return None


class Applier:
    """Moves one copy along the log, a transaction at a time."""

    def __init__(
        self,
        projection: Projection,
        *,
        batch_events: int,
        place: Checkpoint | None = None,
        log: Log | None = None,
    ) -> None:
        """`place` and `log` are the copy's row and its topics, unless it is built in parts."""
        self.projection = projection
        self.place = place or of_copy(projection.schema, projection.version)
        self.log = log or Log(projection.events, batch_events=batch_events)
        self._batch_events = batch_events

    def advance(self, conn: Connection[TupleRow], before: int, head: int) -> Step:
        """Read and take in the next window after `before`, at most up to `head`; see `take_in`."""
        return self.take_in(conn, before, self.read(conn, before, head))

    def read(self, conn: Connection[TupleRow], before: int, head: int) -> LogWindow:
        """Return the next window after `before`, at most up to `head`.

        Without events where the projection reads the log by itself.
        """
        if isinstance(self.projection, RangeProjection):
            return LogWindow([], min(head, before + self._batch_events))
        return self.log.read(conn, before, head)

    def decode(self, window: LogWindow) -> Batch:
        """Return the window's events in their newest shape; raise MapperDeserialisationError."""
        return [stored.decode() for stored in window.events]

    def take_in(
        self, conn: Connection[TupleRow], before: int, window: LogWindow, batch: Batch | None = None
    ) -> Step:
        """Apply a window, whose events are in `batch` where they are decoded already.

        An event that can't be applied is parked, or stops the copy, by the projection's policy.
        Raise Superseded when the copy is no longer running at `before`, and what the database
        raises when it is away.
        """
        try:
            return self._apply(conn, before, window, batch)
        except Exception as error:
            if isinstance(error, Superseded) or is_outage(error):
                raise
            if isinstance(self.projection, RangeProjection):
                return self._stop(conn, before, error)
            return self.sort_out(conn, before, window, error)

    def _apply(
        self, conn: Connection[TupleRow], before: int, window: LogWindow, batch: Batch | None
    ) -> Step:
        """Apply a window as a whole; raise whatever the projection does on an event it can't."""
        projection, until = self.projection, window.until
        with conn.cursor(binary=True) as cursor:
            if isinstance(projection, RangeProjection):
                with conn.transaction():
                    self.place.hold(cursor, before)
                    projection.apply_range(before, until, cursor)
                    account_range(cursor, projection.schema, before, until)
                    self.place.move(cursor, before, until)
                return Step(until, until - before)
            if not window.events:
                self.place.move(cursor, before, until)
                return Step(until, 0)
            batch = batch or self.decode(window)
            with conn.transaction():
                self.place.hold(cursor, before)
                projection.apply(batch, cursor)
                account(cursor, projection.schema, [recorded.position for recorded in batch])
                self.place.move(cursor, before, until)
        return Step(until, len(batch))

    def sort_out(
        self, conn: Connection[TupleRow], before: int, window: LogWindow, error: Exception
    ) -> Step:
        """Apply a window that failed as a whole, each event under a savepoint, in one transaction.

        A culprit is parked, or the copy stops in front of it. Raise what is not an event's fault:
        an outage, or Superseded.
        """
        projection, until = self.projection, window.until
        log.warning("projection_batch_failed", projection=projection.name, error=describe(error))
        applied: list[int] = []
        with conn.transaction(), conn.cursor(binary=True) as cursor:
            self.place.hold(cursor, before)
            for stored in window.events:
                fault = try_event(conn, cursor, projection, stored)
                if fault is None:
                    applied.append(stored.position)
                elif not self._park(cursor, stored, fault):
                    break
            else:
                fault = None
            account(cursor, projection.schema, applied)
            if fault is None:
                self.place.move(cursor, before, until)
            else:
                until = stored.position - 1
                self.place.stop(cursor, before, culprit=stored.position, error=describe(fault))
                self._log("projection_stopped", stored, fault)
        return Step(until, len(applied), broken=True)

    def _park(self, cursor: Cursor[TupleRow], stored: Stored, error: Exception) -> bool:
        """Set an event aside by the projection's policy, or as an operator decided or ordered.

        Return False where the copy has to stop.
        """
        # A missing table or column breaks every event; parking them all would hide it.
        if isinstance(error, ProgrammingError):
            return False
        name, schema = self.projection.name, self.projection.schema
        position, fault = stored.position, describe(error)
        order = dead_letters.parking_order(cursor, name, stored.topic, position, fault)
        # What holds for the live copy does for this one: else nobody could rebuild it.
        decided = dead_letters.is_decided(cursor, name, position)
        if not (decided or order or self.projection.on_poison == "park"):
            return False
        dead_letters.park(cursor, schema, position, fault)
        if order and not dead_letters.is_decided(cursor, schema, position):
            dead_letters.say_why(cursor, schema, position, *order)
        self._log("projection_event_parked", stored, error)
        return True

    def _log(self, what: str, stored: Stored, error: Exception) -> None:
        log.error(
            what,
            projection=self.projection.name,
            position=stored.position,
            stream=str(stored.stream_id),
            topic=stored.topic,
            error=describe(error),
            exc_info=error,
        )

    def _stop(self, conn: Connection[TupleRow], before: int, error: Exception) -> Step:
        """Stop a copy that its own SQL makes: whatever breaks it, no single event is to blame."""
        with conn.transaction(), conn.cursor(binary=True) as cursor:
            self.place.stop(cursor, before, culprit=before + 1, error=describe(error))
        name, position = self.projection.name, before + 1
        log.error("projection_stopped", projection=name, position=position, exc_info=error)
        return Step(before, 0, broken=True)

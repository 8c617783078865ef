"""Applies stretches of the log to one copy of a projection: rows, ledger and position together.

The runner of a live copy and the replay of another one go through here, so that each event counts
exactly once in both.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog
from psycopg import Connection, Cursor, ProgrammingError
from psycopg.rows import TupleRow

from engine import dead_letters, ledger
from engine.checkpoints import Checkpoint, Superseded, of_copy
from engine.codec import MAPPER, EventMapper
from engine.connections import is_outage
from engine.log import Log, LogWindow, Stored
from engine.projection import Batch, Projection, RangeProjection
from infra.errors import describe

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class BatchOutcome:
    """What became of a batch that was applied event by event: the positions of each kind."""

    applied: list[int] = field(default_factory=list)
    parked: list[int] = field(default_factory=list)
    stopped_at: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What one transaction came to: the copy's new position, events applied, whether some broke.

    `until` is where it stands now, which is before the broken event when that stopped it.
    """

    until: int
    applied: int
    broken: bool = False


def apply_one_by_one(
    conn: Connection[TupleRow],
    projection: Projection,
    place: Checkpoint,
    events: Log,
    before: int,
    window: LogWindow,
) -> BatchOutcome:
    """Apply a window that failed as a whole, each event under a savepoint, in one transaction.

    A culprit is parked, or the projection stops in front of it, by its policy, or as an operator
    decided for the live copy, or ordered for all events like it. Raise what is not an event's
    fault: an outage, or checkpoints.Superseded.
    """
    result = BatchOutcome()
    with conn.transaction(), conn.cursor(binary=True) as cursor:
        place.hold(cursor, before)
        for stored in window.events:
            error = try_event(conn, cursor, projection, events, stored)
            if error is None:
                result.applied.append(stored.position)
            elif _may_park(cursor, projection, stored, error):
                _park(cursor, projection, stored, error)
                result.parked.append(stored.position)
            else:
                ledger.add(cursor, projection.schema, result.applied)
                place.stop(cursor, before, culprit=stored.position, error=describe(error))
                _log("projection_stopped", projection, stored, error)
                result.stopped_at = stored.position
                return result
        ledger.add(cursor, projection.schema, result.applied)
        place.move(cursor, before, window.until)
    return result


def try_event(
    conn: Connection[TupleRow],
    cursor: Cursor[TupleRow],
    projection: Projection,
    events: Log,
    stored: Stored,
) -> Exception | None:
    """Apply one event under a savepoint; return what it broke on, and raise an outage."""
    try:
        with conn.transaction():
            projection.apply([events.decode(stored)], cursor)
    except Exception as error:
        if is_outage(error):
            raise
        return error
    return None


def _may_park(
    cursor: Cursor[TupleRow], projection: Projection, stored: Stored, error: Exception
) -> bool:
    # A missing table or column breaks every event; parking them all would hide it.
    if isinstance(error, ProgrammingError):
        return False
    # Otherwise nobody could rebuild a copy that an operator has led past an event.
    decided = dead_letters.is_decided(cursor, projection.name, stored.position)
    ordered = decided or _order(cursor, projection, stored, error) is not None
    return ordered or projection.on_poison == "park"


def _order(
    cursor: Cursor[TupleRow], projection: Projection, stored: Stored, error: Exception
) -> dead_letters.ParkingOrder | None:
    fault = describe(error)
    return dead_letters.parking_order(cursor, projection.name, stored.topic, stored.position, fault)


def _park(
    cursor: Cursor[TupleRow], projection: Projection, stored: Stored, error: Exception
) -> None:
    schema, position = projection.schema, stored.position
    dead_letters.park(cursor, schema, position, describe(error))
    decided = dead_letters.is_decided(cursor, schema, position)
    if not decided and (order := _order(cursor, projection, stored, error)):
        dead_letters.say_why(cursor, schema, position, *order)
    _log("projection_event_parked", projection, stored, error)


def _log(what: str, projection: Projection, stored: Stored, error: Exception) -> None:
    log.error(
        what,
        projection=projection.name,
        position=stored.position,
        stream=str(stored.stream_id),
        topic=stored.topic,
        error=describe(error),
        exc_info=error,
    )


class Applier:
    """Moves one copy along the log, a transaction at a time."""

    def __init__(
        self,
        projection: Projection,
        *,
        mapper: EventMapper = MAPPER,
        batch_events: int,
        place: Checkpoint | None = None,
        log: Log | None = None,
    ) -> None:
        """`place` and `log` are the copy's row and its topics, unless it is built in parts."""
        self.projection = projection
        self.place = place or of_copy(projection.schema, projection.version)
        self.log = log or Log(projection.events, mapper=mapper, batch_events=batch_events)
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

    def take_in(
        self,
        conn: Connection[TupleRow],
        before: int,
        window: LogWindow,
        batch: Batch | None = None,
    ) -> Step:
        """Apply a window, whose events are in `batch` where they are decoded already.

        An event that can't be applied is parked, or stops the copy, by the projection's policy.
        Raise Superseded when the copy is no longer running at `before`, and what the database
        raises when it is away.
        """
        if isinstance(self.projection, RangeProjection):
            return self._take_in_range(conn, self.projection, before, window.until)
        try:
            return self._apply(conn, before, window, batch or self.decode(window))
        except Superseded:
            raise
        except Exception as error:
            if is_outage(error):
                raise
            return self.sort_out(conn, before, window, error)

    def decode(self, window: LogWindow) -> Batch:
        """Return the window's events in their newest shape; raise MapperDeserialisationError."""
        return [self.log.decode(stored) for stored in window.events]

    def _apply(
        self, conn: Connection[TupleRow], before: int, window: LogWindow, batch: Batch
    ) -> Step:
        """Apply a window as a whole; raise whatever the projection does on an event it can't."""
        projection = self.projection
        with conn.cursor(binary=True) as cursor:
            if not batch:
                self.place.move(cursor, before, window.until)
                return Step(window.until, 0)
            with conn.transaction():
                self.place.hold(cursor, before)
                projection.apply(batch, cursor)
                ledger.add(cursor, projection.schema, [recorded.position for recorded in batch])
                self.place.move(cursor, before, window.until)
        return Step(window.until, len(batch))

    def sort_out(
        self, conn: Connection[TupleRow], before: int, window: LogWindow, error: Exception
    ) -> Step:
        """Apply a window that broke as a whole event by event, each by the projection's policy."""
        name = self.projection.name
        log.warning("projection_batch_failed", projection=name, error=describe(error))
        result = apply_one_by_one(conn, self.projection, self.place, self.log, before, window)
        until = window.until if result.stopped_at is None else result.stopped_at - 1
        return Step(until, len(result.applied), broken=True)

    def _take_in_range(
        self, conn: Connection[TupleRow], projection: RangeProjection, before: int, until: int
    ) -> Step:
        try:
            with conn.transaction(), conn.cursor(binary=True) as cursor:
                self.place.hold(cursor, before)
                projection.apply_range(before, until, cursor)
                ledger.add_range(cursor, projection.schema, before, until)
                self.place.move(cursor, before, until)
        except Superseded:
            raise
        except Exception as error:
            if is_outage(error):
                raise
            # Its statement takes any event; whatever breaks it, no single event is to blame.
            with conn.transaction(), conn.cursor(binary=True) as cursor:
                self.place.stop(cursor, before, culprit=before + 1, error=describe(error))
            log.exception("projection_stopped", projection=projection.name, position=before + 1)
            return Step(before, 0, broken=True)
        return Step(until, until - before)

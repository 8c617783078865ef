"""Finds the event that a batch broke on, and keeps it from holding up the others."""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog
from psycopg import Connection, Cursor, ProgrammingError
from psycopg.rows import TupleRow

from engine import dead_letters
from engine.checkpoints import Checkpoint
from engine.connections import is_outage
from infra.errors import describe
from projections import ledger
from projections.log import Log, LogWindow, Stored
from projections.projection import Projection

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class BatchOutcome:
    """What became of a batch that was applied event by event: the positions of each kind."""

    applied: list[int] = field(default_factory=list)
    parked: list[int] = field(default_factory=list)
    stopped_at: int | None = None


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
    decided for the live copy, or ordered for all events like it. Raises what is not an event's
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
    """Apply one event under a savepoint; returns what it broke on, and raises an outage."""
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

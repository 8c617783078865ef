"""What operators decide about an event that can't be applied: to leave it out, or to park it.

Nothing is ever forgotten by it: the row stays, with who decided, when and why.
"""

from __future__ import annotations

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.text import shows
from infra.errors import OperatorError
from projections import positions
from projections.log import CHANNEL
from projections.parking.parked import NotParked, Parked, find
from projections.projection import Projection, RangeProjection

log = structlog.get_logger(__name__)

DISCARD = b"""
UPDATE projections.parked
SET status = 'discarded', decided_by = %s, decided_at = now(), reason = %s
WHERE schema = %s AND position = %s AND status = 'parked'
"""
STOPPED = b"""
SELECT error_position, error FROM projections.state
WHERE schema = %s AND status = 'stopped' AND position = error_position - 1 FOR NO KEY UPDATE
"""
SAY_WHY = b"""
UPDATE projections.parked SET decided_by = %s, decided_at = now(), reason = %s
WHERE schema = %s AND position = %s
"""
GO_ON = b"""
UPDATE projections.state
SET position = error_position, status = 'running', error = NULL, error_position = NULL,
    updated_at = now()
WHERE schema = %s
"""


class NotStopped(OperatorError):
    """The projection does not stand in front of an event that it can't apply."""


class NoReason(OperatorError):
    """An event is left out only for a reason that is written down."""


def discard(
    conn: Connection[TupleRow], schema: str, position: int, *, reason: str, actor: str
) -> Parked:
    """Leave a parked event out of this copy, and of those that are built and can't apply it either.

    Raises NotParked, and NoReason where none is given.
    """
    _demand(reason)
    with conn.transaction():
        found = conn.execute(DISCARD, (actor, reason, schema, position)).rowcount
        if not found:
            raise NotParked(f"No event of {schema} waits for a decision at position {position}.")
        conn.execute(b"SELECT pg_notify(%s, '')", (CHANNEL,))
        log.warning("projection_event_discarded", projection=schema, position=position, actor=actor)
        return find(conn, schema, position)


def park_and_go_on(
    conn: Connection[TupleRow], projection: Projection, *, reason: str, actor: str
) -> Parked:
    """Park the event that a projection stopped in front of, and let it run behind that.

    Raises NotStopped, and NoReason where none is given.
    """
    _demand(reason)
    name, schema = projection.name, projection.schema
    if isinstance(projection, RangeProjection):
        raise NotStopped(f"{name} is made from stretches of the log: no single event is at fault.")
    with conn.transaction(), conn.cursor() as cursor:
        row = cursor.execute(STOPPED, (schema,)).fetchone()
        if row is None:
            raise NotStopped(f"{schema} is not stopped in front of an event.")
        position, error = row
        positions.park(cursor, schema, position, error)
        cursor.execute(SAY_WHY, (actor, reason, schema, position))
        cursor.execute(GO_ON, (schema,))
        cursor.execute(b"SELECT pg_notify(%s, '')", (CHANNEL,))
        log.warning("projection_event_parked", projection=name, position=position, actor=actor)
    return find(conn, schema, position)


def _demand(reason: str) -> None:
    if not shows(reason):
        raise NoReason("Say why: the reason is kept with the event.")

"""What operators decide about an event that can't be applied: to leave it out, or to park it.

Nothing is ever forgotten by it: the row stays, with who decided, when and why.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.text import shows
from engine import checkpoints, dead_letters
from engine.notifications import notify
from infra.errors import OperatorError
from projections.parking.parked import NotParked, Parked, find
from projections.projection import Projection, RangeProjection

log = structlog.get_logger(__name__)


class NotStopped(OperatorError):
    """The projection does not stand in front of an event that it can't apply."""


class NoReason(OperatorError):
    """An event is left out only for a reason that is written down."""


def remedy(name: str) -> str:
    """What an operator does about a projection that stands in front of an event it can't apply."""
    return (
        f"remove the cause and `backlot projections resume {name}`, or go on without the event: "
        f"`backlot projections parked park {name} --reason …`"
    )


def discard(
    conn: Connection[TupleRow], schema: str, position: int, *, reason: str, actor: str
) -> Parked:
    """Leave a parked event out of this copy, and of those that are built and can't apply it either.

    Raises NotParked, and NoReason where none is given.
    """
    if not discard_all(conn, schema, [position], reason=reason, actor=actor):
        raise NotParked(f"No event of {schema} waits for a decision at position {position}.")
    return find(conn, schema, position)


def discard_all(
    conn: Connection[TupleRow], schema: str, positions: Sequence[int], *, reason: str, actor: str
) -> list[int]:
    """The same with several; returns those that waited for a decision. Raises NoReason."""
    _demand(reason)
    with conn.transaction(), conn.cursor() as cursor:
        found = dead_letters.discard(cursor, schema, positions, actor=actor, reason=reason)
        notify(cursor)
    for position in found:
        log.warning("projection_event_discarded", projection=schema, position=position, actor=actor)
    return found


def park_and_go_on(
    conn: Connection[TupleRow],
    projection: Projection,
    *,
    reason: str,
    actor: str,
    all_like: int | None = None,
) -> Parked:
    """Park the event that a projection stopped in front of, and let it run behind that.

    `all_like` is that event's position, to have every event parked that is in the log now, of its
    topic, and fails with its error. Raises NotStopped, and NoReason where none is given.
    """
    _demand(reason)
    name, schema = projection.name, projection.schema
    if isinstance(projection, RangeProjection):
        raise NotStopped(f"{name} is made from stretches of the log: no single event is at fault.")
    with conn.transaction(), conn.cursor() as cursor:
        culprit = checkpoints.culprit_of(cursor, schema)
        if culprit is None:
            raise NotStopped(f"{schema} is not stopped in front of an event.")
        position, error = culprit
        if all_like not in (None, position):
            raise NotStopped(f"{schema} is stopped in front of {position}, not of {all_like}.")
        dead_letters.park(cursor, schema, position, error)
        dead_letters.say_why(cursor, schema, position, actor, reason)
        if all_like is not None:
            dead_letters.order_parking(cursor, name, position, error, reason=reason, actor=actor)
        checkpoints.skip(cursor, schema)
        log.warning("projection_event_parked", projection=name, position=position, actor=actor)
    return find(conn, schema, position)


def _demand(reason: str) -> None:
    if not shows(reason):
        raise NoReason("Say why: the reason is kept with the event.")

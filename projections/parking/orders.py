"""Orders of operators to park whatever fails as one event did, so that not each is asked about.

An order holds for the events that were in the log when it was given.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from psycopg import Cursor

from infra.errors import fault_of

TABLE = b"""
CREATE TABLE IF NOT EXISTS projections.park_orders (
    projection text NOT NULL,
    topic text NOT NULL,
    fault text NOT NULL,
    until bigint NOT NULL,
    given_by text NOT NULL,
    reason text NOT NULL,
    given_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (projection, topic, fault))
"""
GIVE = b"""
INSERT INTO projections.park_orders (projection, topic, fault, until, given_by, reason)
SELECT %(projection)s, e.topic, %(fault)s,
       (SELECT max(notification_id) FROM public.backlot_events), %(actor)s, %(reason)s
FROM public.backlot_events e WHERE e.notification_id = %(position)s
ON CONFLICT (projection, topic, fault) DO UPDATE
SET until = excluded.until, given_by = excluded.given_by, reason = excluded.reason,
    given_at = now()
RETURNING until
"""
FIND = b"""
SELECT given_by, reason FROM projections.park_orders
WHERE projection = %s AND topic = %s AND fault = %s AND until >= %s
"""


class Order(NamedTuple):
    """Who wants such events parked, and why."""

    given_by: str
    reason: str


def give(
    cursor: Cursor[Any], projection: str, position: int, error: str, *, reason: str, actor: str
) -> int | None:
    """Have events parked that are of the topic and fail with the error of the one at a position.

    Returns the end of the log, up to which it holds; None when the log has lost that event.
    """
    values = {"projection": projection, "fault": fault_of(error), "position": position}
    row = cursor.execute(GIVE, values | {"actor": actor, "reason": reason}).fetchone()
    return None if row is None else int(row[0])


def find(
    cursor: Cursor[Any], projection: str, topic: str, position: int, error: str
) -> Order | None:
    """The order to park an event of this topic that fails with this error, if one was given."""
    row = cursor.execute(FIND, (projection, topic, fault_of(error), position)).fetchone()
    return None if row is None else Order(*row)

"""Sets a copy's ledger and its parked events against the log, block by block, at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow, class_row

from infra.codec import topics_of
from infra.event_store import EVENTS
from projections.ledger import BLOCK_POSITIONS
from projections.projection import Projection, RangeProjection

# What was applied before there was a ledger counts as an event of the log, not as a wanted one.
BLOCKS = f"""
WITH copy AS (
    SELECT position, accounted_after FROM backlot_checkpoints
    WHERE kind = 'projection' AND subscription = %(schema)s),
reached AS (
    SELECT generate_series(0, (position - 1) / %(size)s) AS block FROM copy WHERE position > 0),
log AS (
    SELECT (notification_id - 1) / %(size)s AS block, count(*) AS events,
           count(*) FILTER (WHERE wanted) AS wanted,
           sum(notification_id) FILTER (WHERE wanted) AS wanted_sum
    FROM (SELECT notification_id, notification_id > (SELECT accounted_after FROM copy)
                 AND (%(all)s OR topic = ANY (%(topics)s::text[])) AS wanted
          FROM {EVENTS}
          WHERE notification_id <= (SELECT position FROM copy)) AS e
    GROUP BY 1),
ledger AS (
    SELECT block, applied, positions AS applied_sum
    FROM projections.ledger WHERE schema = %(schema)s),
aside AS (
    SELECT (p.position - 1) / %(size)s AS block,
           count(*) FILTER (WHERE status = 'parked') AS parked,
           count(*) FILTER (WHERE status = 'discarded') AS discarded,
           sum(p.position) AS aside_sum
    FROM backlot_dead_letters p, copy
    WHERE kind = 'projection' AND subscription = %(schema)s AND p.position > accounted_after
    GROUP BY 1)
SELECT position, accounted_after, block,
       greatest(least(position, (block + 1) * %(size)s) - block * %(size)s, 0) AS expected,
       coalesce(events, 0) AS events,
       coalesce(wanted, 0) AS wanted, coalesce(wanted_sum, 0) AS wanted_sum,
       coalesce(applied, 0) AS applied, coalesce(applied_sum, 0) AS applied_sum,
       coalesce(parked, 0) AS parked, coalesce(discarded, 0) AS discarded,
       coalesce(aside_sum, 0) AS aside_sum
FROM copy LEFT JOIN (
    reached FULL JOIN log USING (block) FULL JOIN ledger USING (block) FULL JOIN aside USING (block)
) ON true
ORDER BY block
""".encode()

SUSPECT = f"""
SELECT (SELECT %(all)s OR topic = ANY (%(topics)s::text[]) FROM {EVENTS}
        WHERE notification_id = %(at)s),
       (SELECT status FROM backlot_dead_letters
        WHERE kind = 'projection' AND subscription = %(schema)s AND position = %(at)s)
""".encode()


@dataclass(frozen=True, slots=True)
class Block:
    """A block of the log up to the copy's position: numbers of events, and sums of positions.

    `block` is None where the copy stands at the beginning and has nothing.
    """

    position: int
    accounted_after: int
    block: int | None
    expected: int
    events: int
    wanted: int
    wanted_sum: int
    applied: int
    applied_sum: int
    parked: int
    discarded: int
    aside_sum: int

    @property
    def surplus(self) -> int:
        """How many events more are accounted than the log wants; negative: how many fewer."""
        return self.applied + self.parked + self.discarded - self.wanted

    @property
    def surplus_sum(self) -> int:
        """By how much the sum of their positions is too large."""
        return int(self.applied_sum + self.aside_sum - self.wanted_sum)

    @property
    def balanced(self) -> bool:
        return self.events == self.expected and self.surplus == 0 and self.surplus_sum == 0


def blocks_of(conn: Connection[TupleRow], projection: Projection) -> list[Block]:
    """Each block up to the copy's position, and any beyond it; [] when there is no such copy."""
    with conn.cursor(row_factory=class_row(Block)) as cursor:
        return cursor.execute(BLOCKS, _values(projection)).fetchall()


def explain(conn: Connection[TupleRow], projection: Projection, block: Block) -> str:
    """What is wrong in a block; the event is named where no more than one can be at fault."""
    told = []
    if block.events != block.expected:
        told.append(f"the log has {block.events} of the {block.expected} events up to there")
    if abs(block.surplus) == 1:
        told.append(_name(conn, projection, block))
    elif block.surplus:
        told.append(_number(block.surplus))
    elif block.surplus_sum:
        told.append("as many events were left out as were counted too often")
    return "; ".join(told)


def _name(conn: Connection[TupleRow], projection: Projection, block: Block) -> str:
    """The one event that is accounted once too often, or never, unless there are more of them."""
    at = block.surplus_sum * block.surplus
    values = _values(projection) | {"at": at}
    ((wanted, status),) = conn.execute(SUSPECT, values).fetchall()
    if block.surplus < 0:
        return f"position {at} was left out" if wanted and not status else _number(block.surplus)
    if wanted is None or (at - 1) // BLOCK_POSITIONS != block.block:
        return _number(block.surplus)
    if at > block.position:
        return f"position {at} is accounted, but the copy stands at {block.position}"
    if not wanted:
        return f"position {at} was applied, and is of a topic that is skipped"
    return f"position {at} was {f'{status} and applied' if status else 'applied twice'}"


def _number(surplus: int) -> str:
    if surplus < 0:
        return f"{-surplus} more left out than counted too often"
    return f"{surplus} more counted too often than left out"


def _values(projection: Projection) -> dict[str, Any]:
    return {
        "schema": projection.schema,
        "size": BLOCK_POSITIONS,
        "all": isinstance(projection, RangeProjection),
        "topics": [topic for event in projection.events for topic in topics_of(event)],
    }

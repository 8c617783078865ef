"""Proves that a copy has left out no event and counted none twice, from the log and its ledger.

Every position up to that of the copy was applied once, skipped by its topic, or set aside.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow, class_row
from pydantic.alias_generators import to_camel

from engine import checkpoints
from engine.event_store import EVENTS
from engine.log import topics_of
from engine.projection import BLOCK_POSITIONS, Projection, RangeProjection
from infra.errors import OperatorError

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

# One moment for all that is read, and a planner that may read the whole log, however long it takes.
SESSION = b"""
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;
SET LOCAL enable_seqscan = on;
SET LOCAL statement_timeout = 0
"""


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


class NoSuchCopy(OperatorError):
    """The copy that is asked for is not in the database."""


class UnknownVersion(OperatorError):
    """The copy was made by another release, which knew what it wants; this one doesn't."""


@dataclass(frozen=True, slots=True)
class UnaccountedBlock:
    """A block that is not accounted for; first and last position belong to it.

    `parked` counts all that were set aside, the discarded too.
    """

    block: int
    first_position: int
    last_position: int
    wanted: int
    applied: int
    parked: int
    detail: str

    def as_dict(self) -> dict[str, Any]:
        return {to_camel(name): value for name, value in asdict(self).items()}


@dataclass(slots=True)
class Completeness:
    """What became of the events of the log up to the copy's position.

    Up to the position `unaccounted` nothing is known, since a release without a ledger applied
    them; 0 for every copy that was made with one. Those events are in `events` only.
    """

    projection: str
    schema: str
    position: int
    unaccounted: int
    events: int = 0
    applied: int = 0
    skipped: int = 0
    parked: int = 0
    discarded: int = 0
    faults: list[UnaccountedBlock] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not self.faults and self.unaccounted == 0

    @property
    def remedy(self) -> str | None:
        """What to do about a copy that is not complete; one sentence."""
        if self.faults:
            return f"Replay {self.projection}; `verify` shows which of its rows are wrong."
        if self.unaccounted:
            return (
                f"A release without a ledger applied the events up to {self.unaccounted}: "
                f"replay {self.projection} to have one."
            )
        return None

    def as_dict(self) -> dict[str, Any]:
        """Return what the command line's --json and the HTTP API show."""
        told = asdict(self)
        del told["faults"]
        return {
            **told,
            "complete": self.complete,
            "faults": [fault.as_dict() for fault in self.faults],
            "remedy": self.remedy,
        }


def explain(conn: Connection[TupleRow], projection: Projection, block: Block) -> str:
    """Return what is wrong in a block; names the event where only one can be at fault."""
    findings = []
    if block.events != block.expected:
        findings.append(f"the log has {block.events} of the {block.expected} events up to there")
    if abs(block.surplus) == 1:
        findings.append(_name(conn, projection, block))
    elif block.surplus:
        findings.append(_number(block.surplus))
    elif block.surplus_sum:
        findings.append("as many events were left out as were counted too often")
    return "; ".join(findings)


def _name(conn: Connection[TupleRow], projection: Projection, block: Block) -> str:
    """Return what is wrong with the one event that is accounted twice or never, if it is one."""
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


def completeness(conn: Connection[TupleRow], projection: Projection) -> Completeness:
    """Account for every position of one copy, which may be running; changes nothing.

    What is provable: events left out and events counted too often hide each other only within one
    block, in equal number and with equal sums of positions. Raise NoSuchCopy, and UnknownVersion.
    """
    with conn.transaction(force_rollback=True):
        conn.execute(SESSION)
        projection = _of_its_version(conn, projection)
        with conn.cursor(row_factory=class_row(Block)) as cursor:
            blocks = cursor.execute(BLOCKS, _values(projection)).fetchall()
        first = blocks[0]
        result = Completeness(
            projection.name, projection.schema, first.position, first.accounted_after
        )
        for block in blocks:
            result.events += block.events
            result.applied += block.applied
            result.parked += block.parked
            result.discarded += block.discarded
            result.skipped += block.events - block.wanted
            if block.block is not None and not block.balanced:
                detail = explain(conn, projection, block)
                result.faults.append(_fault(block.block, block, detail))
    result.skipped -= result.unaccounted
    return result


def _of_its_version(conn: Connection[TupleRow], projection: Projection) -> Projection:
    """Return the projection in the version of this copy."""
    seen = checkpoints.look(conn, projection.schema)
    if seen is None:
        raise NoSuchCopy(f"There is no copy {projection.schema} of {projection.name}.")
    found = projection.of_version(seen.version)
    if found is None:
        raise UnknownVersion(
            f"{projection.schema} is of version {seen.version}, and this release does not know "
            f"which events that wants: replay {projection.name}."
        )
    return found


def _fault(number: int, block: Block, detail: str) -> UnaccountedBlock:
    first = number * BLOCK_POSITIONS + 1
    # A block beyond the copy's position has no events that are wanted yet.
    last = number * BLOCK_POSITIONS + (block.expected or BLOCK_POSITIONS)
    aside = block.parked + block.discarded
    return UnaccountedBlock(number, first, last, block.wanted, block.applied, aside, detail)

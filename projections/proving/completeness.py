"""Proves that a copy has left out no event and counted none twice, from the log and its ledger.

Every position up to that of the copy was applied once, skipped by its topic, or set aside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow

from engine import checkpoints
from infra.errors import OperatorError
from projections.ledger import BLOCK_POSITIONS
from projections.projection import Projection
from projections.proving.accounts import Block, blocks_of, explain

# One moment for all that is read, and a planner that may read the whole log, however long it takes.
SESSION = b"""
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;
SET LOCAL enable_seqscan = on;
SET LOCAL statement_timeout = 0
"""


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
        return {
            "block": self.block,
            "firstPosition": self.first_position,
            "lastPosition": self.last_position,
            "wanted": self.wanted,
            "applied": self.applied,
            "parked": self.parked,
            "detail": self.detail,
        }


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
                f"A release that kept no account applied the events up to {self.unaccounted}: "
                f"replay {self.projection} to have one."
            )
        return None

    def as_dict(self) -> dict[str, Any]:
        """As the command line's --json and the HTTP API tell it."""
        return {
            "projection": self.projection,
            "schema": self.schema,
            "position": self.position,
            "unaccounted": self.unaccounted,
            "events": self.events,
            "applied": self.applied,
            "skipped": self.skipped,
            "parked": self.parked,
            "discarded": self.discarded,
            "complete": self.complete,
            "faults": [fault.as_dict() for fault in self.faults],
            "remedy": self.remedy,
        }


def completeness(conn: Connection[TupleRow], projection: Projection) -> Completeness:
    """Account for every position of one copy, which may be running; changes nothing.

    What is provable: events left out and events counted too often hide each other only within one
    block, in equal number and with equal sums of positions. Raises NoSuchCopy, and UnknownVersion.
    """
    with conn.transaction(force_rollback=True):
        conn.execute(SESSION)
        projection = _of_its_version(conn, projection)
        blocks = blocks_of(conn, projection)
        first = blocks[0]
        result = Completeness(
            projection.name, projection.schema, first.position, first.accounted_after
        )
        for block in blocks:
            if block.block is not None:
                _add(result, block)
                if not block.balanced:
                    result.faults.append(
                        _fault(block.block, block, explain(conn, projection, block))
                    )
    result.skipped -= result.unaccounted
    return result


def _of_its_version(conn: Connection[TupleRow], projection: Projection) -> Projection:
    """What wants the events of this copy, which may be an older version of the projection."""
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


def _add(result: Completeness, block: Block) -> None:
    result.events += block.events
    result.applied += block.applied
    result.parked += block.parked
    result.discarded += block.discarded
    result.skipped += block.events - block.wanted


def _fault(number: int, block: Block, detail: str) -> UnaccountedBlock:
    first = number * BLOCK_POSITIONS + 1
    # A block beyond the copy's position has no events that are wanted yet.
    last = number * BLOCK_POSITIONS + (block.expected or BLOCK_POSITIONS)
    aside = block.parked + block.discarded
    return UnaccountedBlock(number, first, last, block.wanted, block.applied, aside, detail)

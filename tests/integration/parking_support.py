"""What tests of parked events share: copies moved along the log, one with events set aside."""

from __future__ import annotations

from uuid import uuid4

from psycopg import Connection
from psycopg.rows import TupleRow

from engine.checkpoints import look
from engine.installation import install
from engine.parked_events import RetriedEvent
from engine.projection import Applier, Projection
from tests.integration.projection_support import Tally, Writer

VIDEO = uuid4()
PARKED = "SELECT position, status, attempts, error FROM backlot_dead_letters ORDER BY position"


class Parking(Tally):
    on_poison = "park"


def advance(conn: Connection[TupleRow], writer: Writer, projection: Projection) -> None:
    """Bring a copy to the end of the log."""
    install(conn, [projection])
    applier = Applier(projection, batch_events=100)
    at = look(conn, projection.schema)
    assert at is not None
    before = at.position
    while before < at.head:
        before = applier.advance(conn, before, at.head).until


def advance_once(conn: Connection[TupleRow], writer: Writer, projection: Projection) -> None:
    """One window: up to the end of the log, or to the event that stops the copy."""
    if projection.schema == projection.name:
        install(conn, [projection])
    at = look(conn, projection.schema)
    assert at is not None
    applier = Applier(projection, batch_events=100)
    applier.advance(conn, at.position, at.head)


def parked_tally(conn: Connection[TupleRow], writer: Writer) -> Tally:
    """Five likes of five viewers; 2 and 4 are parked."""
    tally = Parking()
    tally.poison = {"viewer-2": ValueError("two"), "viewer-4": ValueError("four")}
    writer.like(VIDEO, *(f"viewer-{n}" for n in range(1, 6)))
    advance(conn, writer, tally)
    return tally


def outcomes(results: list[RetriedEvent]) -> dict[int, str]:
    return {result.position: str(result.outcome) for result in results}

"""Every position is accounted for; whatever was left out, doubled or moved by hand shows."""

from __future__ import annotations

from uuid import uuid4

import pytest
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from engine import projection as ledger
from engine.checkpoints import look
from engine.completeness import Completeness, NoSuchCopy, completeness
from engine.installation import create, drop, install
from engine.projection import Applier, Projection, RangeProjection
from projections.catalog import Catalog
from tests.integration.projection_support import Tally, Writer

VIDEO = uuid4()
BLOCK = 4


class Parking(Tally):
    on_poison = "park"


class Everything(RangeProjection):
    """A projection by SQL: how many events there are."""

    name = "everything"
    tables = "CREATE TABLE {schema}.total (events bigint)"

    def apply_range(self, after: int, until: int, cursor: Cursor[TupleRow]) -> None:
        cursor.execute(self.sql("INSERT INTO {schema}.total VALUES (%b)"), (until - after,))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four positions, so that a short log has many."""
    monkeypatch.setattr(ledger, "BLOCK_POSITIONS", BLOCK)
    monkeypatch.setattr("engine.completeness.BLOCK_POSITIONS", BLOCK)
    monkeypatch.setattr("engine.completeness.BLOCK_POSITIONS", BLOCK)


def advance(
    conn: Connection[TupleRow], writer: Writer, projection: Projection, batch: int = 3
) -> Completeness:
    """Bring a copy to the end of the log, and account for it."""
    applier = Applier(projection, batch_events=batch)
    seen = look(conn, projection.schema)
    assert seen is not None
    position = seen.position
    while position < seen.head:
        position = applier.advance(conn, position, seen.head).until
    return completeness(conn, projection)


@pytest.fixture
def tally(conn: Connection[TupleRow], writer: Writer) -> Tally:
    """Ten likes between five events of other topics; the third and the eighth like are parked."""
    tally = Parking()
    tally.poison = {"viewer-3": ValueError("three"), "viewer-8": ValueError("eight")}
    for n in range(1, 11):
        if n % 2:
            writer.upload()
        writer.like(VIDEO, f"viewer-{n}")
    install(conn, [tally])
    advance(conn, writer, tally)
    return tally


def faults(result: Completeness) -> dict[int, str]:
    return {fault.block: fault.detail for fault in result.faults}


def test_each_event_is_applied_skipped_or_parked(conn: Connection[TupleRow], tally: Tally) -> None:
    result = completeness(conn, tally)
    assert result.as_dict() == {
        "projection": "tally",
        "schema": "tally",
        "position": 15,
        "unaccounted": 0,
        "events": 15,
        "applied": 8,
        "skipped": 5,
        "parked": 2,
        "discarded": 0,
        "complete": True,
        "faults": [],
        "remedy": None,
    }


def test_before_the_first_event(conn: Connection[TupleRow], writer: Writer) -> None:
    install(conn, [Catalog()])
    result = completeness(conn, Catalog())
    assert (result.complete, result.position, result.events) == (True, 0, 0)
    with pytest.raises(NoSuchCopy, match="no copy elsewhere of catalog"):
        completeness(conn, Catalog("elsewhere"))


def test_a_projection_by_stretches_accounts_for_every_event(
    conn: Connection[TupleRow], tally: Tally, writer: Writer
) -> None:
    install(conn, [Everything()])
    result = advance(conn, writer, Everything())
    assert (result.complete, result.applied, result.skipped) == (True, 15, 0)
    conn.execute("UPDATE projections.ledger SET applied = applied - 1 WHERE schema = 'everything'")
    assert len(completeness(conn, Everything()).faults) == 4


# Of positions 1 to 15, every third from 1 is an upload; 5 and 12 are the parked likes.
@pytest.mark.parametrize(
    ("block", "applied", "positions", "told"),
    [
        (1, -1, -6, "position 6 was left out"),
        (1, +1, +6, "position 6 was applied twice"),
        (0, +1, +4, "position 4 was applied, and is of a topic that is skipped"),
        (2, +1, +12, "position 12 was parked and applied"),
        (1, -2, -14, "2 more left out than counted too often"),
        (1, +2, +14, "2 more counted too often than left out"),
        (1, 0, +2, "as many events were left out as were counted too often"),
        (1, -1, -7, "1 more left out than counted too often"),
        (1, +1, +99, "1 more counted too often than left out"),
    ],
)
def test_a_wrong_account_names_the_event_where_it_can(
    conn: Connection[TupleRow], tally: Tally, block: int, applied: int, positions: int, told: str
) -> None:
    account = "UPDATE projections.ledger SET applied = applied + %s, positions = positions + %s"
    conn.execute(f"{account} WHERE block = %s".encode(), (applied, positions, block))
    result = completeness(conn, tally)
    assert faults(result) == {block: told}
    assert not result.complete
    assert "Replay tally" in (result.remedy or "")


@pytest.mark.parametrize(
    ("lost", "block", "told"),
    [
        ("backlot_dead_letters WHERE position = 12", 2, "position 12 was left out"),
        ("projections.ledger WHERE block = 3", 3, "2 more left out than counted too often"),
    ],
)
def test_a_lost_row_shows(
    conn: Connection[TupleRow], tally: Tally, lost: str, block: int, told: str
) -> None:
    conn.execute(f"DELETE FROM {lost}".encode())
    assert faults(completeness(conn, tally)) == {block: told}


def test_a_position_moved_over_an_event(
    conn: Connection[TupleRow], tally: Tally, writer: Writer
) -> None:
    left_out = writer.like(VIDEO, "eve")
    conn.execute("UPDATE backlot_checkpoints SET position = %s", (left_out,))
    writer.like(VIDEO, "mallory")
    result = advance(conn, writer, tally)
    assert faults(result) == {3: "position 16 was left out"}
    assert result.faults[0].as_dict() == {
        "block": 3,
        "firstPosition": 13,
        "lastPosition": 16,
        "wanted": 3,
        "applied": 2,
        "parked": 0,
        "detail": "position 16 was left out",
    }


def test_a_position_moved_back_so_that_events_are_applied_twice(
    conn: Connection[TupleRow], tally: Tally, writer: Writer
) -> None:
    conn.execute("UPDATE backlot_checkpoints SET position = 14")
    assert faults(completeness(conn, tally)) == {
        3: "position 15 is accounted, but the copy stands at 14"
    }
    assert faults(advance(conn, writer, tally)) == {3: "position 15 was applied twice"}


def test_a_position_beyond_the_log(conn: Connection[TupleRow], tally: Tally) -> None:
    conn.execute("UPDATE backlot_checkpoints SET position = 18")
    assert faults(completeness(conn, tally)) == {
        3: "the log has 3 of the 4 events up to there",
        4: "the log has 0 of the 2 events up to there",
    }


def test_a_position_far_behind_what_was_applied(conn: Connection[TupleRow], tally: Tally) -> None:
    conn.execute("UPDATE backlot_checkpoints SET position = 4")
    result = completeness(conn, tally)
    assert list(faults(result)) == [1, 2, 3]
    assert [(f.first_position, f.last_position) for f in result.faults] == [
        (5, 8),
        (9, 12),
        (13, 16),
    ]


def test_an_event_that_is_gone_from_the_log(conn: Connection[TupleRow], tally: Tally) -> None:
    conn.execute("DELETE FROM backlot_events WHERE notification_id = 6")
    told = faults(completeness(conn, tally))
    assert list(told) == [1]
    assert told[1].startswith("the log has 3 of the 4 events up to there; 1 more counted")


def test_a_copy_older_than_the_ledger(
    conn: Connection[TupleRow], tally: Tally, writer: Writer
) -> None:
    """What an older release applied is told apart from what is accounted since."""
    conn.execute("DELETE FROM projections.ledger")
    conn.execute("UPDATE backlot_checkpoints SET accounted_after = position")
    writer.like(VIDEO, "eve")
    result = advance(conn, writer, tally)
    assert (result.complete, result.unaccounted, result.faults) == (False, 15, [])
    assert (result.events, result.applied, result.skipped, result.parked) == (16, 1, 0, 0)
    assert "up to 15" in (result.remedy or "")
    drop(conn, "tally")
    create(conn, tally)
    assert advance(conn, writer, tally).complete

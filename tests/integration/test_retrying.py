"""Parked events tried again: each once, in the order of its stream, and never in a runner's way."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow
from structlog.testing import capture_logs

from engine import checkpoints
from engine.completeness import completeness
from engine.connections import connect
from engine.installation import rename
from engine.parked_events import RetriedEvent, RetryOutcome, retry, show
from engine.projection import Batch
from projections.catalog import Catalog
from projections.likes import Likes
from tests.integration.event_log import rows
from tests.integration.parking_support import (
    PARKED,
    VIDEO,
    Parking,
    advance,
    outcomes,
    parked_tally,
)
from tests.integration.projection_support import Tally, Writer, caught_up, hosting, position, seen
from tests.support import DEADLINE_SECONDS


class BrokenCatalog(Catalog):
    on_poison = "park"

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        raise ValueError("a bug of the last release")


class ParkingLikes(Likes):
    """Can't take the likes of viewers called bad, until it is mended."""

    on_poison = "park"
    mended = False

    def apply(self, batch: Batch, cursor: Cursor[TupleRow]) -> None:
        if not self.mended and any(recorded.event.actor.startswith("bad") for recorded in batch):
            raise ValueError("a bug of the last release")
        super().apply(batch, cursor)


@pytest.fixture
def tally(conn: Connection[TupleRow], writer: Writer) -> Tally:
    return parked_tally(conn, writer)


def test_what_is_mended_is_applied_what_is_poison_stays(
    conn: Connection[TupleRow], tally: Tally, writer: Writer
) -> None:
    tally.poison = {"viewer-4": "SELECT 1 / 0"}
    results = retry(conn, tally)
    assert [result.as_dict() for result in results] == [
        {"position": 2, "outcome": "applied"},
        {"position": 4, "outcome": "failed", "detail": "DivisionByZero: division by zero"},
    ]
    left = conn.execute(PARKED.encode()).fetchall()
    assert left == [(4, "parked", 2, "DivisionByZero: division by zero")]
    result = completeness(conn, tally)
    assert (result.complete, result.applied, result.parked) == (True, 4, 1)
    tally.poison = {}
    assert outcomes(retry(conn, tally, [1, 4])) == {1: "absent", 4: "applied"}
    assert conn.execute("SELECT position FROM tally.seen ORDER BY 1").fetchall() == [
        (n,) for n in range(1, 6)
    ]
    assert completeness(conn, tally).complete
    assert retry(conn, tally) == []


def test_an_old_event_is_upcast_when_it_is_tried_again(
    conn: Connection[TupleRow], writer: Writer
) -> None:
    upload = writer.upload("alice")
    ((state,),) = conn.execute("SELECT state FROM backlot_events").fetchall()
    old = orjson.loads(state)
    del old["category"]
    old["size"] = old.pop("size_bytes")
    old_event = "UPDATE backlot_events SET topic = 'upload.started.v1', state = %s"
    conn.execute(old_event, (orjson.dumps(old),))
    advance(conn, writer, BrokenCatalog())
    shown = show(conn, "catalog", 1)
    assert (shown.parked.topic, shown.newest_topic) == ("upload.started.v1", "upload.started.v2")
    assert shown.payload is not None
    assert shown.payload["category"] is None
    assert outcomes(retry(conn, Catalog())) == {1: "applied"}
    found = conn.execute("SELECT upload_id, size_bytes, category FROM catalog.uploads").fetchall()
    assert found == [(upload.id, 2500, None)]
    assert completeness(conn, Catalog()).complete


def test_a_late_event_is_not_applied_out_of_order(
    conn: Connection[TupleRow], writer: Writer
) -> None:
    """A stream's events count in their order: the rows would not be those of a replay."""
    tally = Parking()
    tally.poison = {"alice": ValueError("not yet")}
    writer.like(VIDEO, "alice", "bob")
    writer.unlike(VIDEO, "alice")
    advance(conn, writer, tally)
    tally.poison = {}
    writer.like(VIDEO, "alice")
    advance(conn, writer, tally)
    assert outcomes(retry(conn, tally)) == {1: "overtaken", 3: "blocked"}
    assert [row[2] for row in conn.execute(PARKED.encode()).fetchall()] == [1, 1]
    forced = retry(conn, tally, force=True)
    assert outcomes(forced) == {1: "applied", 3: "applied"}
    assert completeness(conn, tally).complete


def test_a_stream_that_is_parked_as_a_whole_is_applied_in_order(
    conn: Connection[TupleRow], writer: Writer
) -> None:
    tally = Parking()
    tally.poison = {"alice": ValueError("not yet")}
    writer.like(VIDEO, "alice")
    writer.unlike(VIDEO, "alice")
    advance(conn, writer, tally)
    assert outcomes(retry(conn, tally, [2])) == {2: "blocked"}
    tally.poison = {}
    assert outcomes(retry(conn, tally)) == {1: "applied", 2: "applied"}


def test_two_retries_at_once_apply_each_event_once(
    conn: Connection[TupleRow], tally: Tally, writer: Writer, database_url: str
) -> None:
    tally.poison = {}

    def attempt(_: int) -> list[RetriedEvent]:
        with connect(database_url, "test") as own:
            return retry(own, tally, [2, 4])

    with ThreadPoolExecutor(4) as pool:
        attempts = list(pool.map(attempt, range(4)))
    told = [result.outcome for results in attempts for result in results]
    assert (told.count(RetryOutcome.APPLIED), told.count(RetryOutcome.ABSENT)) == (2, 6)
    assert seen(database_url) == [1, 2, 3, 4, 5]
    assert completeness(conn, tally).complete


def test_the_live_copy_waits_for_a_retry(
    conn: Connection[TupleRow], tally: Tally, writer: Writer, database_url: str
) -> None:
    tally.poison = {}
    with hosting(database_url, tally):
        with conn.transaction():
            assert outcomes(retry(conn, tally)) == {
                2: "applied",
                4: "applied",
            }
            writer.like(VIDEO, "eve")
            time.sleep(0.3)
            assert position(database_url, "tally") == 5
        caught_up(database_url, ["tally"], writer.head)
    assert seen(database_url) == [1, 2, 3, 4, 5, 6]
    assert completeness(conn, tally).complete


def test_a_retry_waits_for_the_transaction_under_way(
    conn: Connection[TupleRow], tally: Tally, writer: Writer, database_url: str
) -> None:
    """It takes the copy's row before any other, as the runner does: neither waits in turn."""
    with hosting(database_url, tally), ThreadPoolExecutor(1) as pool:
        caught_up(database_url, ["tally"], writer.head)
        tally.entered.clear()
        tally.go_on.clear()
        writer.like(VIDEO, "eve")
        assert tally.entered.wait(DEADLINE_SECONDS)
        attempt = pool.submit(retry, conn, Parking())
        with pytest.raises(TimeoutError):
            attempt.result(timeout=0.3)
        tally.go_on.set()
        assert outcomes(attempt.result(timeout=DEADLINE_SECONDS)) == {2: "applied", 4: "applied"}
    assert completeness(conn, tally).complete


def test_a_retry_during_a_switch_is_of_the_new_copy(
    conn: Connection[TupleRow], tally: Tally, writer: Writer, database_url: str
) -> None:
    with connect(database_url, "test") as switching, ThreadPoolExecutor(1) as pool:
        with switching.transaction():
            rename(switching, "tally", "tally__previous")
            checkpoints.create(switching, "tally", "tally", 1)
            switching.execute(
                "UPDATE backlot_checkpoints SET position = 5 WHERE subscription = 'tally'"
            )
            attempt = pool.submit(retry, conn, Parking(), [2])
            with pytest.raises(TimeoutError):
                attempt.result(timeout=0.3)
        # In the copy that has the name now, nothing is set aside.
        assert outcomes(attempt.result(timeout=DEADLINE_SECONDS)) == {2: "absent"}


def test_retries_beside_a_busy_live_copy_are_exact(
    conn: Connection[TupleRow], writer: Writer, database_url: str
) -> None:
    """Both write the same count's row; neither is torn out of the other's way."""
    likes = ParkingLikes()
    writer.like(VIDEO, *(f"bad-{n}" for n in range(60)))
    with capture_logs() as logs:
        advance(conn, writer, likes)
        likes.mended = True
        with hosting(database_url, likes):
            for n in range(30):
                writer.like(VIDEO, *(f"viewer-{n}-{m}" for m in range(20)))
                results = retry(conn, likes, [2 * n + 1, 2 * n + 2])
                assert [result.outcome for result in results] == [RetryOutcome.APPLIED] * 2
            caught_up(database_url, ["likes"], writer.head)
    assert [line for line in logs if line["event"] == "projection_interrupted"] == []
    assert rows(database_url, "SELECT likes FROM likes.counts") == [(660,)]
    assert completeness(conn, likes).complete

"""What is set aside can be seen, tried again and left out; account and metric stay right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import orjson
import pytest
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow
from structlog.testing import capture_logs

from infra import metrics
from infra.privacy import PayloadMode
from projections.applying import Applier
from projections.catalog import Catalog
from projections.compare import compare
from projections.completeness import completeness
from projections.connecting import connect
from projections.install import create, install
from projections.likes import Likes
from projections.parked import NotParked, ParkedStatus, find, parked, show
from projections.parking import NoReason, NotStopped, discard, park_and_go_on
from projections.positions import look
from projections.projection import Batch, Projection, RangeProjection
from projections.retrying import CannotRetry, Outcome, Retried, retry
from projections.runner import State
from tests.integration.projection_support import (
    Tally,
    Writer,
    caught_up,
    eventually,
    hosting,
    position,
    rows,
    seen,
)

VIDEO = uuid4()
PARKED = "SELECT position, status, attempts, error FROM projections.parked ORDER BY position"


class Parking(Tally):
    on_poison = "park"


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


class Stretches(RangeProjection):
    name = "stretches"
    tables = "CREATE TABLE {schema}.t ()"

    def apply_range(self, after: int, until: int, cursor: Cursor[TupleRow]) -> None:
        raise ValueError("not any event's fault")


@pytest.fixture
def writer(database_url: str) -> Iterator[Writer]:
    writer = Writer(database_url)
    yield writer
    writer.close()


@pytest.fixture
def conn(database_url: str) -> Iterator[Connection[TupleRow]]:
    with connect(database_url, "test") as opened:
        yield opened


def advance(conn: Connection[TupleRow], writer: Writer, projection: Projection) -> None:
    """Bring a copy to the end of the log."""
    install(conn, [projection])
    applier = Applier(projection, mapper=writer.mapper, batch_events=100)
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
    applier = Applier(projection, mapper=writer.mapper, batch_events=100)
    applier.advance(conn, at.position, at.head)


@pytest.fixture
def tally(conn: Connection[TupleRow], writer: Writer) -> Tally:
    """Five likes of five viewers; 2 and 4 are parked."""
    tally = Parking()
    tally.poison = {"viewer-2": ValueError("two"), "viewer-4": ValueError("four")}
    writer.like(VIDEO, *(f"viewer-{n}" for n in range(1, 6)))
    advance(conn, writer, tally)
    return tally


def outcomes(results: list[Retried]) -> dict[int, str]:
    return {result.position: str(result.outcome) for result in results}


def test_the_list_says_what_is_parked(conn: Connection[TupleRow], tally: Tally) -> None:
    two, four = parked(conn, "tally")
    assert (two.position, two.topic, two.version) == (2, "video_likes.liked.v1", 1)
    assert (two.error, two.attempts, two.status) == ("ValueError: two", 1, "parked")
    assert two.as_dict() == {
        "schema": "tally",
        "position": 2,
        "topic": "video_likes.liked.v1",
        "streamId": str(two.stream_id),
        "version": 1,
        "error": "ValueError: two",
        "attempts": 1,
        "parkedAt": two.parked_at.isoformat(),
        "status": "parked",
    }
    assert parked(conn, "tally", after=2) == [four]
    assert parked(conn, "tally", limit=1) == [two]
    assert parked(conn, "elsewhere") == []
    assert parked(conn, "tally", status=ParkedStatus.DISCARDED) == []
    with pytest.raises(NotParked, match="no event aside at position 3"):
        find(conn, "tally", 3)


def test_an_event_is_shown_as_far_as_the_mode_admits(
    conn: Connection[TupleRow], tally: Tally, writer: Writer
) -> None:
    full = show(conn, "tally", 2, mapper=writer.mapper).as_dict()
    assert (full["actor"], full["payload"]["viewer"]) == ("viewer-2", "viewer-2")
    assert full["payload"]["video_id"] == str(VIDEO)
    assert full["newestTopic"] == "video_likes.liked.v1"
    masked = show(conn, "tally", 2, mapper=writer.mapper, mode=PayloadMode.MASKED).as_dict()
    assert (masked["actor"], masked["payload"]["viewer"]) == ("<string 8>", "<string 8>")
    bare = show(conn, "tally", 2, mapper=writer.mapper, mode=PayloadMode.NONE).as_dict()
    assert "payload" not in bare
    assert "actor" not in bare


def test_an_unreadable_event_is_shown_as_it_is_stored(
    conn: Connection[TupleRow], tally: Tally, writer: Writer
) -> None:
    conn.execute("UPDATE backlot_events SET state = %s WHERE notification_id = 2", (b"{\xff",))
    shown = show(conn, "tally", 2, mapper=writer.mapper)
    assert (shown.payload, shown.raw) == (None, "{\\xff")
    assert "MapperDeserialisationError" in (shown.unreadable or "")
    assert show(conn, "tally", 2, mapper=writer.mapper, mode=PayloadMode.MASKED).raw is None
    results = retry(conn, tally, [2], mapper=writer.mapper)
    assert outcomes(results) == {2: "failed"}
    conn.execute("DELETE FROM backlot_events WHERE notification_id = 2")
    gone = show(conn, "tally", 2, mapper=writer.mapper).as_dict()
    assert gone["unreadable"] == "It is not in the log any more."
    assert "topic" not in gone


def test_what_is_mended_is_applied_what_is_poison_stays(
    conn: Connection[TupleRow], tally: Tally, writer: Writer
) -> None:
    tally.poison = {"viewer-4": "SELECT 1 / 0"}
    results = retry(conn, tally, mapper=writer.mapper)
    assert [result.as_dict() for result in results] == [
        {"position": 2, "outcome": "applied"},
        {"position": 4, "outcome": "failed", "detail": "DivisionByZero: division by zero"},
    ]
    left = conn.execute(PARKED.encode()).fetchall()
    assert left == [(4, "parked", 2, "DivisionByZero: division by zero")]
    result = completeness(conn, tally)
    assert (result.complete, result.applied, result.parked) == (True, 4, 1)
    tally.poison = {}
    assert outcomes(retry(conn, tally, [1, 4], mapper=writer.mapper)) == {1: "absent", 4: "applied"}
    assert conn.execute("SELECT position FROM tally.seen ORDER BY 1").fetchall() == [
        (n,) for n in range(1, 6)
    ]
    assert completeness(conn, tally).complete
    assert retry(conn, tally, mapper=writer.mapper) == []


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
    shown = show(conn, "catalog", 1, mapper=writer.mapper)
    assert (shown.parked.topic, shown.newest_topic) == ("upload.started.v1", "upload.started.v2")
    assert shown.payload is not None
    assert shown.payload["category"] is None
    assert outcomes(retry(conn, Catalog(), mapper=writer.mapper)) == {1: "applied"}
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
    assert outcomes(retry(conn, tally, mapper=writer.mapper)) == {1: "overtaken", 3: "blocked"}
    assert [row[2] for row in conn.execute(PARKED.encode()).fetchall()] == [1, 1]
    forced = retry(conn, tally, mapper=writer.mapper, force=True)
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
    assert outcomes(retry(conn, tally, [2], mapper=writer.mapper)) == {2: "blocked"}
    tally.poison = {}
    assert outcomes(retry(conn, tally, mapper=writer.mapper)) == {1: "applied", 2: "applied"}


def test_two_retries_at_once_apply_each_event_once(
    conn: Connection[TupleRow], tally: Tally, writer: Writer, database_url: str
) -> None:
    tally.poison = {}

    def attempt(_: int) -> list[Retried]:
        with connect(database_url, "test") as own:
            return retry(own, tally, [2, 4], mapper=writer.mapper)

    with ThreadPoolExecutor(4) as pool:
        attempts = list(pool.map(attempt, range(4)))
    told = [result.outcome for results in attempts for result in results]
    assert (told.count(Outcome.APPLIED), told.count(Outcome.ABSENT)) == (2, 6)
    assert seen(database_url) == [1, 2, 3, 4, 5]
    assert completeness(conn, tally).complete


def test_the_live_copy_waits_for_a_retry(
    conn: Connection[TupleRow], tally: Tally, writer: Writer, database_url: str
) -> None:
    tally.poison = {}
    with hosting(database_url, tally):
        with conn.transaction():
            assert outcomes(retry(conn, tally, mapper=writer.mapper)) == {
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
        assert tally.entered.wait(10)
        attempt = pool.submit(retry, conn, Parking(), mapper=writer.mapper)
        with pytest.raises(TimeoutError):
            attempt.result(timeout=0.3)
        tally.go_on.set()
        assert outcomes(attempt.result(timeout=10)) == {2: "applied", 4: "applied"}
    assert completeness(conn, tally).complete


def test_a_retry_during_a_switch_is_of_the_new_copy(
    conn: Connection[TupleRow], tally: Tally, writer: Writer, database_url: str
) -> None:
    with connect(database_url, "test") as switching, ThreadPoolExecutor(1) as pool:
        with switching.transaction():
            switching.execute("UPDATE projections.state SET schema = 'tally__previous'")
            switching.execute(
                "INSERT INTO projections.state (schema, name, version, position) "
                "VALUES ('tally', 'tally', 1, 5)"
            )
            attempt = pool.submit(retry, conn, Parking(), [2], mapper=writer.mapper)
            with pytest.raises(TimeoutError):
                attempt.result(timeout=0.3)
        # There it is applied.
        assert outcomes(attempt.result(timeout=10)) == {2: "absent"}


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
                results = retry(conn, likes, [2 * n + 1, 2 * n + 2], mapper=writer.mapper)
                assert [result.outcome for result in results] == [Outcome.APPLIED] * 2
            caught_up(database_url, ["likes"], writer.head)
    assert [line for line in logs if line["event"] == "projection_interrupted"] == []
    assert rows(database_url, "SELECT likes FROM likes.counts") == [(660,)]
    assert completeness(conn, likes).complete


def test_discarding_says_who_when_and_why(
    conn: Connection[TupleRow], tally: Tally, writer: Writer
) -> None:
    with pytest.raises(NoReason):
        discard(conn, "tally", 2, reason=" ", actor="root")
    found = discard(conn, "tally", 2, reason="a test's like", actor="root")
    assert (found.status, found.decided_by, found.reason) == (
        "discarded",
        "root",
        "a test's like",
    )
    assert found.as_dict()["decidedAt"] >= found.as_dict()["parkedAt"]
    with pytest.raises(NotParked):
        discard(conn, "tally", 2, reason="again", actor="root")
    result = completeness(conn, tally)
    assert (result.complete, result.parked, result.discarded) == (True, 1, 1)
    tally.poison = {}
    assert outcomes(retry(conn, tally, mapper=writer.mapper)) == {4: "applied"}
    # Who changes their mind names it.
    assert outcomes(retry(conn, tally, [2], mapper=writer.mapper)) == {2: "applied"}
    assert completeness(conn, tally).applied == 5


def test_a_stopped_projection_parks_and_goes_on(
    conn: Connection[TupleRow], writer: Writer, database_url: str
) -> None:
    tally = Tally()
    tally.poison = {"viewer-2": ValueError("two")}
    writer.like(VIDEO, "viewer-1", "viewer-2", "viewer-3")
    with hosting(database_url, tally, poll_seconds=30.0) as host:
        eventually(lambda: host.status()[0].state is State.STOPPED)
        with pytest.raises(NoReason):
            park_and_go_on(conn, tally, reason="", actor="root")
        found = park_and_go_on(conn, tally, reason="known bug", actor="root")
        assert (found.position, found.error, found.status) == (2, "ValueError: two", "parked")
        assert (found.decided_by, found.reason) == ("root", "known bug")
        caught_up(database_url, ["tally"], 3)
        eventually(lambda: host.status()[0].state is State.RUNNING)
        with pytest.raises(NotStopped):
            park_and_go_on(conn, tally, reason="again", actor="root")
    assert seen(database_url) == [1, 3]
    assert completeness(conn, tally).complete


def test_what_was_decided_holds_for_a_copy_that_is_built_beside(
    conn: Connection[TupleRow], writer: Writer
) -> None:
    """Otherwise a projection that was led past an event could not be rebuilt any more."""
    live = Tally()
    live.poison = {"viewer-2": ValueError("two"), "viewer-3": ValueError("three")}
    writer.like(VIDEO, "viewer-1", "viewer-2", "viewer-3", "viewer-4")
    for position_ in (2, 3):
        advance_once(conn, writer, live)
        assert park_and_go_on(conn, live, reason="known", actor="root").position == position_
    discard(conn, "tally", 3, reason="never mind", actor="olga")
    advance_once(conn, writer, live)

    again = Tally()
    again.schema = "tally__next"
    again.poison = live.poison
    create(conn, again)
    advance_once(conn, writer, again)
    assert [
        (event.position, event.status, event.decided_by, event.reason)
        for event in parked(conn, "tally__next")
    ] == [(2, "parked", "root", "known"), (3, "discarded", "olga", "never mind")]
    assert completeness(conn, again).complete
    assert not compare(conn, "tally", "tally__next").differs

    # Of events that nobody has decided about, a copy stops in front.
    writer.like(VIDEO, "viewer-5")
    again.poison = {"viewer-5": ValueError("five")}
    advance_once(conn, writer, again)
    state = look(conn, "tally__next")
    assert state is not None
    assert (state.status, state.position) == ("stopped", 4)


def test_the_metric_follows_what_operators_do(
    conn: Connection[TupleRow], tally: Tally, writer: Writer, database_url: str
) -> None:
    def told(events: int) -> None:
        eventually(lambda: metrics.value("backlot_projection_parked", projection="tally") == events)

    with hosting(database_url, tally):
        told(2)
        discard(conn, "tally", 2, reason="a test's like", actor="root")
        told(1)
        tally.poison = {}
        retry(conn, tally, mapper=writer.mapper)
        told(0)


def test_what_cannot_be_tried_or_parked_says_why(
    conn: Connection[TupleRow], tally: Tally, writer: Writer
) -> None:
    class Newer(Tally):
        version = 2

    with pytest.raises(CannotRetry, match="tally is of version 1"):
        retry(conn, Newer(), [2], mapper=writer.mapper)
    with pytest.raises(CannotRetry, match="no copy likes"):
        retry(conn, type("Likes", (Tally,), {"name": "likes"})(), [2], mapper=writer.mapper)
    with pytest.raises(CannotRetry, match="stretches of the log"):
        retry(conn, Stretches(), mapper=writer.mapper)
    advance_once(conn, writer, Stretches())
    with pytest.raises(NotStopped, match="no single event is at fault"):
        park_and_go_on(conn, Stretches(), reason="anyway", actor="root")


def test_a_database_of_an_older_release_gets_the_columns(
    conn: Connection[TupleRow], tally: Tally, writer: Writer, database_url: str
) -> None:
    for column in ("status", "decided_by", "decided_at", "reason"):
        conn.execute(f"ALTER TABLE projections.parked DROP {column}".encode())
    install(conn, [tally])
    assert rows(database_url, PARKED)[0] == (2, "parked", 1, "ValueError: two")
    discard(conn, "tally", 2, reason="old", actor="root")

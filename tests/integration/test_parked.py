"""What is set aside can be seen, tried again and left out; account and metric stay right."""

from __future__ import annotations

from uuid import uuid4

import pytest
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from engine.checkpoints import look
from engine.comparison import compare
from engine.completeness import completeness
from engine.connections import connect
from engine.dead_letters import LetterStatus
from engine.installation import create, make_tables
from engine.parked_events import (
    CannotRetry,
    NoReason,
    NotParked,
    NotStopped,
    alike,
    discard,
    discard_all,
    find,
    park_and_go_on,
    parked,
    retry,
    show,
)
from engine.payload_mode import PayloadMode
from engine.projection import RangeProjection
from engine.subscription import State
from infra import metrics
from infra.http.shapes import rfc3339
from tests.integration.event_log import rows
from tests.integration.former_release import TABLES_BEFORE
from tests.integration.parking_support import (
    PARKED,
    VIDEO,
    Parking,
    advance,
    advance_once,
    outcomes,
    parked_tally,
)
from tests.integration.projection_support import Tally, Writer, caught_up, hosting, seen
from tests.support import eventually


class Stretches(RangeProjection):
    name = "stretches"
    tables = "CREATE TABLE {schema}.t ()"

    def apply_range(self, after: int, until: int, cursor: Cursor[TupleRow]) -> None:
        raise ValueError("not any event's fault")


@pytest.fixture
def tally(conn: Connection[TupleRow], writer: Writer) -> Tally:
    return parked_tally(conn, writer)


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
        "parkedAt": rfc3339(two.parked_at),
        "status": "parked",
    }
    assert parked(conn, "tally", after=2) == [four]
    assert parked(conn, "tally", limit=1) == [two]
    assert parked(conn, "elsewhere") == []
    assert parked(conn, "tally", status=LetterStatus.DISCARDED) == []
    with pytest.raises(NotParked, match="no event aside at position 3"):
        find(conn, "tally", 3)


def test_an_event_is_shown_as_far_as_the_mode_admits(
    conn: Connection[TupleRow], tally: Tally, writer: Writer
) -> None:
    full = show(conn, "tally", 2).as_dict()
    assert (full["actor"], full["payload"]["viewer"]) == ("viewer-2", "viewer-2")
    assert full["payload"]["video_id"] == str(VIDEO)
    assert full["newestTopic"] == "video_likes.liked.v1"
    masked = show(conn, "tally", 2, mode=PayloadMode.MASKED).as_dict()
    assert (masked["actor"], masked["payload"]["viewer"]) == ("<string 8>", "<string 8>")
    bare = show(conn, "tally", 2, mode=PayloadMode.NONE).as_dict()
    assert "payload" not in bare
    assert "actor" not in bare


def test_an_unreadable_event_is_shown_as_it_is_stored(
    conn: Connection[TupleRow], tally: Tally, writer: Writer
) -> None:
    conn.execute("UPDATE backlot_events SET state = %s WHERE notification_id = 2", (b"{\xff",))
    shown = show(conn, "tally", 2)
    assert (shown.payload, shown.raw) == (None, "{\\xff")
    assert "MapperDeserialisationError" in (shown.unreadable or "")
    assert show(conn, "tally", 2, mode=PayloadMode.MASKED).raw is None
    results = retry(conn, tally, [2])
    assert outcomes(results) == {2: "failed"}
    conn.execute("DELETE FROM backlot_events WHERE notification_id = 2")
    gone = show(conn, "tally", 2).as_dict()
    assert gone["unreadable"] == "It is not in the log any more."
    assert "topic" not in gone


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
    assert outcomes(retry(conn, tally)) == {4: "applied"}
    # Who changes their mind names it.
    assert outcomes(retry(conn, tally, [2])) == {2: "applied"}
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


def test_events_like_one_are_those_of_its_topic_and_error(
    conn: Connection[TupleRow], writer: Writer
) -> None:
    """Ids and numbers differ from event to event, and so do the lines after the first one."""
    tally = Parking()
    tally.poison = {
        "viewer-1": ValueError(f"no video {uuid4()} at 7\nrow 1"),
        "viewer-2": ValueError(f"no video {uuid4()} at 12\nrow 2"),
        "viewer-3": ValueError("no viewer"),
        "viewer-4": KeyError("no video"),
    }
    writer.like(VIDEO, "viewer-1", "viewer-2", "viewer-3", "viewer-4")
    writer.unlike(VIDEO, "viewer-1")
    advance(conn, writer, tally)
    assert [event.position for event in parked(conn, "tally")] == [1, 2, 3, 4, 5]
    assert alike(conn, "tally", 1) == alike(conn, "tally", 2) == [1, 2]
    assert alike(conn, "tally", 3) == [3]
    assert alike(conn, "tally", 5) == [5]
    assert discard_all(conn, "tally", [1, 2, 9], reason="test data", actor="root") == [1, 2]
    assert alike(conn, "tally", 1) == []
    with pytest.raises(NotParked):
        alike(conn, "tally", 9)
    with pytest.raises(NoReason):
        discard_all(conn, "tally", [3], reason="\u200b", actor="root")


def test_all_that_fail_as_one_did_are_parked_while_it_goes_on(
    conn: Connection[TupleRow], writer: Writer, database_url: str
) -> None:
    tally = Tally()
    broken = [f"viewer-{n}" for n in (2, 4, 5, 8)]
    tally.poison = {viewer: ValueError(f"bad row {uuid4()}") for viewer in broken}
    tally.poison["viewer-7"] = ValueError("another matter")
    writer.like(VIDEO, *(f"viewer-{n}" for n in range(1, 10)))
    with hosting(database_url, tally, poll_seconds=30.0) as host:
        eventually(lambda: host.status()[0].state is State.STOPPED)
        with pytest.raises(NotStopped, match="stopped in front of 2, not of 4"):
            park_and_go_on(conn, tally, reason="known", actor="root", all_like=4)
        park_and_go_on(conn, tally, reason="known", actor="root", all_like=2)
        eventually(lambda: position_of_stop(database_url) == 7)
        park_and_go_on(conn, tally, reason="rare", actor="olga")
        caught_up(database_url, ["tally"], 9)
        # What comes later is another decision.
        tally.poison["viewer-10"] = ValueError(f"bad row {uuid4()}")
        writer.like(VIDEO, "viewer-10")
        eventually(lambda: position_of_stop(database_url) == 10)
    assert [(e.position, e.decided_by, e.reason) for e in parked(conn, "tally")] == [
        (2, "root", "known"),
        (4, "root", "known"),
        (5, "root", "known"),
        (7, "olga", "rare"),
        (8, "root", "known"),
    ]
    assert seen(database_url) == [1, 3, 6, 9]
    assert completeness(conn, tally).complete


def position_of_stop(database_url: str) -> int | None:
    ((found,),) = rows(database_url, "SELECT error_position FROM backlot_checkpoints")
    return None if found is None else int(found)


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
        retry(conn, tally)
        told(0)


def test_what_cannot_be_tried_or_parked_says_why(
    conn: Connection[TupleRow], tally: Tally, writer: Writer
) -> None:
    class Newer(Tally):
        version = 2

    with pytest.raises(CannotRetry, match="tally is of version 1"):
        retry(conn, Newer(), [2])
    with pytest.raises(CannotRetry, match="no copy likes"):
        retry(conn, type("Likes", (Tally,), {"name": "likes"})(), [2])
    with pytest.raises(CannotRetry, match="stretches of the log"):
        retry(conn, Stretches())
    advance_once(conn, writer, Stretches())
    with pytest.raises(NotStopped, match="no single event is at fault"):
        park_and_go_on(conn, Stretches(), reason="anyway", actor="root")


def test_a_database_of_an_older_release_gets_the_columns(empty_database_url: str) -> None:
    with connect(empty_database_url, "test") as conn:
        conn.execute(TABLES_BEFORE)
        for column in ("status", "decided_by", "decided_at", "reason"):
            conn.execute(f"ALTER TABLE projections.parked DROP {column}".encode())
        conn.execute(
            "INSERT INTO projections.state (schema, name, version) VALUES ('tally', 'tally', 1)"
        )
        conn.execute(
            "INSERT INTO projections.parked VALUES ('tally', 2, 'tally', 'ValueError: two')"
        )
        make_tables(conn)
        assert rows(empty_database_url, PARKED)[0] == (2, "parked", 1, "ValueError: two")
        discard(conn, "tally", 2, reason="old", actor="root")

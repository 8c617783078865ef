"""An event that can't be applied halts its own projection, or is set aside: never silently."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from engine.checkpoints import resume
from engine.subscription import State
from infra import metrics
from infra.key_encryption import KeyEncryptionFailed
from projections.likes import Likes
from tests.integration.event_log import rows
from tests.integration.projection_support import Tally, Writer, caught_up, hosting, seen
from tests.support import eventually

VIDEO = uuid4()
VIEWERS = [f"viewer-{n}" for n in range(1, 11)]


class Parking(Tally):
    on_poison = "park"


def resume_tally(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as operator:
        assert resume(operator, "tally")


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (ValueError("bad\x00egg"), "ValueError: bad\\0egg"),
        ("SELECT 1 / 0", "DivisionByZero: division by zero"),
        ("INSERT INTO tally.seen VALUES ('x', 'y')", "InvalidTextRepresentation"),
        ("SELECT FROM nowhere", "UndefinedTable"),
        ("SELECT repeat('x', 2000000000)", "ProgramLimitExceeded"),
    ],
)
def test_stops_in_front_of_the_culprit(
    database_url: str, writer: Writer, fault: object, told: str
) -> None:
    tally = Tally()
    tally.poison = {"viewer-6": fault}  # type: ignore[dict-item]
    writer.like(VIDEO, *VIEWERS)
    with capture_logs() as logs, hosting(database_url, tally, Likes()) as host:
        eventually(lambda: host.status()[0].state is State.STOPPED)
        assert seen(database_url) == [1, 2, 3, 4, 5]
        status = host.status()[0]
        assert (status.position, status.lag_events, status.in_order) == (5, 5, False)
        assert told in (status.detail or "")
        # The others go on.
        caught_up(database_url, ["likes"], writer.head)
        stopped = {"projection": "tally", "state": "stopped"}
        eventually(lambda: metrics.value("backlot_projection_state", **stopped) == 1)
    (line,) = [entry for entry in logs if entry["event"] == "projection_stopped"]
    assert (line["position"], line["projection"]) == (6, "tally")
    assert told in line["error"]
    stored = rows(
        database_url,
        "SELECT status, error_position FROM backlot_checkpoints WHERE subscription = 'tally'",
    )
    assert stored == [("stopped", 6)]


def test_an_operator_resumes_it(database_url: str, writer: Writer) -> None:
    tally = Tally()
    tally.poison = {"viewer-6": ValueError("not yet")}
    writer.like(VIDEO, *VIEWERS)

    def stops() -> int:
        return sum(entry["event"] == "projection_stopped" for entry in logs)

    with capture_logs() as logs, hosting(database_url, tally, poll_seconds=30.0) as host:
        eventually(lambda: host.status()[0].state is State.STOPPED)
        resume_tally(database_url)
        eventually(lambda: stops() == 2)
        tally.poison = {}
        resume_tally(database_url)
        caught_up(database_url, ["tally"], writer.head)
        eventually(lambda: host.status()[0].detail is None)
    assert seen(database_url) == list(range(1, 11))


def test_a_restart_tries_again(database_url: str, writer: Writer) -> None:
    tally = Tally()
    tally.poison = {"viewer-6": ValueError("a bug of this version")}
    writer.like(VIDEO, *VIEWERS)
    with hosting(database_url, tally) as host:
        eventually(lambda: host.status()[0].state is State.STOPPED)
    with hosting(database_url, Tally()):
        caught_up(database_url, ["tally"], writer.head)
    assert seen(database_url) == list(range(1, 11))


def test_parks_the_culprits_and_goes_on(database_url: str, writer: Writer) -> None:
    tally = Parking()
    tally.poison = {"viewer-3": ValueError("one"), "viewer-8": "SELECT 1 / 0"}
    writer.like(VIDEO, *VIEWERS)
    with capture_logs() as logs, hosting(database_url, tally) as host:
        caught_up(database_url, ["tally"], writer.head)
        eventually(lambda: metrics.value("backlot_projection_parked", projection="tally") == 2)
        eventually(lambda: host.status()[0].lag_events == 0)
        assert host.status()[0].state is State.RUNNING
    assert seen(database_url) == [1, 2, 4, 5, 6, 7, 9, 10]
    parked = rows(
        database_url,
        "SELECT position, subscription, error, attempts FROM backlot_dead_letters ORDER BY 1",
    )
    assert parked == [
        (3, "tally", "ValueError: one", 1),
        (8, "tally", "DivisionByZero: division by zero", 1),
    ]
    assert [e["position"] for e in logs if e["event"] == "projection_event_parked"] == [3, 8]


def test_a_broken_table_is_never_parked_away(database_url: str, writer: Writer) -> None:
    writer.like(VIDEO, "viewer-1")
    with hosting(database_url, Parking()) as host:
        caught_up(database_url, ["tally"], writer.head)
        rows_before = seen(database_url)
        with psycopg.connect(database_url, autocommit=True) as operator:
            operator.execute("ALTER TABLE tally.seen RENAME TO elsewhere")
            writer.like(VIDEO, "viewer-2")
            eventually(lambda: host.status()[0].state is State.STOPPED)
            operator.execute("ALTER TABLE tally.elsewhere RENAME TO seen")
        resume_tally(database_url)
        caught_up(database_url, ["tally"], writer.head)
    assert (rows_before, seen(database_url)) == ([1], [1, 2])
    assert rows(database_url, "SELECT * FROM backlot_dead_letters") == []


@pytest.mark.parametrize("state", [b"not json", b"{}", b'{"video_id": 7}'])
def test_an_unreadable_event_is_poison_too(database_url: str, writer: Writer, state: bytes) -> None:
    writer.like(VIDEO, *VIEWERS)
    rows_of_six = "UPDATE backlot_events SET state = %s WHERE notification_id = 6 RETURNING 1"
    (kept,) = rows(database_url, "SELECT state FROM backlot_events WHERE notification_id = 6")
    rows(database_url, rows_of_six, [state])
    with hosting(database_url, Tally()) as host:
        eventually(lambda: host.status()[0].state is State.STOPPED)
        assert "MapperDeserialisationError" in (host.status()[0].detail or "")
        assert seen(database_url) == [1, 2, 3, 4, 5]
        rows(database_url, rows_of_six, [kept[0]])
        resume_tally(database_url)
        caught_up(database_url, ["tally"], writer.head)
    assert seen(database_url) == list(range(1, 11))


def test_a_fault_of_the_whole_batch_only_is_survived(database_url: str, writer: Writer) -> None:
    class Small(Tally):
        def apply(self, batch, cursor) -> None:  # type: ignore[no-untyped-def]
            if len(batch) > 1:
                raise RuntimeError("too many")
            super().apply(batch, cursor)

    writer.like(VIDEO, *VIEWERS)
    with hosting(database_url, Small()):
        caught_up(database_url, ["tally"], writer.head)
    assert seen(database_url) == list(range(1, 11))


def test_an_outage_is_nobodys_poison(database_url: str, writer: Writer) -> None:
    """What the server says to try again is tried again; the event is neither parked nor lost."""
    tally = Parking()
    tally.poison = {"viewer-6": "DO 'BEGIN RAISE SQLSTATE ''40001''; END'"}
    writer.like(VIDEO, *VIEWERS)
    with hosting(database_url, tally) as host:
        eventually(lambda: host.status()[0].state is State.UNAVAILABLE)
        assert "SerializationFailure" in (host.status()[0].detail or "")
        tally.poison = {}
        caught_up(database_url, ["tally"], writer.head)
    assert seen(database_url) == list(range(1, 11))
    assert rows(database_url, "SELECT * FROM backlot_dead_letters") == []


def test_keys_that_can_not_be_had_are_no_event_s_fault(database_url: str, writer: Writer) -> None:
    """Nothing is set aside: it waits, and goes on once they can."""
    tally = Parking()
    tally.poison = {"viewer-6": KeyEncryptionFailed("Vault does not answer")}
    writer.like(VIDEO, *VIEWERS)
    with hosting(database_url, tally) as host:
        eventually(lambda: host.status()[0].state is State.UNAVAILABLE)
        tally.poison.clear()
        caught_up(database_url, ["tally"], writer.head)
    assert seen(database_url) == list(range(1, 11))
    assert rows(database_url, "SELECT * FROM backlot_dead_letters") == []

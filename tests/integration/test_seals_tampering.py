"""Whatever is done to the event table with SQL is found and named, wherever it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import LiteralString
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.sql import SQL

from benchmarks.log import fill
from engine.seals.chain import connect
from engine.seals.report import Fault
from engine.seals.verification import PAGE_ROWS, verify_database
from tests.integration.seal_support import change, make_log, place_of, seal_all, verify
from tests.support import DatabaseWith

EVENTS, SEALED = 48, 40
STRANGER = UUID(int=0xBAD)
INSERT: LiteralString = (
    "INSERT INTO backlot_events (originator_id, originator_version, topic, state, notification_id)"
    " VALUES (%s, %s, 'video_likes.liked.v1', '{}', %s)"
)


def record(database_url: str) -> None:
    make_log(database_url, SEALED)
    assert seal_all(database_url) == SEALED // 10
    make_log(database_url, EVENTS - SEALED)


@pytest.fixture
def log_url(database_with: DatabaseWith) -> Iterator[str]:
    """A log of 48 events, 40 of them sealed, and nobody guards its table."""
    with database_with(record) as url:
        yield url


def fault(database_url: str) -> Fault:
    found = verify(database_url).fault
    assert found is not None
    return found


def test_untouched_it_is_whole(log_url: str) -> None:
    report = verify(log_url)
    assert report.ok
    assert (report.events, report.sealed_to) == (EVENTS, SEALED)
    assert report.unsealed == EVENTS - SEALED


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE backlot_events SET state = set_byte(state, 3, 33) WHERE notification_id = %s",
        "UPDATE backlot_events SET state = NULL WHERE notification_id = %s",
        "UPDATE backlot_events SET topic = topic || ' ' WHERE notification_id = %s",
        "UPDATE backlot_events SET topic = NULL WHERE notification_id = %s",
        "UPDATE backlot_events SET originator_version = 77 WHERE notification_id = %s",
        "UPDATE backlot_events SET originator_id = gen_random_uuid() WHERE notification_id = %s",
    ],
)
@pytest.mark.parametrize("position", [1, 17, 20, SEALED])
def test_an_altered_event(log_url: str, statement: LiteralString, position: int) -> None:
    change(log_url, statement, position)
    found = fault(log_url)
    assert (found.kind, found.position) == ("altered", position)
    assert (found.stream_id, found.version) == place_of(log_url, position)


@pytest.mark.parametrize("position", [1, 10, 11, 25, SEALED, 45])
def test_a_deleted_row(log_url: str, position: int) -> None:
    change(log_url, "DELETE FROM backlot_events WHERE notification_id = %s", position)
    found = fault(log_url)
    assert (found.kind, found.position) == ("missing", position)


def test_all_that_was_sealed_last_is_deleted(log_url: str) -> None:
    change(log_url, "DELETE FROM backlot_events WHERE notification_id > 30")
    assert (fault(log_url).kind, fault(log_url).position) == ("missing", 31)


def swap_positions(database_url: str, one: int, other: int) -> None:
    change(
        database_url,
        "UPDATE backlot_events SET notification_id = -1 WHERE notification_id = %s",
        one,
    )
    statement: LiteralString = (
        "UPDATE backlot_events SET notification_id = %s WHERE notification_id = %s"
    )
    change(database_url, statement, one, other)
    change(database_url, statement, other, -1)


def swap_contents(database_url: str, one: int, other: int) -> None:
    change(
        database_url,
        "UPDATE backlot_events AS e SET state = o.state, topic = o.topic FROM backlot_events AS o "
        "WHERE (e.notification_id, o.notification_id) IN ((%s, %s), (%s, %s))",
        *(one, other, other, one),
    )


@pytest.mark.parametrize("swap", [swap_positions, swap_contents])
@pytest.mark.parametrize(("one", "other"), [(13, 18), (5, 33)])
def test_two_swapped_rows(
    log_url: str, swap: Callable[[str, int, int], None], one: int, other: int
) -> None:
    swap(log_url, one, other)
    found = fault(log_url)
    assert (found.kind, found.position) == ("altered", one)
    assert (found.stream_id, found.version) == place_of(log_url, one)


def test_swapped_rows_of_one_block_are_recognised(log_url: str) -> None:
    swap_positions(log_url, 13, 18)
    assert "the one that was sealed at position 18" in fault(log_url).detail


def drop_the_guards(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        found = conn.execute(
            "SELECT indexname FROM pg_indexes "
            "WHERE tablename = 'backlot_events' AND indexdef LIKE '%%(notification_id%%'"
        ).fetchall()
        assert found
        for (name,) in found:
            conn.execute(SQL("DROP INDEX {}").format(psycopg.sql.Identifier(name)))


@pytest.mark.parametrize("position", [1, 15, SEALED, 44])
def test_a_row_added_at_a_position_that_is_taken(log_url: str, position: int) -> None:
    drop_the_guards(log_url)
    change(log_url, INSERT, STRANGER, 1, position)
    found = fault(log_url)
    assert (found.kind, found.position) == ("added", position)
    assert position > SEALED or found.stream_id == STRANGER


def test_a_row_added_where_a_page_ends_is_read_too(database_url: str) -> None:
    fill(database_url, PAGE_ROWS)
    seal_all(database_url, block_events=1_000)
    drop_the_guards(database_url)
    change(database_url, INSERT, STRANGER, 1, PAGE_ROWS)
    found = fault(database_url)
    assert (found.kind, found.position, found.stream_id) == ("added", PAGE_ROWS, STRANGER)


@pytest.mark.parametrize("position", [-7, 0, EVENTS + 1_000])
def test_a_row_added_outside(log_url: str, position: int) -> None:
    change(log_url, INSERT, STRANGER, 1, position)
    found = fault(log_url)
    assert (found.kind, found.position, found.stream_id) == ("added", position, STRANGER)


def test_a_row_added_in_between_with_all_after_it_renumbered(log_url: str) -> None:
    change(log_url, "UPDATE backlot_events SET notification_id = -notification_id - 1 "
                    "WHERE notification_id >= 22")  # fmt: skip
    change(log_url, "UPDATE backlot_events SET notification_id = -notification_id "
                    "WHERE notification_id < 0")  # fmt: skip
    change(log_url, INSERT, STRANGER, 1, 22)
    found = fault(log_url)
    assert (found.kind, found.position, found.stream_id) == ("altered", 22, STRANGER)


def test_an_unsealed_row_without_the_version_before_it(log_url: str) -> None:
    change(log_url, INSERT, STRANGER, 3, EVENTS + 1)
    found = fault(log_url)
    assert (found.kind, found.position, found.version) == ("added", EVENTS + 1, 3)


def test_an_unsealed_row_of_a_topic_that_nobody_writes(log_url: str) -> None:
    change(
        log_url, "UPDATE backlot_events SET topic = 'forged.v1' WHERE notification_id = %s", EVENTS
    )
    assert (fault(log_url).kind, fault(log_url).position) == ("added", EVENTS)


@pytest.mark.parametrize(
    ("statement", "kind", "seal"),
    [
        ("DELETE FROM backlot_seals WHERE number = 2", "seal-missing", 2),
        ("DELETE FROM backlot_seals WHERE number = 1", "seal-missing", 1),
        ("UPDATE backlot_seals SET hash = sha256(hash) WHERE number = 2", "seal-altered", 2),
        ("UPDATE backlot_seals SET previous = hash WHERE number = 3", "seal-missing", 3),
        (
            "UPDATE backlot_seals SET leaves = hash WHERE number = 3",
            "seal-altered",
            3,
        ),
        ("UPDATE backlot_seals SET last = 35, first = 31 WHERE number = 4", "seal-altered", 4),
        ("UPDATE backlot_seals SET number = 9 WHERE number = 4", "seal-missing", 4),
    ],
)
def test_an_altered_chain(log_url: str, statement: LiteralString, kind: str, seal: int) -> None:
    change(log_url, statement)
    found = fault(log_url)
    assert (found.kind, found.seal) == (kind, seal)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_byte_changed_anywhere_is_named(log_url: str, data: st.DataObject) -> None:
    with connect(log_url, "test") as conn:
        position = data.draw(st.integers(1, SEALED))
        row = conn.execute(
            "SELECT state, convert_to(topic, 'UTF8'), originator_version, originator_id "
            "FROM backlot_events WHERE notification_id = %s",
            (position,),
        ).fetchone()
        assert row is not None
        state, topic, version, stream_id = row
        conn.execute("BEGIN")
        match data.draw(st.sampled_from(["state", "topic", "version"])):
            case "state":
                at = data.draw(st.integers(0, len(state) - 1))
                altered = _flip(state, at, data.draw(st.integers(1, 255)))
                change_row(conn, "UPDATE backlot_events SET state = %b WHERE notification_id = %s",
                           altered, position)  # fmt: skip
            case "topic":
                at = data.draw(st.integers(0, len(topic) - 1))
                # Lowest bits: what results is still text.
                altered = _flip(topic, at, data.draw(st.sampled_from([1, 2, 3])))
                change_row(conn, "UPDATE backlot_events SET topic = convert_from(%b, 'UTF8') "
                           "WHERE notification_id = %s", altered, position)  # fmt: skip
            case _:
                version ^= 1 << data.draw(st.integers(4, 62))
                change_row(conn, "UPDATE backlot_events SET originator_version = %s "
                           "WHERE notification_id = %s", version, position)  # fmt: skip
        found = verify_database(conn).fault
        conn.execute("ROLLBACK")
    assert found is not None
    assert (found.kind, found.position, found.stream_id) == ("altered", position, stream_id)
    assert found.version == version


def change_row(
    conn: psycopg.Connection[tuple[object, ...]], statement: LiteralString, *values: object
) -> None:
    assert conn.execute(statement, values).rowcount == 1


def _flip(content: bytes, at: int, bits: int) -> bytes:
    return content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :]

"""Sealing a real log: whole, one process at a time, caught up after any pause, in nobody's way.

PostgreSQL computes the leaves; Python computes them again here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from eventsourcing.persistence import StoredEvent
from psycopg.rows import TupleRow

from benchmarks.log import fill
from engine.event_store import open_recorder
from engine.schedule import run_job
from engine.seals.anchors import FileAnchors
from engine.seals.chain import Seal, StoredRow, connect, leaf
from engine.seals.chain import seals as read_seals
from engine.seals.proofs import Proofs
from engine.seals.sealer import LogBroken, LogRewritten
from infra import metrics
from tests.integration.event_log import lock_of_the_log, rows
from tests.integration.seal_support import (
    BLOCK,
    anchored,
    change,
    install,
    make_log,
    new_key,
    seal_all,
    sealer,
    verify,
)
from tests.support import ended, eventually
from workers.maintenance import sealing_job


def chain(database_url: str) -> list[Seal]:
    with connect(database_url, "test") as conn:
        return list(read_seals(conn, 0, 1_000_000))


def ranges(database_url: str) -> list[tuple[int, int]]:
    return [(seal.first, seal.last) for seal in chain(database_url)]


@contextmanager
def session(database_url: str) -> Iterator[psycopg.Connection[TupleRow]]:
    with connect(database_url, "test") as conn:
        yield conn


ODD = [
    (1, "test.v1", b"{}"),
    (2, "", b""),
    (2**62, "überprüft 🎬", bytes(range(256))),
    (-3, "x" * 5_000, b"\xff" * 20_000),
    (5, None, b"state"),
    (6, "test.v1", None),
    (7, None, None),
    (8, "a\\b'c\"d\n", b"\x00"),
]


def test_postgresql_and_python_agree_on_odd_data(database_url: str) -> None:
    install(database_url)
    stored = [
        StoredRow(position, uuid4(), version, topic, state)
        for position, (version, topic, state) in enumerate(ODD, start=1)
    ]
    with session(database_url) as conn:
        for row in stored:
            conn.execute(
                "INSERT INTO backlot_events (notification_id, originator_id, originator_version, "
                "topic, state) VALUES (%s, %s, %s, %s, %b)",
                row,
            )
    assert seal_all(database_url) == 1
    (seal,) = chain(database_url)
    assert [seal.leaf_at(row.position) for row in stored] == [leaf(row) for row in stored]
    assert verify(database_url).ok


def test_a_block_closes_when_it_is_full_and_when_it_is_old(database_url: str) -> None:
    make_log(database_url, 25)
    install(database_url)
    now = [100.0]
    working = sealer(database_url, block_seconds=5.0, clock=lambda: now[0])
    assert working.turn() == 2
    assert ranges(database_url) == [(1, 10), (11, 20)]
    now[0] += 4.9
    assert working.turn() == 0
    now[0] += 0.2
    assert working.turn() == 1
    assert ranges(database_url) == [(1, 10), (11, 20), (21, 25)]
    make_log(database_url, 1)
    now[0] += 4.0
    assert working.turn() == 0, "the new event has not waited yet"
    working.close()


def test_an_empty_log_has_no_seals(database_url: str) -> None:
    assert seal_all(database_url) == 0
    assert verify(database_url).ok


def test_a_sealer_killed_between_blocks_is_followed_by_another(database_url: str) -> None:
    make_log(database_url, 35)
    install(database_url)
    killed, another = sealer(database_url, block_seconds=60.0), sealer(database_url)
    assert killed.turn() == 3
    assert another.turn() == 0, "one process at a time"
    with session(database_url) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'backlot sealing' AND datname = current_database()"
        )
    eventually(another.turn)
    with pytest.raises(psycopg.OperationalError):
        killed.turn()
    assert killed.turn() == 0, "it has to compete again"
    assert ranges(database_url) == [(1, 10), (11, 20), (21, 30), (31, 35)]
    assert verify(database_url).ok
    another.close()
    killed.close()


def test_two_sealers_at_once_leave_one_chain(database_url: str) -> None:
    make_log(database_url, 100)
    install(database_url)
    two = [sealer(database_url), sealer(database_url)]

    async def both() -> None:
        tasks = [asyncio.create_task(run_job(sealing_job(one, 0.02))) for one in two]
        await asyncio.to_thread(eventually, lambda: verify(database_url).sealed_to == 100)
        await asyncio.to_thread(make_log, database_url, 1)
        await asyncio.to_thread(eventually, lambda: verify(database_url).unsealed == 0)
        await ended(*tasks)

    asyncio.run(both())
    report = verify(database_url)
    assert (report.ok, report.unsealed) == (True, 0)
    assert rows(database_url, "SELECT count(*) FROM pg_locks WHERE classid = 1936023916") == [(0,)]


def test_a_sealer_started_late_makes_up_for_everything(database_url: str) -> None:
    fill(database_url, 20_000)
    made = seal_all(database_url, block_events=1_000)
    report = verify(database_url)
    assert (made, report.seals, report.sealed_to, report.events) == (20, 20, 20_000, 20_000)
    assert report.ok


def test_writers_never_wait_for_the_sealer(database_url: str) -> None:
    make_log(database_url, 15)
    install(database_url)
    working = sealer(database_url)
    with session(database_url) as conn:
        # A sealer in the middle of its work: its seal is inserted and not committed.
        conn.execute("BEGIN")
        conn.execute("LOCK TABLE backlot_seals IN EXCLUSIVE MODE")
        make_log(database_url, 5)
        conn.execute("ROLLBACK")
    with lock_of_the_log(database_url):
        assert working.turn() == 2, "nor does the sealer wait for a writer"
    working.close()


def test_a_hole_in_the_log_stops_the_sealing_before_it_and_is_told(database_url: str) -> None:
    make_log(database_url, 30)
    change(database_url, "DELETE FROM backlot_events WHERE notification_id = 14")
    install(database_url)
    working = sealer(database_url)
    for _ in range(2):
        with pytest.raises(LogBroken, match="position 14"):
            working.turn()
    assert ranges(database_url) == [(1, 10), (11, 13)]
    working.close()


def test_a_failure_is_a_metric_and_sealing_goes_on_after_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_log(database_url, 12)
    install(database_url)
    monkeypatch.setattr("workers.maintenance.AFTER_FAILURE_SECONDS", 0.02)
    change(
        database_url, "UPDATE backlot_events SET notification_id = 99 WHERE notification_id = 12"
    )
    before = metrics.value("backlot_seal_failures_total", step="log")

    async def mended() -> None:
        task = asyncio.create_task(run_job(sealing_job(sealer(database_url), 0.02)))
        told = "backlot_seal_failures_total"
        await asyncio.to_thread(eventually, lambda: metrics.value(told, step="log") > before)
        await asyncio.to_thread(
            change,
            database_url,
            "UPDATE backlot_events SET notification_id = 12 WHERE notification_id = 99",
        )
        await asyncio.to_thread(eventually, lambda: verify(database_url).unsealed == 0)
        # The turn that sealed the last event may have begun while the hole was there.
        await asyncio.to_thread(eventually, lambda: metrics.value("backlot_seal_lag_events") == 0)
        await ended(task)

    asyncio.run(mended())
    assert verify(database_url).sealed_to == 12
    assert metrics.value("backlot_seal_position") == 12


def test_seals_are_signed_and_anchored(database_url: str, tmp_path: Path) -> None:
    make_log(database_url, 35)
    key, path = new_key(), tmp_path / "seals.jsonl"
    assert seal_all(database_url, key=key, anchors=[FileAnchors(path)]) == 4
    report = verify(database_url, proofs=Proofs(key.public, anchored(path)))
    assert (report.ok, report.signed, report.anchored) == (True, 4, 4)


def test_anchors_catch_up_after_an_outage(database_url: str, tmp_path: Path) -> None:
    make_log(database_url, 25)
    install(database_url)
    folder = tmp_path / "not mounted yet"
    anchors = FileAnchors(folder / "seals.jsonl")
    working = sealer(database_url, anchors=[anchors])
    before = metrics.value("backlot_seal_failures_total", step="anchoring")
    assert working.turn() == 3, "sealing goes on without them"
    assert metrics.value("backlot_seal_failures_total", step="anchoring") == before + 1
    folder.mkdir()
    assert working.turn() == 0
    assert [anchor.number for anchor in anchors.read()] == [1, 2, 3]
    make_log(database_url, BLOCK)
    working.turn()
    assert verify(database_url, proofs=Proofs(outside=anchored(anchors.path))).anchored == 4
    working.close()


def test_anchors_of_a_longer_log_are_told(database_url: str, tmp_path: Path) -> None:
    anchors = FileAnchors(tmp_path / "seals.jsonl")
    make_log(database_url, 30)
    seal_all(database_url, anchors=[anchors])
    change(database_url, "DELETE FROM backlot_seals WHERE number = 3")
    change(database_url, "DELETE FROM backlot_events WHERE notification_id > 20")
    working = sealer(database_url, anchors=[anchors])
    for _ in range(3):
        with pytest.raises(LogRewritten, match="the seals end with 2, and file:"):
            working.turn()
    fault = verify(database_url, proofs=Proofs(outside=anchored(anchors.path))).fault
    assert fault is not None
    assert (fault.kind, fault.seal) == ("anchor-differs", 3)
    working.close()


def test_the_chain_continues_when_the_key_is_changed(database_url: str) -> None:
    older, newer = new_key(), new_key()
    make_log(database_url, 10)
    seal_all(database_url, key=older)
    make_log(database_url, 5)
    seal_all(database_url, key=newer)
    assert {seal.key_id for seal in chain(database_url)} == {older.key_id, newer.key_id}
    fault = verify(database_url, proofs=Proofs(newer.public)).fault
    assert fault is not None
    assert (fault.kind, fault.seal) == ("signature-invalid", 1)


def test_stored_events_may_be_large(database_url: str) -> None:
    install(database_url)
    recorder = open_recorder(database_url)
    recorder.insert_events([StoredEvent(uuid4(), 1, "test.v1", b"x" * 3_000_000)])
    recorder.close()
    assert seal_all(database_url) == 1
    assert verify(database_url).ok

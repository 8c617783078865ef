"""The tables: made from files once each, and out of those of a former release without a loss."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from shutil import copytree
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from backlot.features import TABLES
from engine import checkpoints, dead_letters
from engine.checkpoints import SubscriptionKind, Superseded, of_copy
from engine.dead_letters import RejectedMessage
from engine.event_store import GroupCommitRecorder, open_recorder
from engine.installation import (
    ENGINE,
    LOG,
    MigrationSet,
    NotMigrated,
    UnknownMigration,
    make_tables,
    migrate,
    require_migrated,
)
from engine.replay.records import begin_parts, find, of_part, parts
from infra.advisory_locks import Lock, lock
from tests.integration.event_log import events, rows
from tests.integration.former_release import MESSAGE, leave_behind
from tests.support import eventually

NAMES = """
SELECT schemaname || '.' || tablename FROM pg_tables
WHERE schemaname IN ('public', 'projections') ORDER BY 1
"""
SHAPE = """
SELECT table_schema, table_name, column_name, data_type, column_default, is_nullable
FROM information_schema.columns WHERE table_schema IN ('public', 'projections')
UNION ALL
SELECT schemaname, tablename, indexname, indexdef, NULL, NULL FROM pg_indexes
WHERE schemaname IN ('public', 'projections')
UNION ALL
SELECT 'function', proname, prosrc, NULL, NULL, NULL FROM pg_proc
WHERE pronamespace = 'public'::regnamespace
ORDER BY 1, 2, 3
"""
GONE = {
    "projections.state",
    "projections.parked",
    "projections.replay_partitions",
    "public.backlot_consumer_places",
    "public.backlot_dead_messages",
    "public.backlot_relay",
    "public.backlot_undelivered",
}
# What the move does not touch.
KEPT = {
    "public.backlot_events": 1,
    "public.backlot_events_answers": 1,
    "public.backlot_seals": 1,
    "public.backlot_verifications": 1,
    "public.backlot_telemetry": 1,
    "public.backlot_views": 1,
    "public.backlot_view_sessions": 1,
    "public.backlot_viewer_salts": 1,
    "public.processed_messages": 1,
    "projections.ledger": 1,
    "projections.park_orders": 1,
    "projections.like_drift": 1,
    "projections.replays": 2,
}


def migrated(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        make_tables(conn, *TABLES)


def tables(url: str) -> set[str]:
    return {name for (name,) in rows(url, NAMES)}


def counted(url: str, names: Mapping[str, int]) -> dict[str, int]:
    return {name: rows(url, f"SELECT count(*) FROM {name}")[0][0] for name in names}


def at(day: int) -> datetime:
    return datetime(2026, 1, day, tzinfo=UTC)


class TestMove:
    """From the tables of the former release to those of this one."""

    def test_every_checkpoint_is_found(self, empty_database_url: str) -> None:
        leave_behind(empty_database_url)
        migrated(empty_database_url)
        found = rows(
            empty_database_url,
            "SELECT kind, subscription, source, partition, position, target, status, error, "
            "error_position, projection, version, accounted_after FROM backlot_checkpoints "
            "ORDER BY 1, 2, 3, 4",
        )
        running = ("running", None, None)
        stopped = ("stopped", "ValueError: twelve", 12)
        assert found == [
            ("consumer", "analytics", "comment.created", 1, 17, None, *running, None, 0, 0),
            ("consumer", "translation", "events", 0, 39, None, *running, None, 0, 0),
            ("projection", "catalog", "events", 0, 11, None, *stopped, "catalog", 1, 0),
            ("projection", "likes", "events", 0, 40, None, *running, "likes", 2, 7),
            ("projection", "likes__next", "events", 0, 0, None, *running, "likes", 3, 0),
            ("relay", "relay", "events", 0, 38, None, *running, None, 0, 0),
            ("relay", "relay", "telemetry", 0, 4, None, *running, None, 0, 0),
            ("replay", "likes__next", "events", 0, 20, 40, *running, None, 3, 0),
            ("replay", "likes__next", "events", 1, 10, 40, *running, None, 3, 0),
        ]
        told = rows(
            empty_database_url,
            "SELECT updated_at FROM backlot_checkpoints WHERE kind <> 'replay' ORDER BY 1",
        )
        assert told == [(at(day),) for day in (1, 2, 3, 4, 5, 8, 9)]

    def test_every_dead_letter_is_found(self, empty_database_url: str) -> None:
        leave_behind(empty_database_url)
        migrated(empty_database_url)
        with psycopg.connect(empty_database_url, autocommit=True) as conn:
            dead = dead_letters.letters(conn, SubscriptionKind.CONSUMER)
            parked = dead_letters.letters(conn, SubscriptionKind.PROJECTION)
            (lost,) = dead_letters.letters(conn, SubscriptionKind.RELAY)
        assert [each.as_dict() for each in dead] == [
            {
                "id": 1,
                "consumer": "translation",
                "topic": "comment.created",
                "source": "events",
                "partition": 0,
                "position": 9,
                "messageId": str(MESSAGE),
                "key": "key",
                "reason": "it can't be handled",
                "attempts": 3,
                "status": "redrive",
                "diedAt": "2026-01-06T00:00:00Z",
                "headers": {"ce_id": "9"},
                "value": "\x00\\xff",
            },
            {
                "id": 2,
                "consumer": "translation",
                "topic": "comment.edited",
                "source": "events",
                "partition": 0,
                "position": 12,
                "messageId": None,
                "key": None,
                "reason": "unreadable",
                "attempts": 1,
                "status": "dead",
                "diedAt": "2026-01-07T00:00:00Z",
                "headers": {},
                "value": None,
            },
        ]
        assert [(each.position, each.error, each.attempts, each.status) for each in parked] == [
            (3, "ValueError: three", 2, "parked"),
            (5, "ValueError: five", 1, "discarded"),
        ]
        assert [(each.rejected_at, each.decided_by, each.decided_at) for each in parked] == [
            (at(1), None, None),
            (at(2), "root", at(5)),
        ]
        assert [each.reason for each in parked] == [None, "a test account"]
        assert (lost.source, lost.position, lost.topic) == ("events", 21, "comment.created")
        assert (lost.error, lost.message_id, lost.value) == ("too large", MESSAGE, b"\x01")
        assert lost.rejected_at == at(10)

    def test_a_new_letter_gets_an_id_of_its_own(self, empty_database_url: str) -> None:
        leave_behind(empty_database_url)
        migrated(empty_database_url)
        fresh = RejectedMessage("events", 0, 30, "comment.created", "it broke")
        with psycopg.connect(empty_database_url, autocommit=True) as conn:
            dead_letters.reject(conn, SubscriptionKind.CONSUMER, "translation", [fresh])
        ids = rows(empty_database_url, "SELECT id FROM backlot_dead_letters ORDER BY id")
        assert ids == [(n,) for n in range(1, 7)]

    def test_all_else_stays_and_the_old_tables_go(self, empty_database_url: str) -> None:
        leave_behind(empty_database_url)
        assert tables(empty_database_url) >= GONE
        migrated(empty_database_url)
        assert tables(empty_database_url) & GONE == set()
        assert counted(empty_database_url, KEPT) == KEPT

    def test_it_comes_to_the_tables_of_a_new_database(
        self, empty_database_url: str, database_url: str
    ) -> None:
        leave_behind(empty_database_url)
        migrated(empty_database_url)
        assert rows(empty_database_url, SHAPE) == rows(database_url, SHAPE)

    def test_a_release_without_a_ledger_is_told_apart(self, empty_database_url: str) -> None:
        leave_behind(empty_database_url)
        with psycopg.connect(empty_database_url, autocommit=True) as conn:
            conn.execute("DROP TABLE projections.ledger")
            conn.execute("ALTER TABLE projections.state DROP accounted_after")
        migrated(empty_database_url)
        query = "SELECT accounted_after FROM backlot_checkpoints WHERE kind = 'projection'"
        assert sorted(rows(empty_database_url, query)) == [(0,), (11,), (40,)]

    def test_a_replay_that_was_under_way_goes_on(self, empty_database_url: str) -> None:
        leave_behind(empty_database_url)
        migrated(empty_database_url)
        with psycopg.connect(empty_database_url, autocommit=True) as conn, conn.cursor() as cursor:
            replay = find(conn, 1)
            goal = begin_parts(conn, replay.schema, 3, count=2, target=99)
            assert goal == 40
            assert parts(conn, replay.schema) == [(20, 40), (10, 40)]
            of_part(replay.schema, 3, 1).move(cursor, 10, 30)
            assert parts(conn, replay.schema) == [(20, 40), (30, 40)]

    @pytest.mark.parametrize("last", ["0007", "0008"])
    def test_a_crash_in_the_middle_leaves_what_was(
        self, empty_database_url: str, tmp_path: Path, last: str
    ) -> None:
        leave_behind(empty_database_url)
        broken = broken_set(tmp_path, last)
        before = counted(empty_database_url, dict.fromkeys(sorted(of_step(last)), 0))
        with (
            pytest.raises(psycopg.OperationalError),
            psycopg.connect(empty_database_url, autocommit=True) as conn,
        ):
            migrate(conn, broken, LOG)
        assert tables(empty_database_url) >= of_step(last)
        assert counted(empty_database_url, before) == before
        migrated(empty_database_url)
        assert tables(empty_database_url) & GONE == set()


def of_step(number: str) -> set[str]:
    """The old tables that a file moves."""
    consumers = {"public.backlot_consumer_places", "public.backlot_dead_messages"}
    return consumers if number == "0007" else GONE - consumers


def broken_set(folder: Path, last: str) -> MigrationSet:
    """The engine's files up to one, at whose end the connection is lost."""
    copy = Path(copytree(ENGINE.folder, folder / "sql"))
    for path in copy.iterdir():
        if path.name[:4] > last:
            path.unlink()
    (path,) = copy.glob(f"{last}*")
    kill = "; SELECT pg_terminate_backend(pg_backend_pid())"
    path.write_text(path.read_text().rstrip().removesuffix(";") + kill)
    return replace(ENGINE, folder=copy)


class TestMigrating:
    """One mechanism for every set of files."""

    def test_it_is_made_once_and_then_left_alone(self, empty_database_url: str) -> None:
        migrated(empty_database_url)
        made = "SELECT * FROM backlot_migrations ORDER BY version"
        before = rows(empty_database_url, made)
        assert [version for version, *_ in before] == list(range(1, len(before) + 1))
        migrated(empty_database_url)
        assert rows(empty_database_url, made) == before

    def test_many_processes_may_make_it_at_once(self, empty_database_url: str) -> None:
        leave_behind(empty_database_url)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(migrated, [empty_database_url] * 8))
        assert counted(empty_database_url, KEPT) == KEPT

    def test_a_second_process_waits(self, empty_database_url: str) -> None:
        with (
            psycopg.connect(empty_database_url, autocommit=True) as first,
            ThreadPoolExecutor(1) as threads,
        ):
            lock(first, Lock.MIGRATION)
            second = threads.submit(migrated, empty_database_url)
            eventually(lambda: waits(empty_database_url))
            time.sleep(0.1)
            assert tables(empty_database_url) == set()
            make_tables(first, *TABLES)
            first.execute("SELECT pg_advisory_unlock_all()")
            second.result(timeout=30)
        assert "public.backlot_checkpoints" in tables(empty_database_url)

    def test_nobody_waits_where_nothing_is_missing(self, database_url: str) -> None:
        with psycopg.connect(database_url, autocommit=True) as first:
            lock(first, Lock.MIGRATION)
            migrated(database_url)

    def test_a_database_without_the_log_has_checkpoints_only(self, empty_database_url: str) -> None:
        with psycopg.connect(empty_database_url, autocommit=True) as conn:
            migrate(conn, ENGINE)
        assert tables(empty_database_url) == {
            "public.backlot_checkpoints",
            "public.backlot_dead_letters",
            "public.backlot_migrations",
            "public.processed_messages",
        }
        # It may become one with the log.
        migrated(empty_database_url)
        assert "public.backlot_events" in tables(empty_database_url)

    def test_another_releases_files_are_told(self, database_url: str, tmp_path: Path) -> None:
        newer = replace(ENGINE, folder=Path(copytree(ENGINE.folder, tmp_path / "sql")))
        (newer.folder / "9999_more.sql").write_text("CREATE TABLE more ()")
        with psycopg.connect(database_url, autocommit=True) as conn:
            migrate(conn, newer, LOG)
            with pytest.raises(UnknownMigration, match=r"9999_more\.sql.* is not this release's"):
                migrate(conn, ENGINE, LOG)

    def test_a_changed_file_is_told(self, database_url: str, tmp_path: Path) -> None:
        changed = replace(ENGINE, folder=Path(copytree(ENGINE.folder, tmp_path / "sql")))
        (path,) = changed.folder.glob("0002*")
        path.write_text(path.read_text() + "-- changed")
        with (
            psycopg.connect(database_url, autocommit=True) as conn,
            pytest.raises(UnknownMigration, match="0002_seals"),
        ):
            migrate(conn, changed, LOG)

    @pytest.mark.parametrize("each", [ENGINE, *TABLES], ids=lambda each: str(each.name))
    def test_files_are_numbered_without_a_gap(self, each: MigrationSet) -> None:
        versions = [file.version for file in each.files(LOG)]
        assert versions == list(range(1, len(versions) + 1))

    def test_a_name_that_is_none_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "first.sql").write_text("SELECT 1")
        with pytest.raises(ValueError, match=r"first\.sql is no name for a migration"):
            MigrationSet("none", tmp_path, "public").files()


def waits(url: str) -> bool:
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
    query += "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    return bool(rows(url, query)[0][0])


def test_a_recorder_of_another_name_makes_tables_of_its_own(database_url: str) -> None:
    recorder = open_recorder(database_url, name="other")
    try:
        recorder.create_table()
        assert recorder.insert_events(events(2)) == [1, 2]
        _assert_apart(recorder, database_url)
    finally:
        recorder.close()


def _assert_apart(recorder: GroupCommitRecorder, database_url: str) -> None:
    assert recorder.max_notification_id() == 2
    assert rows(database_url, "SELECT count(*) FROM backlot_events") == [(0,)]
    assert rows(database_url, "SELECT count(*) FROM other_events") == [(2,)]


class TestCheckpoints:
    """A checkpoint moves only from where its subscription was seen."""

    @pytest.fixture
    def conn(self, database_url: str) -> Any:
        with psycopg.connect(database_url, autocommit=True) as opened:
            checkpoints.create(opened, "tally", "tally", 1)
            yield opened

    def test_it_moves_from_where_it_was_read(self, conn: Connection[Any]) -> None:
        with conn.cursor() as cursor:
            of_copy("tally", 1).move(cursor, 0, 5)
            for wrong in (of_copy("tally", 2), of_copy("other", 1), of_part("tally", 1, 0)):
                with pytest.raises(Superseded):
                    wrong.move(cursor, 5, 6)
            with pytest.raises(Superseded, match="tally is no longer running at position 0"):
                of_copy("tally", 1).move(cursor, 0, 6)
        seen = checkpoints.look(conn, "tally")
        assert seen is not None
        assert (seen.position, seen.status) == (5, "running")

    def test_names_of_different_kinds_do_not_meet(self, conn: Connection[Any]) -> None:
        checkpoints.set_positions(conn, SubscriptionKind.CONSUMER, "tally", {("events", 0): 9})
        assert checkpoints.positions(conn, SubscriptionKind.CONSUMER, "tally") == {("events", 0): 9}
        assert checkpoints.positions(conn, SubscriptionKind.PROJECTION, "tally") == {
            ("events", 0): 0
        }

    def test_what_is_begun_twice_stays_where_it_is(self, conn: Connection[Any]) -> None:
        checkpoints.begin(conn, SubscriptionKind.RELAY, "relay", ["events"])
        checkpoints.set_positions(conn, SubscriptionKind.RELAY, "relay", {("events", 0): 3})
        checkpoints.begin(conn, SubscriptionKind.RELAY, "relay", ["events", "telemetry"])
        found = checkpoints.positions(conn, SubscriptionKind.RELAY, "relay")
        assert found == {("events", 0): 3, ("telemetry", 0): 0}


def test_whoever_has_a_message_handled_again_is_known(database_url: str) -> None:
    dead = RejectedMessage("events", 0, 30, "comment.created", "it broke")
    with psycopg.connect(database_url, autocommit=True) as conn:
        dead_letters.reject(conn, SubscriptionKind.CONSUMER, "tasks", [dead])
        (letter,) = dead_letters.letters(conn, SubscriptionKind.CONSUMER)
        given: dict[str, Any] = {"actor": "root", "ids": [letter.id]}
        assert dead_letters.redrive(conn, SubscriptionKind.RELAY, **given) == 0
        assert dead_letters.redrive(conn, SubscriptionKind.CONSUMER, **given) == 1
        (wanted,) = dead_letters.wanted(conn, SubscriptionKind.CONSUMER, "tasks", 10)
    assert (wanted.id, wanted.status, wanted.decided_by) == (letter.id, "redrive", "root")


def test_a_program_that_only_looks_makes_no_tables(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        with pytest.raises(NotMigrated, match="start this release on it once"):
            require_migrated(conn, ENGINE, LOG)
        made = conn.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
        assert made == (0,)
        migrate(conn, ENGINE, LOG)
        require_migrated(conn, ENGINE, LOG)

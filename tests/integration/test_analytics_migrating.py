"""The tables of the analytics: made once, by however many processes, from files in the tree."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from projections.analytics import migrating
from projections.analytics.migrating import Shape, State, UnknownMigration, migrate, state
from tests.integration.projection_support import rows

TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'analytics'"


def migrated(url: str) -> State:
    with psycopg.connect(url, autocommit=True) as conn:
        return migrate(conn)


def test_it_is_made_once_and_then_left_alone(database_url: str) -> None:
    first = migrated(database_url)
    before = rows(database_url, "SELECT * FROM analytics.migrations ORDER BY version")
    assert migrated(database_url) == first
    assert first.shape is Shape.PLAIN
    assert str(first) == f"plain tables, schema version {before[-1][0]}"
    assert rows(database_url, "SELECT * FROM analytics.migrations ORDER BY version") == before
    assert {"video_analytics", "video_hourly", "video_daily"} <= {
        name for (name,) in rows(database_url, TABLES)
    }


def test_many_processes_may_make_it_at_once(database_url: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(migrated, [database_url] * 8))
    assert len(found) == 1


def test_a_failure_leaves_nothing_of_its_file(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = migrating.migrations(Shape.PLAIN)
    broken = migrating.Migration(9, "0009_broken.sql", b"CREATE TABLE analytics.x (); SELECT 1/0")
    monkeypatch.setattr(migrating, "migrations", lambda shape: [*whole, broken])
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrated(database_url)
    monkeypatch.undo()
    assert ("x",) not in rows(database_url, TABLES)
    assert migrated(database_url).version == whole[-1].version


def test_the_files_of_another_release_are_told(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrated(database_url)
    other = migrating.migrations(Shape.PLAIN)[:-1]
    monkeypatch.setattr(migrating, "migrations", lambda shape: other)
    with pytest.raises(UnknownMigration, match="not this release's"):
        migrated(database_url)


def test_both_shapes_have_the_same_versions() -> None:
    plain, timescale = (migrating.migrations(shape) for shape in Shape)
    assert [each.version for each in plain] == [each.version for each in timescale]
    assert [each.version for each in plain] == list(range(1, len(plain) + 1))


def test_nothing_is_there_before(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        assert state(conn) is None

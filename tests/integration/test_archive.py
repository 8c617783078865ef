"""Export, verification without a database, and import: nothing is lost, nothing slips through."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from engine.archive.lines import ExportRequest
from engine.archive.transfer import ExportRefused, ImportRefused
from engine.archive.verification import ExportUnusable
from engine.installation import install as install_projections
from engine.payload_mode import PayloadMode
from engine.seals.proofs import Proofs
from engine.seals.report import UNANCHORED
from infra.postgres.server import EmbeddedPostgres
from projections.catalog import Catalog
from projections.comments import Comments
from projections.likes import Likes
from tests.integration.archive_support import (
    EVENTS,
    KEY,
    SEALED,
    check,
    export,
    import_into,
    make_signed_log,
    named,
    whole_table,
)
from tests.integration.event_log import rows
from tests.integration.projection_support import caught_up, hosting
from tests.integration.seal_support import install, make_log, new_key, seal_all, verify
from tests.support import DatabaseWith


@pytest.fixture
def log_url(database_with: DatabaseWith) -> Iterator[str]:
    with database_with(make_signed_log) as url:
        yield url


@pytest.fixture
def exported(log_url: str, tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    export(log_url, path)
    return path


@pytest.fixture
def empty_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A second empty database."""
    name = f"other_{os.getpid()}_{time.monotonic_ns()}"
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(SQL("CREATE DATABASE {} STRATEGY FILE_COPY").format(Identifier(name)))
        yield postgres.url_of(name)
        admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def test_an_export_is_verified_without_a_database(exported: Path) -> None:
    report = check(exported, KEY.public)
    assert report.as_dict() == {
        "caveats": [asdict(UNANCHORED)],
        "ok": True,
        "from": 1,
        "events": EVENTS,
        "sealedTo": SEALED,
        "seals": 6,
        "signed": 6,
        "anchored": 0,
        "timestamped": 0,
        "unsealed": EVENTS - SEALED,
    }
    assert check(exported, new_key().public).fault is not None


def test_exported_and_imported_the_log_is_the_same_to_the_byte(
    log_url: str, exported: Path, empty_url: str
) -> None:
    imported = import_into(empty_url, exported, KEY.public)
    assert (imported.events, imported.sealed_to) == (EVENTS, SEALED)
    for table in ("backlot_events", "backlot_seals"):
        assert whole_table(empty_url, table) == whole_table(log_url, table)
    assert verify(empty_url, proofs=Proofs(KEY.public)).ok
    make_log(empty_url, 10)
    seal_all(empty_url, key=KEY)
    report = verify(empty_url, proofs=Proofs(KEY.public))
    assert (report.ok, report.sealed_to, report.unsealed) == (True, EVENTS + 10, 0)


def read_models(database_url: str, head: int) -> dict[str, list[tuple[object, ...]]]:
    """All rows of the read models, once they have come as far as the log."""
    models = (Catalog(), Likes(), Comments())
    with psycopg.connect(database_url, autocommit=True) as conn:
        install_projections(conn, models)
    with hosting(database_url, *models):
        caught_up(database_url, [model.schema for model in models], head)
    tables = rows(
        database_url,
        "SELECT schemaname || '.' || tablename FROM pg_tables "
        "WHERE schemaname IN ('catalog', 'likes', 'comments') ORDER BY 1",
    )
    assert tables
    return {
        str(table): rows(database_url, f"SELECT t::text FROM {table} AS t ORDER BY 1")
        for (table,) in tables
    }


def test_read_models_of_an_imported_log_are_the_same(
    log_url: str, exported: Path, empty_url: str
) -> None:
    import_into(empty_url, exported)
    ours = read_models(empty_url, EVENTS)
    assert ours == read_models(log_url, EVENTS)
    assert any(ours.values())


@pytest.mark.parametrize(("first", "last"), [(1, 64), (15, 37), (61, 64), (20, 20)])
def test_a_part_of_the_log_is_verified_too(
    log_url: str, tmp_path: Path, first: int, last: int
) -> None:
    path = tmp_path / "part.jsonl"
    export(log_url, path, ExportRequest(first=first, last=last))
    report = check(path)
    assert (report.ok, report.first, report.events) == (True, first, last - first + 1)
    assert report.unsealed == max(0, last - max(first - 1, SEALED))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert named(check(path)) == ("missing", last)


def test_an_empty_log_makes_an_empty_export(database_url: str, tmp_path: Path) -> None:
    install(database_url)
    export(database_url, tmp_path / "log.jsonl")
    report = check(tmp_path / "log.jsonl")
    assert (report.ok, report.events) == (True, 0)


@pytest.mark.parametrize("payload", [PayloadMode.MASKED, PayloadMode.NONE])
def test_without_the_exact_bytes_nothing_can_be_verified(
    log_url: str, tmp_path: Path, empty_url: str, payload: PayloadMode
) -> None:
    path = tmp_path / "log.jsonl"
    export(log_url, path, ExportRequest(payload=payload))
    assert b"viewer-" not in path.read_bytes()
    with pytest.raises(ExportUnusable, match=f"--payload {payload}"):
        check(path)
    with pytest.raises(ExportUnusable, match="can't be verified or imported"):
        import_into(empty_url, path)


def test_a_tampered_file_imports_nothing(exported: Path, empty_url: str) -> None:
    content = exported.read_bytes()
    at = content.index(b'"state":"{', content.index(b'{"position":58,'))
    exported.write_bytes(content[: at + 9] + b" " + content[at + 9 :])
    with pytest.raises(ImportRefused, match="position 58"):
        import_into(empty_url, exported)
    assert whole_table(empty_url, "backlot_events") == []
    assert whole_table(empty_url, "backlot_seals") == []


def test_only_an_empty_store_and_a_whole_log_are_taken(
    log_url: str, exported: Path, tmp_path: Path, empty_url: str
) -> None:
    with pytest.raises(ImportRefused, match="not empty"):
        import_into(log_url, exported)
    export(log_url, tmp_path / "part.jsonl", ExportRequest(first=5))
    with pytest.raises(ImportRefused, match="position 5"):
        import_into(empty_url, tmp_path / "part.jsonl")


def test_an_export_never_overwrites(log_url: str, exported: Path) -> None:
    with pytest.raises(ExportRefused, match="is there already"):
        export(log_url, exported)


def test_positions_that_are_not_there_can_not_be_exported(log_url: str, tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match="ends at position 64"):
        export(log_url, tmp_path / "log.jsonl", ExportRequest(last=65))
    with pytest.raises(ExportRefused, match="behind the last"):
        export(log_url, tmp_path / "log.jsonl", ExportRequest(first=70))

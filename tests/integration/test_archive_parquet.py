"""Parquet: an optional library, the same events, nothing that the mode does not admit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow.parquet import read_table

from engine.archive.lines import ExportFormat, ExportRequest
from engine.archive.transfer import ParquetMissing
from engine.payload_mode import PayloadMode
from tests.integration.archive_support import export, make_signed_log
from tests.integration.event_log import rows
from tests.support import DatabaseWith


@pytest.fixture
def log_url(database_with: DatabaseWith) -> Iterator[str]:
    with database_with(make_signed_log) as url:
        yield url


def test_without_the_library_it_says_how_to_get_it(
    log_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ParquetMissing, match=r"pip install 'backlot\[parquet\]'"):
        export(log_url, tmp_path / "log", ExportRequest(ExportFormat.PARQUET))


@pytest.mark.parametrize("payload", list(PayloadMode))
def test_events_are_columns(
    log_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: PayloadMode
) -> None:
    monkeypatch.setattr("engine.archive.transfer.PART_EVENTS", 25)
    export(log_url, tmp_path / "log", ExportRequest(ExportFormat.PARQUET, payload))
    parts = sorted((tmp_path / "log").iterdir())
    assert [part.name for part in parts] == [f"part-00000{n}.parquet" for n in (1, 2, 3)]
    found = [record for part in parts for record in read_table(part).to_pylist()]
    stored = rows(
        log_url,
        "SELECT notification_id, originator_id::text, originator_version, topic, state "
        "FROM backlot_events ORDER BY 1",
    )
    columns = ("position", "stream_id", "version", "topic")
    assert [tuple(record[name] for name in columns) for record in found] == [
        row[:4] for row in stored
    ]
    assert ("state" in found[0]) == (payload is PayloadMode.FULL)
    assert (found[0]["payload"] is None) == (payload is PayloadMode.NONE)
    if payload is PayloadMode.FULL:
        assert [record["state"] for record in found] == [row[4] for row in stored]
        assert found[0]["actor"] == "alice"
        assert found[0]["recorded_at"].tzinfo is not None
    else:
        assert "viewer-" not in str(found)
        assert "alice" not in str(found)

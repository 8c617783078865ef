"""An export that was killed is continued, and ends as the same file, byte by byte."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.log import fill
from engine.archive.lines import ExportFormat, ExportRequest
from engine.archive.transfer import ExportRefused
from engine.payload_mode import PayloadMode
from tests.fork_server import ForkedProcess
from tests.integration.archive_support import (
    check,
    export,
    make_signed_log,
)
from tests.integration.seal_support import make_log, seal_all
from tests.support import DatabaseWith

ROOT = Path(__file__).parents[2]


@pytest.fixture
def log_url(database_with: DatabaseWith) -> Iterator[str]:
    with database_with(make_signed_log) as url:
        yield url


# One of them here; the others differ in how they write.
OTHERS = [pytest.param(each, marks=pytest.mark.chaos) for each in ExportFormat if each != "jsonl"]


@pytest.mark.parametrize("export_format", [ExportFormat.JSONL, *OTHERS])
def test_killed_and_resumed_an_export_is_identical(
    database_url: str, tmp_path: Path, export_format: ExportFormat
) -> None:
    fill(database_url, 20_000)
    seal_all(database_url, block_events=1_000)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    partial = tmp_path / "torn.partial"
    export(database_url, whole, ExportRequest(export_format))
    size = whole.stat().st_size
    killed = 0
    for part in (0.1, 0.4, 0.8):
        process = ForkedProcess(
            "-c",
            [PROGRAM, database_url, str(torn), export_format],
            cwd=tmp_path,
            env=os.environ,
            stdout=Path(os.devnull),
            stderr=Path(os.devnull),
        )
        while process.poll() is None and not _reached(partial, part * size):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        # What comes meanwhile is not in an export that was begun before.
        make_log(database_url, 20)
        seal_all(database_url)
    assert killed or export_format is ExportFormat.PARQUET
    if not torn.exists():
        export(database_url, torn, ExportRequest(export_format))
    assert content_of(torn) == content_of(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["torn", "whole"]


PROGRAM = """
import sys
from pathlib import Path
from engine.archive.lines import ExportFormat, ExportRequest
from engine.archive.transfer import export_log
from engine.seals.chain import connect
with connect(sys.argv[1], "test") as conn:
    export_log(conn, Path(sys.argv[2]), ExportRequest(ExportFormat(sys.argv[3])))
"""


def _reached(path: Path, size: float) -> bool:
    return path.is_file() and path.stat().st_size >= size


def content_of(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {part.name: part.read_bytes() for part in path.iterdir()}


def test_an_export_is_continued_only_as_it_was_begun(log_url: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"

    def give_up(events: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(log_url, path, on_progress=give_up)
    with pytest.raises(ExportRefused, match="begun as jsonl with payload full, positions 1 to 64"):
        export(log_url, path, ExportRequest(payload=PayloadMode.NONE))
    begun: list[int] = []
    export(log_url, path, on_begun=lambda plan, done: begun.append(done))
    assert begun == [64]
    assert check(path).ok


def test_two_exports_do_not_write_one_file(log_url: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"

    def again(*_: object) -> None:
        with pytest.raises(ExportRefused, match="another process"):
            export(log_url, path)

    export(log_url, path, on_begun=again)
    assert check(path).ok

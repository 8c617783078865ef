"""The files of migrations: what two share, and that what was applied never changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from backlot.features import TABLES
from engine.installation import ENGINE, LOG, MigrationSet
from projections.analytics.schema import ANALYTICS, Shape
from projections.feedback.reports import TABLES as FEEDBACK

GOLDEN = Path(__file__).parents[1] / "golden" / "migrations.txt"
KINDS = (LOG, *Shape)


def listed() -> Iterator[str]:
    for each in (ENGINE, ANALYTICS, FEEDBACK, *TABLES):
        files = {file.name: file for kind in KINDS for file in each.files(kind)}
        yield from (f"{each.name} {name} {file.digest}" for name, file in files.items())


def test_what_was_applied_never_changes() -> None:
    """A database would be refused by the release that reads another text; a new one is added."""
    assert set(GOLDEN.read_text().splitlines()) == set(listed())


def test_what_two_kinds_share_stands_in_both(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "table.sql").write_text("CREATE TABLE t (n int);\n")
    (tmp_path / "0001_t.plain.sql").write_text("-- Plain.\n\\ir shared/table.sql\nSELECT 1;\n")
    (tmp_path / "0001_t.other.sql").write_text("\\ir shared/table.sql\n")
    kinds = MigrationSet("some", tmp_path, "some")
    (plain,), (other,) = kinds.files("plain"), kinds.files("other")
    assert plain.text == b"-- Plain.\nCREATE TABLE t (n int);\nSELECT 1;\n"
    assert other.text == b"CREATE TABLE t (n int);\n"

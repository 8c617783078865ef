"""What leaves for reports: the views, files of them, and a role that reads nothing else."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from psycopg.errors import InsufficientPrivilege, ReadOnlySqlTransaction
from psycopg.rows import TupleRow

from backlot.cli import main
from projections.analytics import bi
from projections.analytics.bi import SCHEMA, VIEWS, ExportUnfit, ReaderUnfit, TableFormat
from projections.analytics.privacy import PERSONAL
from tests.integration.event_log import url_of
from tests.integration.trending_support import NOW, Deed, Film, random_history, write
from tests.support import PROJECT

KINDS = {
    "uuid": UUID, "text": str, "timestamp with time zone": datetime, "date": date,
    "boolean": bool, "double precision": float, "bigint": int, "integer": int,
}  # fmt: skip
FORMULA = "=1+1"


def table_of(conn: Connection[TupleRow], name: str) -> list[tuple[Any, ...]]:
    columns = ", ".join(VIEWS[name])
    rows = conn.execute(f"SELECT {columns} FROM {SCHEMA}.{name}".encode()).fetchall()
    return sorted(rows, key=repr)


def history(conn: Connection[TupleRow]) -> None:
    """Videos and what happened, with a share that names a formula as its channel."""
    films, deeds = random_history(4)
    film = Film(UUID(int=7), NOW - timedelta(days=3), "=SUM(A1)")
    write(conn, [*films, film], [*deeds, Deed(film, "like", NOW, -1), Deed(film, "share", NOW)])
    conn.execute(
        "UPDATE analytics.video_analytics SET metadata = jsonb_build_object('channel', %s::text)"
        " WHERE video_id = %s AND event_type = 'share'",
        (FORMULA, film.video_id),
    )
    conn.execute(
        "INSERT INTO analytics.audience_hourly VALUES (%s, %s, 2, '{900, 0, 1500}')",
        (NOW.replace(minute=0, second=0), film.video_id),
    )


def read_csv(path: Path, columns: dict[str, type]) -> list[tuple[Any, ...]]:
    def value(kind: type, cell: str) -> Any:
        if cell == "":
            return None
        if kind is bool:
            return {"true": True, "false": False}[cell]
        if kind in (date, datetime):
            return kind.fromisoformat(cell)
        return kind(cell)

    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == list(columns)
    return [tuple(map(value, columns.values(), row)) for row in rows]


def read_parquet(path: Path, columns: dict[str, type]) -> list[tuple[Any, ...]]:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path)
    assert table.column_names == list(columns)
    return [
        tuple(UUID(row[name]) if kind is UUID else row[name] for name, kind in columns.items())
        for row in table.to_pylist()
    ]


def test_the_views_are_as_they_are_described(both_shapes: Connection[TupleRow]) -> None:
    found: dict[str, dict[str, type]] = {}
    for view, column, kind in both_shapes.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = %s ORDER BY ordinal_position",
        (SCHEMA,),
    ).fetchall():
        found.setdefault(view, {})[column] = KINDS[kind]
    assert found == VIEWS
    page = (PROJECT / "docs" / "bi.md").read_text()
    told = re.findall(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+) \|", page, re.MULTILINE)
    assert {view: re.findall(r"\w+", columns) for view, columns in told} == {
        view: list(columns) for view, columns in VIEWS.items()
    }


def test_no_view_names_anybody(analytics: Connection[TupleRow]) -> None:
    personal = {column for place in PERSONAL for column in place.columns}
    named = {column for columns in VIEWS.values() for column in columns}
    assert personal == {"user_id", "viewer", "owner"}
    assert not named & {*personal, "session", "own", "event_id", "metadata"}
    history(analytics)
    shown = [str(row) for name in VIEWS for row in table_of(analytics, name)]
    assert [row for row in shown if re.search(r"'(ann|bob|eve|owner|s)'", row)] == []
    seconds = [
        at.microsecond
        for name in ("views", "watch_time")
        for _, at, *_ in table_of(analytics, name)
    ]
    assert set(seconds) == {0}


@pytest.mark.parametrize(
    ("table_format", "read"), [(TableFormat.CSV, read_csv), (TableFormat.PARQUET, read_parquet)]
)
def test_an_export_has_what_the_views_have(
    both_shapes: Connection[TupleRow],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    table_format: TableFormat,
    read: Any,
) -> None:
    history(both_shapes)
    # Several batches.
    monkeypatch.setattr(bi, "ROWS_AT_ONCE", 7)
    folder = tmp_path / "export"
    rows = bi.export_views(both_shapes, folder, table_format)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [bi.MANIFEST, *(f"{name}.{table_format}" for name in VIEWS)]
    )
    for name, columns in VIEWS.items():
        found = sorted(read(folder / f"{name}.{table_format}", columns), key=_plain)
        wanted = sorted(table_of(both_shapes, name), key=_plain)
        if table_format is TableFormat.CSV:
            wanted = [tuple(_guarded(cell) for cell in row) for row in wanted]
        assert [_plain(row) for row in found] == [_plain(row) for row in wanted]
        assert len(found) == rows[name]
    assert sum(rows.values()) > 100
    assert json.loads((folder / bi.MANIFEST).read_text())["rows"] == rows
    assert list(tmp_path.iterdir()) == [folder]


def _plain(row: Sequence[Any]) -> str:
    return repr([cell.astimezone(UTC) if isinstance(cell, datetime) else cell for cell in row])


def _guarded(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith("=") else cell


def test_only_some_days_and_views(analytics: Connection[TupleRow], tmp_path: Path) -> None:
    history(analytics)
    first, last = (NOW - timedelta(days=5)).date(), (NOW - timedelta(days=2)).date()
    names = ("daily", "hourly", "views", "videos")
    bi.export_views(analytics, tmp_path / "some", TableFormat.CSV, names, first=first, last=last)
    assert len(list((tmp_path / "some").iterdir())) == 5
    for name in names:
        found = read_csv(tmp_path / "some" / f"{name}.csv", dict(VIEWS[name]))
        when = {"daily": 1, "hourly": 1, "views": 1}.get(name)
        wanted = [
            row
            for row in table_of(analytics, name)
            if when is None
            or first <= (at.date() if isinstance(at := row[when], datetime) else at) <= last
        ]
        assert len(found) == len(wanted) > 0


def test_what_breaks_off_leaves_nothing(
    analytics: Connection[TupleRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history(analytics)
    folder = tmp_path / "export"

    def stop(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bi.export_views(analytics, folder, TableFormat.CSV, on_rows=stop)
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()
    with pytest.raises(ExportUnfit, match="there already"):
        bi.export_views(analytics, folder, TableFormat.CSV)
    with pytest.raises(ExportUnfit, match="no folder"):
        bi.export_views(analytics, tmp_path / "none" / "export", TableFormat.CSV)
    assert list(tmp_path.iterdir()) == [folder]


def test_an_export_is_of_one_moment(analytics: Connection[TupleRow], tmp_path: Path) -> None:
    history(analytics)
    with psycopg.connect(url_of(analytics), autocommit=True) as other:

        def change(rows: int) -> None:
            other.execute("DELETE FROM analytics.video_analytics")

        rows = bi.export_views(analytics, tmp_path / "export", TableFormat.CSV, on_rows=change)
    assert rows["views"] > 0
    assert rows["comments"] > 0
    assert table_of(analytics, "views") == []


@pytest.fixture
def role(analytics: Connection[TupleRow]) -> Iterator[str]:
    """A name that no other test gives, since roles are of the whole server."""
    (name,) = analytics.execute("SELECT 'reader_' || current_database()").fetchone() or ("",)
    yield name
    if analytics.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,)).fetchone():
        analytics.execute(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"'.encode())


def test_a_reader_reads_the_views_and_nothing_else(
    analytics: Connection[TupleRow], role: str
) -> None:
    history(analytics)
    for password in ("first", "second"):
        bi.make_reader(analytics, analytics, role, password)
    (stored,) = analytics.execute(
        "SELECT rolpassword FROM pg_authid WHERE rolname = %s", (role,)
    ).fetchone() or ("",)
    assert stored.startswith("SCRAM-SHA-256$")
    with psycopg.connect(url_of(analytics), user=role, autocommit=True) as reader:
        for name in VIEWS:
            assert table_of(reader, name) == table_of(analytics, name)
        for table in (
            "analytics.video_analytics",
            "analytics.videos",
            "public.backlot_checkpoints",
        ):
            with pytest.raises(InsufficientPrivilege):
                reader.execute(f"SELECT FROM {table}".encode())
        with pytest.raises(ReadOnlySqlTransaction):
            reader.execute("CREATE TEMPORARY TABLE t (n int)")
        reader.execute("SET default_transaction_read_only = off")
        for change in (
            f"DELETE FROM {SCHEMA}.likes", f"CREATE TABLE {SCHEMA}.t (n int)", "CREATE SCHEMA s",
        ):  # fmt: skip
            with pytest.raises(InsufficientPrivilege):
                reader.execute(change.encode())


def test_a_role_that_may_do_more_is_none(analytics: Connection[TupleRow], role: str) -> None:
    with pytest.raises(ReaderUnfit, match="more than read"):
        bi.make_reader(analytics, analytics, "postgres", "x")
    bi.make_reader(analytics, analytics, role, "x")
    analytics.execute("CREATE TABLE public.open (n int); GRANT SELECT ON public.open TO PUBLIC")
    with pytest.raises(ReaderUnfit, match=r"public\.open"):
        bi.make_reader(analytics, analytics, role, "x")
    analytics.execute(f'ALTER ROLE "{role}" CREATEDB'.encode())
    with pytest.raises(ReaderUnfit, match="more than read"):
        bi.make_reader(analytics, analytics, role, "x")


def test_the_commands(
    analytics: Connection[TupleRow],
    database_url: str,
    role: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    history(analytics)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("BACKLOT_DATA_DIR", str(tmp_path / "data"))

    def backlot(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["backlot", "analytics", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    folder = str(tmp_path / "export")
    code, out, _ = backlot("export", folder, "--view", "shares", "--from", "2000-01-01", "--json")
    told = json.loads(out)
    assert (code, told["rows"]) == (0, {"shares": len(table_of(analytics, "shares"))})
    assert FORMULA in (tmp_path / "export" / "shares.csv").read_text()
    code, _, err = backlot("export", folder)
    assert (code, "there already" in err) == (4, True)
    code, _, err = backlot("export", f"{folder}2", "--view", "viewers")
    assert (code, "viewers_daily" in err) == (2, True)
    code, out, _ = backlot("reader", role, "--json")
    told = json.loads(out)
    assert (code, told["role"], len(told["password"]) >= 32) == (0, role, True)

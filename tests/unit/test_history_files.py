"""Histories in files: what is read, what is counted, and what is wrong with them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pyarrow as pa
import pytest
from pyarrow import parquet

from benchmarks.history import Event, Film, History, Kind, counted
from benchmarks.history_files import HistoryUnusable, read_history
from benchmarks.log import AT, VIDEOS, columns, like_event, uploads
from engine.archive.lines import ExportFormat, Plan, event_line, header_line
from engine.archive.verification import ExportUnusable
from engine.payload_mode import PayloadMode
from engine.seals.chain import StoredRow
from infra.errors import ExitCode

HOUR = timedelta(hours=1)
NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
A, B = UUID(int=1), UUID(int=2)
HEAD = "time,user,video,kind"

Write = Callable[[Path, Sequence[Mapping[str, Any]]], Path]


def as_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(str(row.get(name, "")) for name in names) for row in rows]
    path.write_text("\n".join([",".join(names), *lines]) + "\n")
    return path


def as_json(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def as_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    parquet.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
    return path


def row(minute: int, user: str, video: UUID, kind: str = "view", **more: Any) -> dict[str, Any]:
    at = (NOON + timedelta(minutes=minute)).isoformat()
    return {"time": at, "user": user, "video": str(video), "kind": kind, **more}


def event(
    minute: float, video: UUID = A, kind: Kind = Kind.VIEW, seconds: float | None = None
) -> Event:
    return Event(NOON + timedelta(minutes=minute), "ann", video, kind, seconds)


@pytest.mark.parametrize("write", [as_csv, as_json, as_parquet])
def test_each_format_tells_the_same(tmp_path: Path, write: Write) -> None:
    about = {"category": "music", "owner": "bob", "title": "A song"}
    rows = [
        row(2, "ann", B, "like"),
        row(0, "ann", A, minutes=1.5, completed_at="2026-03-14T11:00:00Z", **about),
        row(3, "cleo", B, "comment"),
    ]
    assert read_history(write(tmp_path / "x", rows), HOUR) == History(
        [
            Film(B, str(B), None, "", NOON + timedelta(minutes=2)),
            Film(A, "A song", "music", "bob", NOON - HOUR),
        ],
        [
            Event(NOON, "ann", A, Kind.VIEW, 90.0),
            Event(NOON + timedelta(minutes=2), "ann", B, Kind.LIKE),
            Event(NOON + timedelta(minutes=3), "cleo", B, Kind.COMMENT),
        ],
    )


@pytest.mark.parametrize(
    "time",
    [
        "2026-03-14T12:00:00Z",
        "2026-03-14T13:00:00+01:00",
        "2026-03-14 12:00:00",
        "1773489600",
        "1773489600.0",
        "1773489600000",
    ],
)
def test_times_are_rfc_3339_or_epoch(tmp_path: Path, time: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"{HEAD}\n{time},ann,a,view\n")
    assert [each.at for each in read_history(path, HOUR).events] == [NOON]


def test_parquet_may_have_times_and_numbers_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(
        pa.table({"time": [NOON], "user": [7], "video": [8], "kind": ["view"], "other": [1]}), path
    )
    (told,) = read_history(path, HOUR).events
    assert (told.at, told.user) == (NOON, "7")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_may_be_as_spreadsheets_write_it(tmp_path: Path, delimiter: str) -> None:
    lines = [["Kind", " video", "user", "time"], ["VIEW", "v,1", "ann", "1773489600"], []]
    path = tmp_path / "x.csv"
    text = "\r\n".join(delimiter.join(f'"{cell}"' for cell in line) for line in lines)
    path.write_text(text, encoding="utf-8-sig", newline="")
    (told,) = read_history(path, HOUR).events
    assert (told.user, told.kind, told.at) == ("ann", Kind.VIEW, NOON)


def test_what_somebody_has_watched_was_there(tmp_path: Path) -> None:
    path = as_csv(tmp_path / "x.csv", [row(0, "ann", A, completed_at="2026-03-15T12:00:00Z")])
    assert [film.since for film in read_history(path, HOUR).films] == [NOON]


def test_repeated_views_are_one_for_an_hour_from_the_one_that_counts() -> None:
    events = [event(0, seconds=60), event(50, seconds=30), event(59), event(60), event(110)]
    assert counted(events, HOUR) == [event(0, seconds=90), event(60)]


def test_views_of_other_videos_and_users_are_no_repetitions() -> None:
    events = [event(0), event(1, B), Event(NOON, "bob", A)]
    assert counted(events, HOUR) == events


def test_a_like_counts_once_until_it_is_taken_back() -> None:
    like, unlike = Kind.LIKE, Kind.UNLIKE
    events = [event(0, kind=unlike), *(event(n, kind=like) for n in (1, 2))]
    events += [event(3, kind=unlike), event(4, kind=unlike), event(5, kind=like)]
    assert counted(events, HOUR) == [
        event(1, kind=like), event(3, kind=unlike), event(5, kind=like)
    ]  # fmt: skip


BAD = {
    "a column is missing": ("time,user,kind\n1,ann,view\n", "no column video; a history has"),
    "two columns are missing": ("time,user\n1,ann\n", "no column video, kind"),
    "a JSON line lacks one": ('{"time": 1, "user": "a", "kind": "view"}', "line 1: no column vid"),
    "no JSON": ('{"time": 1', "line 1: no JSON"),
    "no JSON object": ('{"time":1,"user":"a","video":"b","kind":"view"}\n[1]', "line 2: no JSON o"),
    "no time": (f"{HEAD}\n1,a,b,view\nsoon,a,b,view\n", "line 3: time 'soon' is no time: say 2026"),
    "before 1970": (f"{HEAD}\n-1,a,b,view\n", "line 2: time '-1' is no time"),
    "long before": (f"{HEAD}\n1969-12-31T23:59:59Z,a,b,view\n", "59Z' lies before 1970"),
    "before all": (f"{HEAD}\n0001-01-01T00:00:00+05:00,a,b,view\n", "line 2: time '0001-01-01T00"),
    "too large": (f"{HEAD}\n{'9' * 400},a,b,view\n", "line 2: time '999"),
    "in microseconds": (f"{HEAD}\n1773489600000000,a,b,view\n", "line 2: time '1773489600000000'"),
    "not a number": (f"{HEAD}\nnan,a,b,view\n", "line 2: time 'nan' is no time"),
    "in the future": (f"{HEAD}\n2999-01-01T00:00:00Z,a,b,view\n", "lies in the future"),
    "no kind": (f"{HEAD}\n1,a,b,\n", "line 2: kind '' is none of view, like, unlike, comment, sh"),
    "unknown kind": (f"{HEAD}\n1,a,b,click\n", "line 2: kind 'click' is none of view, like"),
    "no user": (f"{HEAD}\n1, ,b,view\n", "line 2: user is empty"),
    "no video": (f"{HEAD}\n1,a,,view\n", "line 2: video is empty"),
    "a long user": (f"{HEAD}\n1,{'é' * 201},b,view\n", "line 2: user 'éééé"),
    "a long category": (f"{HEAD},category\n1,a,b,view,{'c' * 201}\n", "more than 200 characters"),
    "a long owner": (f"{HEAD},owner\n1,a,b,view,{'c' * 201}\n", "line 2: owner 'ccc"),
    "too few cells": (f"{HEAD}\n1,a,view\n", "line 2: 3 values for 4 columns"),
    "too many cells": (f"{HEAD}\n1,a,b,view,5\n", "line 2: 5 values for 4 columns"),
    "minutes": (f"{HEAD},minutes\n1,a,b,view,long\n", "line 2: minutes 'long' is no number"),
    "less than none": (f"{HEAD},minutes\n1,a,b,view,-1\n", "line 2: minutes '-1' is no number"),
    "a week": (f"{HEAD},minutes\n1,a,b,view,1e308\n", "line 2: minutes '1e308' is no number"),
    "endless": (f"{HEAD},minutes\n1,a,b,view,inf\n", "line 2: minutes 'inf' is no number"),
    "completed": (f"{HEAD},completed_at\n1,a,b,view,x\n", "line 2: completed_at 'x' is no time"),
    "several": (f"{HEAD}\n" + 3 * "x,a,b,view\n", ("line 2: time 'x' is no time: say 2026-11-22T09:"
                "30:15Z, or seconds or milliseconds since 1970 (2 more lines can't be used)")),
    "only a head": (f"{HEAD}\n", "tells of no event"),
    "blank": (" \n\n", "is empty: it needs a line for each event (columns time, user"),
    "an open quote": (f'{HEAD}\n1,"a,b,view\n', "is no CSV, JSON lines or Parquet"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "why"), BAD.values(), ids=list(BAD))
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(HistoryUnusable) as caught:
        read_history(path, HOUR)
    told = str(caught.value)
    assert told.startswith(str(path))
    assert why in told
    assert "\n" not in told
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is neither text in UTF-8 nor Parquet"),
        (f"{HEAD}\n1,a,\xe9,view\n".encode("latin-1"), "is neither text in UTF-8 nor Parquet"),
        (bytes(1000), "no column time, user, video, kind"),
        (f"{HEAD}\n1,a\x00,b,view\n".encode(), "NUL"),
        (b"PAR1" + bytes(100), "is no whole Parquet file"),
    ],
)
def test_rubbish_is_told_from_a_history(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(HistoryUnusable, match=why):
        read_history(path, HOUR)


def test_a_folder_and_a_file_that_is_not_there_are_no_histories(tmp_path: Path) -> None:
    with pytest.raises(HistoryUnusable, match="is a folder: give one file"):
        read_history(tmp_path, HOUR)
    with pytest.raises(HistoryUnusable, match="can't be read: No such file"):
        read_history(tmp_path / "none.csv", HOUR)


def test_what_comes_through_a_pipe_can_not_be_read_twice(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(HistoryUnusable, match="can't be read twice: write it to a file"):
        read_history(path, HOUR)


def test_parquet_may_have_times_in_nanoseconds(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    at = pa.array([1_773_489_600_000_000_001], pa.timestamp("ns", "UTC"))
    rest = {"user": ["a"], "video": ["b"], "kind": ["view"]}
    parquet.write_table(pa.table({"time": at, **rest}), path)
    assert [each.at for each in read_history(path, HOUR).events] == [NOON]


def test_a_time_of_parquet_that_no_calendar_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    at = pa.array([2**62], pa.timestamp("us"))
    rest = {"user": ["a"], "video": ["b"], "kind": ["view"]}
    parquet.write_table(pa.table({"time": at, **rest}), path)
    with pytest.raises(HistoryUnusable, match="has a time that is none"):
        read_history(path, HOUR)


def test_a_parquet_file_lacks_a_column(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "x", [{"time": 1, "user": "ann", "kind": "view"}])
    with pytest.raises(HistoryUnusable, match="no column video"):
        read_history(path, HOUR)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_parquet(tmp_path / "x", [row(0, "ann", A)])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(HistoryUnusable, match=r"pip install 'backlot\[parquet\]'"):
        read_history(path, HOUR)


def written(path: Path, events: int, mode: PayloadMode = PayloadMode.FULL) -> Path:
    """An export of the videos and so many likes, a fifth of them taken back."""
    stored = [*uploads(), *(like_event(index) for index in range(events))]
    rows = [StoredRow(number, *columns(event)) for number, event in enumerate(stored, 1)]
    plan = Plan(ExportFormat.JSONL, mode, 1, len(rows), 0, 0)
    path.write_bytes(header_line(plan) + b"".join(event_line(row, mode) for row in rows))
    return path


def test_an_export_tells_who_likes_what(tmp_path: Path) -> None:
    history = read_history(written(tmp_path / "log.jsonl", 500), HOUR)
    assert {film.video_id for film in history.films} == set(VIDEOS)
    assert {(film.title, film.since) for film in history.films} == {("A video", AT)}
    kinds = [each.kind for each in history.events]
    assert (kinds.count(Kind.LIKE), kinds.count(Kind.UNLIKE)) == (400, 100)


def test_an_export_without_names_can_not_be_judged_by(tmp_path: Path) -> None:
    with pytest.raises(ExportUnusable):
        read_history(written(tmp_path / "log.jsonl", 5, PayloadMode.MASKED), HOUR)


def test_an_export_without_likes_can_not_be_judged_by(tmp_path: Path) -> None:
    with pytest.raises(HistoryUnusable, match="no likes"):
        read_history(written(tmp_path / "log.jsonl", 0), HOUR)

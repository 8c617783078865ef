"""Histories in files: CSV, JSON lines, Parquet, or an export of the event log.

Docs/recommendations.md describes the columns. Every fault of a file is found while it is read.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from itertools import chain
from math import isfinite
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any
from uuid import UUID, uuid5

import orjson

from benchmarks.history import Event, Film, History, Kind, counted
from domain.upload import Upload
from domain.video_likes import VideoLikes
from engine.archive.verification import read_header, read_rows
from engine.log import EventMapper
from infra.errors import UsageError

REQUIRED = ("time", "user", "video", "kind")
OPTIONAL = ("minutes", "category", "owner", "completed_at", "title")
COLUMNS = (*REQUIRED, *OPTIONAL)
NAMES = UUID(int=0xB1E)
"""The namespace of the ids of videos that have other ids than UUIDs."""
DELIMITERS = ",;\t"
PARQUET, EXPORT = b"PAR1", b'{"backlotExport"'
MILLISECONDS_FROM = 1e11
"""Seconds since 1970 are less until the year 5138; milliseconds were in 1973."""
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
AHEAD = timedelta(days=1)
LONGEST = 7 * 24 * 60.0
MOST_LETTERS = 200
"""Of a user, an owner or a category: they are looked up by indexes."""
SHOWN = 60

Row = Mapping[str, Any]


class HistoryUnusable(UsageError):
    """A history that is no history, or too little to judge by."""


def read_history(path: Path, repeat: timedelta) -> History:
    """Return what a file tells, as the product counts it: see `counted`. Raise HistoryUnusable."""
    beginning = _beginning(path)
    if beginning.startswith(EXPORT):
        return _from_export(path, repeat)
    if beginning.startswith(PARQUET):
        rows = _parquet_rows(path)
    elif beginning.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        rows = _json_rows(path)
    else:
        rows = _csv_rows(path)
    return _collect(path, rows, repeat)


def _beginning(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if S_ISDIR(mode):
            raise HistoryUnusable(f"{path} is a folder: give one file ({_columns()})")
        if not S_ISREG(mode):
            raise HistoryUnusable(f"{path} can't be read twice: write it to a file")
        with path.open("rb") as file:
            beginning = file.read(512)
    except OSError as error:
        raise HistoryUnusable(f"{path} can't be read: {error.strerror}") from error
    if not beginning.strip():
        raise HistoryUnusable(f"{path} is empty: it needs a line for each event ({_columns()})")
    return beginning


def _columns() -> str:
    return f"columns {', '.join(REQUIRED)}; optional {', '.join(OPTIONAL)}"


def _csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the number of each line with its columns; the first line names them."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            delimiter = max(DELIMITERS, key=head.count)
            names = [name.strip().lower() for name in next(csv.reader([head], delimiter=delimiter))]
            _check_columns(path, names)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for values in reader:
                if not values:
                    continue
                number = reader.line_num + 1
                if len(values) != len(names):
                    told = f"{len(values)} values for {len(names)} columns"
                    raise HistoryUnusable(f"{path}, line {number}: {told}: quote what has commas")
                yield number, dict(zip(names, values, strict=True))
    except UnicodeDecodeError as error:
        raise HistoryUnusable(f"{path} is neither text in UTF-8 nor Parquet") from error
    except csv.Error as error:
        raise HistoryUnusable(f"{path} is no CSV, JSON lines or Parquet: {error}") from error


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not (line := line.removeprefix(b"\xef\xbb\xbf").strip()):
                continue
            try:
                record = orjson.loads(line)
            except ValueError as error:
                raise HistoryUnusable(f"{path}, line {number}: no JSON: {error}") from error
            if not isinstance(record, dict):
                raise HistoryUnusable(f"{path}, line {number}: no JSON object")
            _check_columns(path, record, f", line {number}")
            yield number, record


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise HistoryUnusable(
            f"{path}: Parquet needs the optional library pyarrow: pip install 'backlot[parquet]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_columns(path, names)
            wanted = [name for name in names if name in COLUMNS]
            batches = (_plain(batch, arrow) for batch in file.iter_batches(columns=wanted))
            yield from enumerate(chain.from_iterable(batches), 1)
    except (arrow.ArrowException, OSError) as error:
        first = str(error).partition("\n")[0]
        raise HistoryUnusable(f"{path} is no whole Parquet file: {first}") from error
    except (ValueError, OverflowError) as error:
        raise HistoryUnusable(f"{path} has a time that is none: {error}") from error


def _plain(batch: Any, arrow: Any) -> list[Row]:
    """Return the rows; of times, which may be in nanoseconds, as far as microseconds."""
    schema = arrow.schema(
        each.with_type(arrow.timestamp("us", each.type.tz))
        if arrow.types.is_timestamp(each.type)
        else each
        for each in batch.schema
    )
    rows: list[Row] = batch.cast(schema, safe=False).to_pylist()
    return rows


def _check_columns(path: Path, names: Iterable[str], where: str = "") -> None:
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        told = ", ".join(missing)
        raise HistoryUnusable(f"{path}{where}: no column {told}; a history has {_columns()}")


@dataclass(slots=True)
class _Reading:
    events: list[Event] = field(default_factory=list)
    films: dict[str, dict[str, Any]] = field(default_factory=dict)
    ids: dict[str, UUID] = field(default_factory=dict)

    def take(self, row: Row, latest: datetime) -> None:
        """Take in a row; raise ValueError, which says what is wrong with it."""
        at, user, video = (
            _time("time", row["time"], latest),
            _text(row, "user"),
            _text(row, "video"),
        )
        if not user or not video:
            raise ValueError(f"{'video' if user else 'user'} is empty")
        _check_length("user", user)
        try:
            kind = Kind(_text(row, "kind").lower())
        except ValueError:
            raise ValueError(f"kind {_shown(row['kind'])} is none of {', '.join(Kind)}") from None
        minutes = _minutes(row.get("minutes"))
        film = self.films.setdefault(video, {})
        for name in ("category", "owner", "title"):
            if told := _text(row, name):
                if name != "title":
                    _check_length(name, told)
                film[name] = told
        if row.get("completed_at") not in (None, ""):
            film["completed_at"] = _time("completed_at", row["completed_at"], latest)
        id_ = self.ids.get(video) or self.ids.setdefault(video, _video_id(video))
        seconds = None if minutes is None or kind is not Kind.VIEW else 60 * minutes
        self.events.append(Event(at, user, id_, kind, seconds))

    def history(self, repeat: timedelta) -> History:
        self.events.sort(key=lambda event: event.at)
        first: dict[UUID, datetime] = {}
        for event in self.events:
            first.setdefault(event.video_id, event.at)
        films = [
            Film(
                id_,
                told.get("title", video),
                told.get("category"),
                told.get("owner", ""),
                # What somebody has watched was there.
                min(told.get("completed_at", first[id_]), first[id_]),
            )
            for video, told in self.films.items()
            for id_ in (self.ids[video],)
        ]
        return History(films, counted(self.events, repeat))


def _collect(path: Path, rows: Iterable[tuple[int, Row]], repeat: timedelta) -> History:
    found, latest = _Reading(), datetime.now(UTC) + AHEAD
    faults, first = 0, ""
    for number, row in rows:
        try:
            found.take(row, latest)
        except ValueError as error:
            faults += 1
            first = first or f"{path}, line {number}: {error}"
    if faults:
        more = f" ({faults - 1:,} more lines can't be used)" if faults > 1 else ""
        raise HistoryUnusable(f"{first}{more}")
    if not found.events:
        raise HistoryUnusable(f"{path} tells of no event: it needs a line for each ({_columns()})")
    return found.history(repeat)


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    text = "" if value is None else str(value).strip()
    if "\x00" in text:
        raise ValueError(f"{name} {_shown(value)} holds NUL, which can't be stored")
    return text


def _check_length(name: str, text: str) -> None:
    if len(text) > MOST_LETTERS:
        raise ValueError(f"{name} {_shown(text)} has more than {MOST_LETTERS} characters")


def _time(name: str, value: object, latest: datetime) -> datetime:
    """Return a time given as RFC 3339 (in UTC where no zone is told) or as epoch (s or ms)."""
    try:
        at = value if isinstance(value, datetime) else _parsed(str(value).strip())
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"{name} {_shown(value)} is no time: say 2026-11-22T09:30:15Z, or seconds or"
            " milliseconds since 1970"
        ) from None
    if at < EARLIEST:
        raise ValueError(f"{name} {_shown(value)} lies before 1970")
    if at > latest:
        raise ValueError(f"{name} {_shown(value)} lies in the future")
    return at


def _parsed(text: str) -> datetime:
    try:
        number = float(text)
    except ValueError:
        return datetime.fromisoformat(text)
    if number < 0:
        raise ValueError("before 1970")
    return datetime.fromtimestamp(number / 1000 if number >= MILLISECONDS_FROM else number, UTC)


def _minutes(value: object) -> float | None:
    if value is None or value == "":
        return None
    try:
        minutes = float(str(value))
    except ValueError:
        minutes = -1.0
    if not isfinite(minutes) or not 0 <= minutes <= LONGEST:
        raise ValueError(f"minutes {_shown(value)} is no number from 0 to {LONGEST:g}")
    return minutes


def _shown(value: object) -> str:
    text = repr(value if isinstance(value, str) else str(value))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _video_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        return uuid5(NAMES, text)


WANTED = (Upload.Started, Upload.Completed, VideoLikes.Liked, VideoLikes.Unliked)
TOPICS = frozenset(event.TOPIC for event in WANTED)


def _from_export(path: Path, repeat: timedelta) -> History:
    """Return what `backlot events export` (jsonl) wrote; raise ExportUnusable.

    The log holds who likes what; views are telemetry. Only what became a video counts.
    """
    read_header(path)
    mapper, begun, films = EventMapper(), dict[UUID, Film](), dict[UUID, Film]()
    events: list[Event] = []
    for row in read_rows(path):
        if row.topic not in TOPICS or row.state is None:
            continue
        event = mapper.decode(row.stream_id, row.version, row.topic, row.state)
        if isinstance(event, VideoLikes.Liked | VideoLikes.Unliked):
            kind = Kind.LIKE if isinstance(event, VideoLikes.Liked) else Kind.UNLIKE
            events.append(Event(event.timestamp, event.viewer, event.video_id, kind))
        elif isinstance(event, Upload.Started):
            begun[row.stream_id] = Film(
                event.originator_id, event.title, event.category, event.owner, event.timestamp
            )
        elif isinstance(event, Upload.Completed) and row.stream_id in begun:
            films[row.stream_id] = replace(begun[row.stream_id], since=event.timestamp)
    events.sort(key=lambda event: event.at)
    there = [event for event in events if event.video_id in films]
    if not there:
        raise HistoryUnusable(f"{path} holds no likes of videos: there is nothing to guess")
    return History(list(films.values()), counted(there, repeat))

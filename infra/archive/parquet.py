"""Writes an export as a folder of Parquet files, each whole or not there at all."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson

from infra.archive.lines import content_of
from infra.archive.plan import Plan
from infra.archive.writing import Item
from infra.errors import OperatorError
from infra.objects.disk import sync_folder
from infra.privacy import PayloadMode
from infra.seals.chain import StoredRow

PART_EVENTS = 100_000


class ParquetMissing(OperatorError):
    """The optional library that writes Parquet is not installed."""


class ParquetWriter:
    """A folder of part files, each over 100,000 positions; only whole parts count as written.

    `payload` is a JSON text; `state` has the exact bytes where the payload is shown in full.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        """Raises ParquetMissing."""
        self._arrow, self._parquet = _library("pyarrow"), _library("pyarrow.parquet")
        self._folder, self._plan = folder, plan
        self._schema = self._make_schema()
        self._part = 0
        self._file: Any = None
        folder.mkdir(exist_ok=True)

    def resume(self) -> int:
        for draft in self._folder.glob("*.draft"):
            draft.unlink()
        while self._path(self._part).exists():
            self._part += 1
        return self._plan.first + self._part * PART_EVENTS

    def write(self, items: Sequence[Item]) -> None:
        rows = (item for item in items if isinstance(item, StoredRow))
        for part, its_rows in groupby(rows, self._part_of):
            if part != self._part:
                self._end_part()
                self._part = part
            self._add(list(its_rows))

    def finish(self) -> None:
        self._end_part()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _part_of(self, row: StoredRow) -> int:
        # By position, so that what a part holds does not depend on where a run was cut off.
        return (row.position - self._plan.first) // PART_EVENTS

    def _add(self, rows: Sequence[StoredRow]) -> None:
        if self._file is None:
            self._file = self._parquet.ParquetWriter(self._draft, self._schema)
        records = [self._record(row) for row in rows]
        self._file.write_table(self._arrow.Table.from_pylist(records, schema=self._schema))

    def _end_part(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        with self._draft.open("rb") as file:
            os.fsync(file.fileno())
        self._draft.rename(self._path(self._part))
        sync_folder(self._folder)

    @property
    def _draft(self) -> Path:
        return self._path(self._part).with_suffix(".draft")

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number + 1:06}.parquet"

    def _make_schema(self) -> Any:
        arrow = self._arrow
        fields = [
            ("position", arrow.int64()),
            ("stream_id", arrow.string()),
            ("version", arrow.int64()),
            ("topic", arrow.string()),
            ("recorded_at", arrow.timestamp("us", tz="UTC")),
            ("actor", arrow.string()),
            ("correlation_id", arrow.string()),
            ("causation_id", arrow.string()),
            ("payload", arrow.string()),
        ]
        if self._plan.payload is PayloadMode.FULL:
            fields.append(("state", arrow.binary()))
        return arrow.schema(fields, metadata={"backlot.payload": self._plan.payload.value})

    def _record(self, row: StoredRow) -> dict[str, object]:
        content = content_of(row.state, self._plan.payload)
        payload = None if content.payload is None else orjson.dumps(content.payload).decode()
        return {
            "position": row.position,
            "stream_id": str(row.stream_id),
            "version": row.version,
            "topic": row.topic,
            "recorded_at": _time(content.recorded_at),
            "actor": content.actor,
            "correlation_id": _text(content.correlation_id),
            "causation_id": _text(content.causation_id),
            "payload": payload,
            "state": row.state,
        }


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ParquetMissing(
            "Parquet needs the optional library pyarrow: pip install 'backlot[parquet]'"
        ) from error


def _time(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None

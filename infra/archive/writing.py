"""Writes the lines of an export, and goes on after the last whole event when it was cut off."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BufferedRandom
from pathlib import Path
from typing import Protocol

import orjson

from infra.archive.lines import cloud_event_line, event_line, header_line, seal_line
from infra.archive.plan import ExportFormat, Plan
from infra.seals.chain import Seal, StoredRow

CHUNK_BYTES = 64 * 1024

Item = Seal | StoredRow


class Writer(Protocol):
    """Writes one export; what it has taken is safe from a crash when `write` returns."""

    def resume(self) -> int:
        """The position to go on with, after what a broken-off run has left whole."""

    def write(self, items: Sequence[Item]) -> None:
        """The next events, each seal before the first that it covers."""

    def finish(self) -> None:
        """All has been written."""

    def close(self) -> None:
        """Let go of it, finished or not."""


class LineWriter:
    """A file of lines."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self._plan = plan
        path.touch(0o600)
        self._file: BufferedRandom = path.open("r+b")

    def resume(self) -> int:
        # Also seals are written again with their first event: what they are belongs together.
        while (found := last_line(self._file)) is not None:
            start, line = found
            position = _position_in(line)
            if position is not None:
                self._file.seek(0, os.SEEK_END)
                return position + 1
            self._file.truncate(start)
        self._file.seek(0)
        if self._plan.format is ExportFormat.JSONL:
            self._file.write(header_line(self._plan))
        return self._plan.first

    def write(self, items: Sequence[Item]) -> None:
        self._file.writelines(map(self._line, items))
        self._sync()

    def finish(self) -> None:
        self._sync()

    def close(self) -> None:
        self._file.close()

    def _line(self, item: Item) -> bytes:
        if isinstance(item, Seal):
            return seal_line(item)
        if self._plan.format is ExportFormat.CLOUDEVENTS:
            return cloud_event_line(item, self._plan.payload)
        return event_line(item, self._plan.payload)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


def last_line(file: BufferedRandom) -> tuple[int, bytes] | None:
    """Where the last whole line begins, and the line; a torn one after it is cut off."""
    end = file.seek(0, os.SEEK_END)
    size = CHUNK_BYTES
    while True:
        start = max(0, end - size)
        file.seek(start)
        tail = file.read(end - start)
        whole = tail.rfind(b"\n") + 1
        before = tail.rfind(b"\n", 0, max(0, whole - 1)) + 1
        if start == 0 or before > 0:
            break
        size *= 2
    if whole < len(tail):
        file.truncate(start + whole)
    return (start + before, tail[before:whole]) if whole else None


def _position_in(line: bytes) -> int | None:
    """The position of an event's line; None for another line, and for one that is no JSON."""
    try:
        said = orjson.loads(line)
        return int(said["position"])
    except (ValueError, KeyError, TypeError):
        return None

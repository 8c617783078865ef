"""Reads a lossless export line by line, and tells where a line is not as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from infra.archive.lines import FORMAT, event_line, row_of, seal_line, seal_of
from infra.errors import OperatorError
from infra.privacy import PayloadMode
from infra.seals.chain import Seal, StoredRow

DAMAGED = (ValueError, KeyError, TypeError)


class ExportUnusable(OperatorError):
    """A file that is no export, or none that can be verified and imported."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a lossless export says of itself: its positions, and the seals over them."""

    first: int
    last: int
    first_seal: int
    last_seal: int


@dataclass(frozen=True, slots=True)
class Damaged:
    """A line that was changed: it can't be read, or its fields contradict its exact bytes."""

    number: int
    line: bytes
    row: StoredRow | None = None

    @property
    def is_seal(self) -> bool:
        return self.line.startswith(b'{"seal"')


def read_header(path: Path) -> Header:
    """Raises ExportUnusable."""
    try:
        with path.open("rb") as file:
            said = orjson.loads(file.readline())
        written, provable = said["backlotExport"], said["provable"]
    except OSError as error:
        raise ExportUnusable(f"{path} can't be read: {error.strerror}") from error
    except DAMAGED as error:
        raise ExportUnusable(f"{path} is no export that `events export` wrote as jsonl") from error
    if written != FORMAT:
        raise ExportUnusable(f"{path} has format {written}, this Backlot reads {FORMAT}")
    if not provable:
        raise ExportUnusable(
            f"{path} was written without the events' exact bytes (--payload {said.get('payload')}):"
            " it can't be verified or imported"
        )
    try:
        return Header(said["from"], said["to"], said["firstSeal"], said["lastSeal"])
    except DAMAGED as error:
        raise ExportUnusable(f"{path}: its first line is damaged: {error!r}") from error


def read_items(path: Path) -> Iterator[Seal | StoredRow | Damaged]:
    """What follows the header, in its order."""
    with path.open("rb") as file:
        file.readline()
        for number, line in enumerate(file, start=2):
            yield _read(number, line)


def read_rows(path: Path) -> Iterator[StoredRow]:
    """Only the events, those in damaged lines left out."""
    return (item for item in read_items(path) if isinstance(item, StoredRow))


def _read(number: int, line: bytes) -> Seal | StoredRow | Damaged:
    try:
        said: dict[str, Any] = orjson.loads(line)
        if "seal" in said:
            seal = seal_of(said["seal"])
            return seal if seal_line(seal) == line else Damaged(number, line)
        row = row_of(said)
        # Written again it has to be the same: the decoded fields prove as much as the bytes do.
        if event_line(row, PayloadMode.FULL) == line:
            return row
    except DAMAGED:
        return Damaged(number, line)
    return Damaged(number, line, row)

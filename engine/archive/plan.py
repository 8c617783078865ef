"""What an export contains, decided once, so that one that was cut off goes on as it began."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import orjson
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.privacy import PayloadMode
from engine.seals.tables import head
from infra.errors import OperatorError

SEALS_OVER = b"""
SELECT coalesce(min(number), 0), coalesce(max(number), 0) FROM public.backlot_seals
WHERE last >= %s AND first <= %s
"""


class ExportRefused(OperatorError):
    """An export that can't be made as it was asked for."""


class ExportFormat(StrEnum):
    """What an export is written as."""

    JSONL = "jsonl"
    CLOUDEVENTS = "cloudevents"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What is to be exported; without `first` and `last`, the log as it is now."""

    format: ExportFormat = ExportFormat.JSONL
    payload: PayloadMode = PayloadMode.FULL
    first: int | None = None
    last: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The positions `first` to `last` of the log; `last` below `first` where it was empty.

    The seals `first_seal` to `last_seal` are those over these positions; 0 for none.
    """

    format: ExportFormat
    payload: PayloadMode
    first: int
    last: int
    first_seal: int
    last_seal: int

    @property
    def events(self) -> int:
        return max(0, self.last - self.first + 1)

    @property
    def provable(self) -> bool:
        """Whether the export holds the exact bytes, so that it can be verified and imported."""
        return self.format is ExportFormat.JSONL and self.payload is PayloadMode.FULL

    def fulfils(self, wish: ExportRequest) -> bool:
        """Return whether it is what is wanted, though the log may have grown since."""
        last = self.last if wish.last is None else wish.last
        asked = (wish.format, wish.payload, wish.first or 1, last)
        return asked == (self.format, self.payload, self.first, self.last)

    def to_json(self) -> bytes:
        record = {name: getattr(self, name) for name in self.__slots__}
        return orjson.dumps(record)


def plan_from_json(text: bytes) -> Plan:
    """Raise ValueError, KeyError and TypeError for anything that is no plan."""
    record = orjson.loads(text)
    numbers = (int(record[name]) for name in ("first", "last", "first_seal", "last_seal"))
    return Plan(ExportFormat(record["format"]), PayloadMode(record["payload"]), *numbers)


def make_plan(conn: Connection[TupleRow], wish: ExportRequest) -> Plan:
    """Return what the wish means for the log as it is now. Raise ExportRefused."""
    end = head(conn)
    if wish.last is not None and wish.last > end:
        raise ExportRefused(f"--to: the log ends at position {end}")
    first, last = wish.first or 1, end if wish.last is None else wish.last
    if first > last and end > 0:
        raise ExportRefused(f"--from: {first} is behind the last position, {last}")
    row = conn.execute(SEALS_OVER, (first, last)).fetchone() or (0, 0)
    return Plan(wish.format, wish.payload, first, last, row[0], row[1])

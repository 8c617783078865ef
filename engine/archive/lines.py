"""What an export contains, and its lines: events as JSON or CloudEvents, and seals; and back.

A lossless event has the stored bytes as `state` where they are UTF-8, else as `stateBase64`; its
other fields only repeat what the bytes say, for readers of the file without Backlot.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import Any
from uuid import UUID

import orjson

from engine.log import event_id
from engine.payload_mode import PayloadMode, mask_actor, present
from engine.seals.chain import Seal, StoredRow

FORMAT = 1
SOURCE = "/backlot"
ABOUT = ("timestamp", "actor", "correlation_id", "causation_id")
ITEMS_AT_ONCE = 2_000

Item = Seal | StoredRow


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
        return orjson.dumps(self)


def plan_from_json(text: bytes) -> Plan | None:
    """Return a stored plan; None where there is none yet, or one that a crash tore."""
    try:
        record = orjson.loads(text)
        numbers = (int(record[name]) for name in ("first", "last", "first_seal", "last_seal"))
        return Plan(ExportFormat(record["format"]), PayloadMode(record["payload"]), *numbers)
    except (ValueError, KeyError, TypeError):
        return None


def event_fields(row: StoredRow, mode: PayloadMode) -> dict[str, object]:
    """Return what a lossless line tells of an event beside its exact bytes, as the mode admits it.

    Nothing of a state that is no JSON object.
    """
    try:
        content = orjson.loads(row.state or b"null")
    except ValueError:
        content = None
    payload = content if isinstance(content, dict) else None
    at, actor, correlation, causation = ((payload or {}).pop(name, None) for name in ABOUT)
    return {
        "position": row.position,
        "streamId": row.stream_id,
        "version": row.version,
        "topic": row.topic,
        "recordedAt": at,
        "actor": mask_actor(actor, mode) if isinstance(actor, str) else None,
        "correlationId": correlation,
        "causationId": causation,
        "payload": None if payload is None else present(payload, mode),
    }


def header_line(plan: Plan) -> bytes:
    """Return the first line of a lossless file."""
    record: dict[str, object] = {
        "backlotExport": FORMAT,
        "payload": plan.payload,
        "provable": plan.provable,
        "from": plan.first,
        "to": plan.last,
    }
    if plan.provable:
        record |= {"firstSeal": plan.first_seal, "lastSeal": plan.last_seal}
    return _line(record)


def line_of(item: Item, plan: Plan) -> bytes:
    """Return an item as a line of the plan's format; of a seal, see `seal_line`."""
    if isinstance(item, Seal):
        return seal_line(item)
    line = cloud_event_line if plan.format is ExportFormat.CLOUDEVENTS else event_line
    return line(item, plan.payload)


def event_line(row: StoredRow, mode: PayloadMode) -> bytes:
    """Return an event with its decoded fields and, in full, its exact bytes."""
    exact = _exact(row.state) if mode is PayloadMode.FULL else {}
    return _line(event_fields(row, mode) | exact)


def cloud_event_line(row: StoredRow, mode: PayloadMode) -> bytes:
    """Return an event as CloudEvents 1.0 has it (structured mode); numbers are strings there.

    The format's integers have 32 bits. Attributes without a value are left out.
    """
    event = event_fields(row, mode)
    record = {
        "specversion": "1.0",
        "id": event_id(row.stream_id, row.version),
        "source": SOURCE,
        "type": row.topic,
        "time": event["recordedAt"],
        "subject": row.stream_id,
        "datacontenttype": None if event["payload"] is None else "application/json",
        "position": str(row.position),
        "streamversion": str(row.version),
        "actor": event["actor"],
        "correlationid": event["correlationId"],
        "causationid": event["causationId"],
        "data": event["payload"],
    }
    return _line({name: value for name, value in record.items() if value is not None})


def seal_line(seal: Seal) -> bytes:
    """Return a seal with its leaves; it stands before the first event that it covers."""
    return _line({"seal": seal.as_dict()})


def row_of(record: Mapping[str, Any]) -> StoredRow:
    """Return the row that a lossless event is. Raise ValueError, KeyError and TypeError."""
    topic = record["topic"]
    if not isinstance(topic, str | None):
        raise TypeError("a topic is a text")
    state = b64decode(record["stateBase64"], validate=True) if "stateBase64" in record else None
    if (text := record.get("state")) is not None:
        state = text.encode()
    position, version = _integer(record["position"]), _integer(record["version"])
    return StoredRow(position, UUID(record["streamId"]), version, topic, state)


def seal_of(record: Mapping[str, Any]) -> Seal:
    """Return the seal that a line holds. Raise ValueError, KeyError and TypeError."""
    signature, peaks = record.get("signature"), record.get("peaks")
    return Seal(
        number=_integer(record["number"]),
        first=_integer(record["first"]),
        last=_integer(record["last"]),
        leaves=b64decode(record["leaves"], validate=True),
        hash=bytes.fromhex(record["hash"]),
        previous=bytes.fromhex(record["previous"]),
        signature=None if signature is None else b64decode(signature, validate=True),
        key_id=record.get("keyId"),
        sealed_at=datetime.fromisoformat(record["sealedAt"]),
        format=_integer(record.get("format", 1)),
        peaks=None if peaks is None else b64decode(peaks, validate=True),
    )


def _exact(state: bytes | None) -> dict[str, object]:
    if state is None:
        return {"state": None}
    try:
        return {"state": state.decode()}
    except UnicodeDecodeError:
        return {"stateBase64": b64encode(state).decode()}


def _integer(value: object) -> int:
    # Eight bytes, as PostgreSQL's bigint; a true would pass for a 1.
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise ValueError(f"{value!r} is no position, version or number")
    return value


def _line(record: Mapping[str, object]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


def batches(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Yield the items in lists of 2,000; the last may be shorter."""
    while batch := list(islice(items, ITEMS_AT_ONCE)):
        yield batch

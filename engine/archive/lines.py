"""The lines of an export: events as JSON, lossless or as CloudEvents, and seals; and back.

A lossless event has the stored bytes as `state` where they are UTF-8, else as `stateBase64`; its
other fields only repeat what the bytes say, for readers of the file without Backlot.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from datetime import datetime
from io import BufferedRandom
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import orjson

from engine.archive.plan import ExportFormat, Plan
from engine.log import event_id
from engine.privacy import PayloadMode, mask_actor, present
from engine.seals.anchors import last_line
from engine.seals.chain import Seal, StoredRow

FORMAT = 1
SOURCE = "/backlot"
ABOUT = ("timestamp", "actor", "correlation_id", "causation_id")

Item = Seal | StoredRow


class Content(NamedTuple):
    """What a state says: the payload, and what every event carries beside it."""

    payload: dict[str, object] | None
    recorded_at: object = None
    actor: object = None
    correlation_id: object = None
    causation_id: object = None


class Writer(Protocol):
    """Writes one export; what it has taken is safe from a crash when `write` returns."""

    def resume(self) -> int:
        """Return the position to go on with, after what a broken-off run has left whole."""

    def write(self, items: Sequence[Item]) -> None:
        """The next events, each seal before the first that it covers."""

    def finish(self) -> None:
        """All has been written."""

    def close(self) -> None:
        """Let go of it, finished or not."""


def content_of(state: bytes | None, mode: PayloadMode) -> Content:
    """Return the decoded state as the mode admits it; nothing where it is no JSON object."""
    try:
        payload = orjson.loads(state or b"null")
    except ValueError:
        payload = None
    if not isinstance(payload, dict):
        return Content(None)
    at, actor, correlation, causation = (payload.pop(name, None) for name in ABOUT)
    shown = mask_actor(actor, mode) if isinstance(actor, str) else None
    return Content(present(payload, mode), at, shown, correlation, causation)


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


def event_line(row: StoredRow, mode: PayloadMode) -> bytes:
    """Return an event with its decoded fields and, in full, its exact bytes."""
    content = content_of(row.state, mode)
    record: dict[str, object] = {
        "position": row.position,
        "streamId": row.stream_id,
        "version": row.version,
        "topic": row.topic,
        "recordedAt": content.recorded_at,
        "actor": content.actor,
        "correlationId": content.correlation_id,
        "causationId": content.causation_id,
        "payload": content.payload,
    }
    if mode is PayloadMode.FULL:
        record |= _exact(row.state)
    return _line(record)


def cloud_event_line(row: StoredRow, mode: PayloadMode) -> bytes:
    """Return an event as CloudEvents 1.0 has it (structured mode); numbers are strings there.

    The format's integers have 32 bits. Attributes without a value are left out.
    """
    content = content_of(row.state, mode)
    record = {
        "specversion": "1.0",
        "id": event_id(row.stream_id, row.version),
        "source": SOURCE,
        "type": row.topic,
        "time": content.recorded_at,
        "subject": row.stream_id,
        "datacontenttype": None if content.payload is None else "application/json",
        "position": str(row.position),
        "streamversion": str(row.version),
        "actor": content.actor,
        "correlationid": content.correlation_id,
        "causationid": content.causation_id,
        "data": content.payload,
    }
    return _line({name: value for name, value in record.items() if value is not None})


def seal_line(seal: Seal) -> bytes:
    """Return a seal with its leaves; it stands before the first event that it covers."""
    record: dict[str, object] = {
        "number": seal.number,
        "first": seal.first,
        "last": seal.last,
        "hash": seal.hash.hex(),
        "previous": seal.previous.hex(),
        "sealedAt": seal.sealed_at,
        "leaves": b64encode(seal.leaves).decode(),
    }
    if seal.signature is not None:
        record |= {"signature": b64encode(seal.signature).decode(), "keyId": seal.key_id}
    return _line({"seal": record})


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
    signature = record.get("signature")
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


def _position_in(line: bytes) -> int | None:
    """Return the position of an event's line.

    None for another line, and for one that is no JSON.
    """
    try:
        record = orjson.loads(line)
        return int(record["position"])
    except (ValueError, KeyError, TypeError):
        return None

"""The lines of an export: events as JSON, lossless or as CloudEvents, and seals; and back.

A lossless event has the stored bytes as `state` where they are UTF-8, else as `stateBase64`; its
other fields only repeat what the bytes say, for whoever reads the file without Backlot.
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
from engine.codec import event_id
from engine.privacy import PayloadMode, mask_actor, present
from engine.seals.chain import Seal, StoredRow

FORMAT = 1
SOURCE = "/backlot"
ABOUT = ("timestamp", "actor", "correlation_id", "causation_id")


class Content(NamedTuple):
    """What a state says: the payload, and what every event carries beside it."""

    payload: dict[str, object] | None
    recorded_at: object = None
    actor: object = None
    correlation_id: object = None
    causation_id: object = None


def content_of(state: bytes | None, mode: PayloadMode) -> Content:
    """The decoded state as the mode admits it; nothing where it is no JSON object."""
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
    """The first line of a lossless file."""
    said: dict[str, object] = {
        "backlotExport": FORMAT,
        "payload": plan.payload,
        "provable": plan.provable,
        "from": plan.first,
        "to": plan.last,
    }
    if plan.provable:
        said |= {"firstSeal": plan.first_seal, "lastSeal": plan.last_seal}
    return _line(said)


def event_line(row: StoredRow, mode: PayloadMode) -> bytes:
    """An event with its decoded fields and, in full, its exact bytes."""
    content = content_of(row.state, mode)
    said: dict[str, object] = {
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
        said |= _exact(row.state)
    return _line(said)


def cloud_event_line(row: StoredRow, mode: PayloadMode) -> bytes:
    """An event as CloudEvents 1.0 has it (structured mode); numbers are strings there.

    The format's integers have 32 bits. Attributes without a value are left out.
    """
    content = content_of(row.state, mode)
    said = {
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
    return _line({name: value for name, value in said.items() if value is not None})


def seal_line(seal: Seal) -> bytes:
    """A seal with its leaves; it stands before the first event that it covers."""
    said: dict[str, object] = {
        "number": seal.number,
        "first": seal.first,
        "last": seal.last,
        "hash": seal.hash.hex(),
        "previous": seal.previous.hex(),
        "sealedAt": seal.sealed_at,
        "leaves": b64encode(seal.leaves).decode(),
    }
    if seal.signature is not None:
        said |= {"signature": b64encode(seal.signature).decode(), "keyId": seal.key_id}
    return _line({"seal": said})


def row_of(said: Mapping[str, Any]) -> StoredRow:
    """The row that a lossless event is. Raises ValueError, KeyError and TypeError."""
    topic = said["topic"]
    if not isinstance(topic, str | None):
        raise TypeError("a topic is a text")
    state = b64decode(said["stateBase64"], validate=True) if "stateBase64" in said else None
    if (text := said.get("state")) is not None:
        state = text.encode()
    position, version = _integer(said["position"]), _integer(said["version"])
    return StoredRow(position, UUID(said["streamId"]), version, topic, state)


def seal_of(said: Mapping[str, Any]) -> Seal:
    """The seal that a line holds. Raises ValueError, KeyError and TypeError."""
    signature = said.get("signature")
    return Seal(
        number=_integer(said["number"]),
        first=_integer(said["first"]),
        last=_integer(said["last"]),
        leaves=b64decode(said["leaves"], validate=True),
        hash=bytes.fromhex(said["hash"]),
        previous=bytes.fromhex(said["previous"]),
        signature=None if signature is None else b64decode(signature, validate=True),
        key_id=said.get("keyId"),
        sealed_at=datetime.fromisoformat(said["sealedAt"]),
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


def _line(said: Mapping[str, object]) -> bytes:
    return orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


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

"""The lines of an export: events as JSON, lossless or as CloudEvents, and seals; and back.

A lossless event has the stored bytes as `state` where they are UTF-8, else as `stateBase64`; its
other fields only repeat what the bytes say, for whoever reads the file without Backlot.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from infra.archive.plan import Plan
from infra.codec import event_id
from infra.privacy import PayloadMode, mask_actor, present
from infra.seals.chain import Seal, StoredRow

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

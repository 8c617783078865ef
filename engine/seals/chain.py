"""The seal chain's format: what is hashed, byte by byte, so that anybody can write a verifier.

Integers are signed and big-endian; int4 has 4 bytes, int8 has 8. A text is its UTF-8.

Leaf of an event = SHA-256 of

    "backlot.event.v1" and a zero byte
    position        int8
    stream id       16 bytes
    version         int8
    topic           int4 length in bytes, then the bytes; length -1 and no bytes for SQL's NULL
    state           the same, of the bytes exactly as they are stored

Hash of a seal = SHA-256 of

    "backlot.seal.v1" and a zero byte
    hash of the seal before it, 32 bytes; zero bytes for seal 1
    first, last     int8 each: the block of consecutive positions that it covers
    leaves          32 bytes for each position of the block, in order

Seals are numbered from 1; each begins where the one before it ended, the first at position 1.
A signature is Ed25519 (RFC 8032) over the 32 bytes of the seal's hash; its key id is the first
16 hexadecimal digits of the SHA-256 of the raw public key.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from struct import Struct
from typing import NamedTuple
from uuid import UUID

EVENT_TAG = b"backlot.event.v1\0"
SEAL_TAG = b"backlot.seal.v1\0"
HASH_BYTES = 32
NO_SEAL = bytes(HASH_BYTES)
"""What the first seal has in place of the hash before it."""

_PLACE = Struct(">q16sq")
_RANGE = Struct(">qq")
_LENGTH = Struct(">i")
_NULL = _LENGTH.pack(-1)


class StoredRow(NamedTuple):
    """One row of the event table, exactly as it lies there."""

    position: int
    stream_id: UUID
    version: int
    topic: str | None
    state: bytes | None


@dataclass(frozen=True, slots=True)
class Seal:
    """One seal: the block `first` to `last`, its leaves, its place in the chain, its signature."""

    number: int
    first: int
    last: int
    leaves: bytes = field(repr=False)
    hash: bytes
    previous: bytes
    signature: bytes | None
    key_id: str | None
    sealed_at: datetime

    def leaf_at(self, position: int) -> bytes:
        """Return the leaf of one of its positions."""
        start = (position - self.first) * HASH_BYTES
        return self.leaves[start : start + HASH_BYTES]


class FaultKind(StrEnum):
    """How a log can differ from what was sealed."""

    ALTERED = "altered"
    MISSING = "missing"
    ADDED = "added"
    SEAL_ALTERED = "seal-altered"
    SEAL_MISSING = "seal-missing"
    SIGNATURE_INVALID = "signature-invalid"
    ANCHOR_DIFFERS = "anchor-differs"


@dataclass(frozen=True, slots=True)
class Fault:
    """The first place where the log is not what it was; what is known of it, and in words."""

    kind: FaultKind
    detail: str
    position: int | None = None
    stream_id: UUID | None = None
    version: int | None = None
    seal: int | None = None

    def as_dict(self) -> dict[str, object]:
        found = {
            "kind": self.kind.value,
            "position": self.position,
            "streamId": None if self.stream_id is None else str(self.stream_id),
            "version": self.version,
            "seal": self.seal,
            "detail": self.detail,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Report:
    """What was checked: positions from `first`, proved up to `sealed_to`; and the first fault.

    `signed` counts seals with a signature, right ones where a public key was given; `anchored`
    those that were compared with an anchor. The `unsealed` events at the end are not proved yet,
    only looked at. Counts include what comes after a fault. `newest` is the last seal.
    """

    first: int
    events: int
    sealed_to: int
    seals: int
    signed: int
    anchored: int
    unsealed: int
    fault: Fault | None
    newest: Seal | None

    @property
    def ok(self) -> bool:
        return self.fault is None

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON has it."""
        record: dict[str, object] = {
            "ok": self.ok,
            "from": self.first,
            "events": self.events,
            "sealedTo": self.sealed_to,
            "seals": self.seals,
            "signed": self.signed,
            "anchored": self.anchored,
            "unsealed": self.unsealed,
        }
        return record if self.fault is None else {**record, "fault": self.fault.as_dict()}


@dataclass(frozen=True, slots=True)
class Gap:
    """Positions that are not there, and the row after them."""

    first: int
    row: StoredRow

    @property
    def size(self) -> int:
        return self.row.position - self.first


def leaf(row: StoredRow) -> bytes:
    """Return the 32 bytes that stand for an event, its exact bytes and its place."""
    topic = None if row.topic is None else row.topic.encode()
    place = _PLACE.pack(row.position, row.stream_id.bytes, row.version)
    return sha256(b"".join((EVENT_TAG, place, *_sized(topic), *_sized(row.state)))).digest()


def seal_hash(previous: bytes, first: int, last: int, leaves: bytes) -> bytes:
    """Return the 32 bytes that stand for a block and for everything before it."""
    return sha256(b"".join((SEAL_TAG, previous, _RANGE.pack(first, last), leaves))).digest()


def _sized(content: bytes | None) -> Sequence[bytes]:
    return (_NULL,) if content is None else (_LENGTH.pack(len(content)), content)


class Tail:
    """Looks for gaps, second events at a position, and topics that no program here writes."""

    def __init__(self, known_topics: Container[str] | None) -> None:
        self._known = known_topics
        self._gap: Gap | None = None
        self._after_gap = 0
        self._fault: Fault | None = None
        self.events = 0

    def take(self, group: Sequence[StoredRow], expected: int) -> None:
        """The rows at one position, which should be the `expected` one."""
        row = group[0]
        self.events += len(group)
        if self._gap is not None:
            self._after_gap += len(group)
        elif self._fault is None and row.position > expected:
            self._gap, self._after_gap = Gap(expected, row), len(group)
        elif self._fault is None:
            self._fault = self._look_at(group)

    def finish(self, expected: int, until: int | None, orphan: Fault | None) -> Fault | None:
        """Return the first fault, where `until` is the position that the log should end with."""
        fault = self._fault or (self._judge(self._gap) if self._gap else None)
        if fault is None and until is not None and expected <= until:
            detail = f"the log should go on from position {expected} to {until}"
            fault = Fault(FaultKind.MISSING, detail, expected)
        found = [one for one in (fault, orphan) if one is not None]
        return min(found, key=lambda one: one.position or 0, default=None)

    def _look_at(self, group: Sequence[StoredRow]) -> Fault | None:
        row = group[0]
        if len(group) > 1:
            return _added(group[1], "it has a second event")
        if self._known is not None and row.topic not in self._known:
            return _added(row, f"nothing here writes the topic {row.topic!r}")
        return None

    def _judge(self, gap: Gap) -> Fault:
        """Without a seal only the odds decide: a lone row far out was added, else rows are gone."""
        gone = f"positions {gap.first} to {gap.row.position - 1} are not there"
        if self._after_gap < gap.size:
            return _added(gap.row, gone)
        return Fault(FaultKind.MISSING, f"{gone}, and what follows is", gap.first)


def orphaned(row: StoredRow) -> Fault:
    """Return an unsealed event whose stream has not the version before it."""
    return _added(row, f"its stream has no version {row.version - 1} before it")


def _added(row: StoredRow, why: str) -> Fault:
    detail = f"a row was added at position {row.position}: {why}"
    return Fault(FaultKind.ADDED, detail, row.position, row.stream_id, row.version)

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

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
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
    """One seal: the block `first` to `last`, its leaves, its place in the chain, who signed it."""

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
        """The leaf of one of its positions."""
        start = (position - self.first) * HASH_BYTES
        return self.leaves[start : start + HASH_BYTES]


def leaf(row: StoredRow) -> bytes:
    """The 32 bytes that stand for an event, its exact bytes and its place."""
    topic = None if row.topic is None else row.topic.encode()
    place = _PLACE.pack(row.position, row.stream_id.bytes, row.version)
    return sha256(b"".join((EVENT_TAG, place, *_sized(topic), *_sized(row.state)))).digest()


def seal_hash(previous: bytes, first: int, last: int, leaves: bytes) -> bytes:
    """The 32 bytes that stand for a block and for everything before it."""
    return sha256(b"".join((SEAL_TAG, previous, _RANGE.pack(first, last), leaves))).digest()


def _sized(content: bytes | None) -> Sequence[bytes]:
    return (_NULL,) if content is None else (_LENGTH.pack(len(content)), content)

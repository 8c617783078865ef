"""The seal chain: its format, byte by byte, so that anybody can write a verifier, and its table.

Integers are signed and big-endian; int4 has 4 bytes, int8 has 8. A text is its UTF-8.

Leaf of an event = SHA-256 of

    "backlot.event.v1" and a zero byte
    position        int8
    stream id       16 bytes
    version         int8
    topic           int4 length in bytes, then the bytes; length -1 and no bytes for SQL's NULL
    state           the same, of the bytes exactly as they are stored

Hash of a seal of format 2 = SHA-256 of

    "backlot.seal.v2" and a zero byte
    hash of the seal before it, 32 bytes; for seal 1 zero bytes, or the hash of the last seal of
                    the log that this one was rewritten from
    number          int8
    first, last     int8 each: the block of consecutive positions that it covers
    sealed at       int8: microseconds since 1970, in UTC
    key id          int4 length in bytes, then the bytes; length -1 for a seal without a signature
    events          32 bytes: the root of a tree with a fan of 16 over the leaves of the block
    seals           32 bytes: the root of a tree with a fan of 2 over the hashes of all seals before

`merkle.py` has the trees. Hash of a seal of format 1 = SHA-256 of

    "backlot.seal.v1" and a zero byte
    hash of the seal before it, 32 bytes; zero bytes for seal 1
    first, last     int8 each
    leaves          32 bytes for each position of the block, in order

Seals are numbered from 1; each begins where the one before it ended, the first at position 1.
A signature is Ed25519 (RFC 8032) over the 32 bytes of the seal's hash; its key id is the first
16 hexadecimal digits of the SHA-256 of the raw public key.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from struct import Struct
from typing import NamedTuple
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from engine.log import HEAD
from engine.seals import merkle
from engine.seals.merkle import HASH_BYTES
from infra.postgres.connection import open_connection

EVENT_TAG = b"backlot.event.v1\0"
SEAL_TAG = b"backlot.seal.v2\0"
OLD_SEAL_TAG = b"backlot.seal.v1\0"
FORMAT = 2
"""What new seals have; those of format 1 stay, and can be verified."""
FAN = 16
"""Children of a node over events: binary, each seal would take 15 times as many hashes."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NO_SEAL = bytes(HASH_BYTES)
"""What the first seal has in place of the hash before it, unless the log was rewritten."""

_PLACE = Struct(">q16sq")
_RANGE = Struct(">qq")
_HEADER = Struct(">qqqq")
_LENGTH = Struct(">i")
_NULL = _LENGTH.pack(-1)

# The encoding of `leaf` in SQL; a test compares the two on odd data.
LEAF = f"""sha256('\\x{EVENT_TAG.hex()}'::bytea || int8send(notification_id)
    || uuid_send(originator_id) || int8send(originator_version)
    || coalesce(int4send(octet_length(convert_to(topic, 'UTF8'))) || convert_to(topic, 'UTF8'),
                int4send(-1))
    || coalesce(int4send(octet_length(state)) || state, int4send(-1)))"""

PAGE_SEALS = 20
COLUMNS = "number, first, last, leaves, hash, previous, signature, key_id, sealed_at, format, peaks"
NAMES = tuple(COLUMNS.split(", "))
# In one statement, so that nothing can come between the look at the seal before and the new one.
INSERT = f"""
INSERT INTO public.backlot_seals ({COLUMNS})
SELECT %(number)s::int8, %(first)s::int8, %(last)s::int8, %(leaves)b::bytea, %(hash)b::bytea,
       %(previous)b::bytea, %(signature)b::bytea, %(key_id)s::text, %(sealed_at)s::timestamptz,
       %(format)s::int2, %(peaks)b::bytea
WHERE coalesce((SELECT hash FROM public.backlot_seals ORDER BY number DESC LIMIT 1),
               CASE WHEN %(number)s::int8 = 1 THEN %(previous)b::bytea END) = %(previous)b::bytea
""".encode()
TIP = b"SELECT number, hash FROM public.backlot_seals ORDER BY number DESC LIMIT 1"
HASHES = b"SELECT hash FROM public.backlot_seals WHERE number <= %s ORDER BY number"
LAST = f"SELECT {COLUMNS} FROM public.backlot_seals ORDER BY number DESC LIMIT 1".encode()
PAGE = f"""
SELECT {COLUMNS} FROM public.backlot_seals
WHERE number > %s AND number <= %s ORDER BY number LIMIT {PAGE_SEALS}
""".encode()
# Without its leaves, which are most of a seal.
LISTED = b"""
SELECT number, first, last, sealed_at, hash, previous, signature, key_id FROM public.backlot_seals
WHERE number < %s ORDER BY number DESC LIMIT %s
"""


class StoredRow(NamedTuple):
    """One row of the event table, exactly as it lies there."""

    position: int
    stream_id: UUID
    version: int
    topic: str | None
    state: bytes | None


@dataclass(frozen=True, slots=True)
class Seal:
    """One seal: the block `first` to `last`, its leaves, its place in the chain, its signature.

    The fields are the columns of its row, in their order. `peaks` are those of the tree over all
    seals before it; one of format 1 has none.
    """

    number: int
    first: int
    last: int
    leaves: bytes = field(repr=False)
    hash: bytes
    previous: bytes
    signature: bytes | None
    key_id: str | None
    sealed_at: datetime
    format: int = 1
    peaks: bytes | None = field(default=None, repr=False)

    def leaf_at(self, position: int) -> bytes:
        """Return the leaf of one of its positions."""
        start = (position - self.first) * HASH_BYTES
        return self.leaves[start : start + HASH_BYTES]

    def as_dict(self) -> dict[str, object]:
        """Return the seal as lines of JSON have it, bytes in hexadecimal or base64."""
        record: dict[str, object] = {
            "number": self.number,
            "first": self.first,
            "last": self.last,
            "hash": self.hash.hex(),
            "previous": self.previous.hex(),
            "sealedAt": self.sealed_at,
            "leaves": b64encode(self.leaves).decode(),
        }
        if self.peaks is not None:
            record |= {"format": self.format, "peaks": b64encode(self.peaks).decode()}
        if self.signature is not None:
            record |= {"signature": b64encode(self.signature).decode(), "keyId": self.key_id}
        return record


class ListedSeal(NamedTuple):
    """A seal without its leaves."""

    number: int
    first: int
    last: int
    sealed_at: datetime
    hash: bytes
    previous: bytes
    signature: bytes | None
    key_id: str | None


def leaf(row: StoredRow) -> bytes:
    """Return the 32 bytes that stand for an event, its exact bytes and its place."""
    topic = None if row.topic is None else row.topic.encode()
    place = _PLACE.pack(row.position, row.stream_id.bytes, row.version)
    return sha256(b"".join((EVENT_TAG, place, *_frame(topic), *_frame(row.state)))).digest()


@dataclass(frozen=True, slots=True)
class SealHeader:
    """What is hashed of a seal of format 2: its fields, and the roots of its two trees."""

    number: int
    first: int
    last: int
    previous: bytes
    sealed_at: datetime
    key_id: str | None
    events: bytes
    seals: bytes

    def hash(self) -> bytes:
        """Return the 32 bytes that stand for the block and for everything before it."""
        moment = (self.sealed_at - EPOCH) // timedelta(microseconds=1)
        place = _HEADER.pack(self.number, self.first, self.last, moment)
        key = _frame(None if self.key_id is None else self.key_id.encode())
        return sha256(
            b"".join((SEAL_TAG, self.previous, place, *key, self.events, self.seals))
        ).digest()


def header_of(seal: Seal) -> SealHeader:
    """Return the header of a seal of format 2, its trees computed from its leaves and its peaks."""
    return SealHeader(
        seal.number,
        seal.first,
        seal.last,
        seal.previous,
        seal.sealed_at,
        seal.key_id,
        merkle.root(seal.leaves, FAN),
        merkle.join_peaks(seal.peaks or b""),
    )


def seal_hash(seal: Seal) -> bytes:
    """Return what the hash of a seal has to be. Raise ValueError for a format not known here."""
    if seal.format == FORMAT:
        return header_of(seal).hash()
    if seal.format == 1:
        return old_seal_hash(seal.previous, seal.first, seal.last, seal.leaves)
    raise ValueError(f"format {seal.format} of seals is not known here")


def old_seal_hash(previous: bytes, first: int, last: int, leaves: bytes) -> bytes:
    """Return the hash of a seal of format 1."""
    return sha256(b"".join((OLD_SEAL_TAG, previous, _RANGE.pack(first, last), leaves))).digest()


def peaks_after(seal: Seal | None, earlier: Iterable[bytes] = ()) -> bytes:
    """Return the peaks of the tree over all seals up to this one; none are before seal 1.

    `earlier` are the hashes of all seals up to this one, needed where it is of format 1.
    """
    if seal is None:
        return b""
    if seal.peaks is not None:
        return merkle.grow(seal.peaks, seal.number - 1, seal.hash)
    peaks = b""
    for count, each in enumerate(earlier):
        peaks = merkle.grow(peaks, count, each)
    return peaks


def _frame(content: bytes | None) -> Sequence[bytes]:
    return (_NULL,) if content is None else (_LENGTH.pack(len(content)), content)


def connect(database_url: str, purpose: str) -> Connection[TupleRow]:
    """Return a connection in autocommit mode for keyed queries; raise OperationalError."""
    connection = open_connection(database_url, purpose)
    # Every query is keyed, and the planner must not think otherwise while the table is small.
    connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
    return connection


def head(conn: Connection[TupleRow]) -> int:
    """Return the last position of the log; 0 when it is empty."""
    row = conn.execute(HEAD).fetchone()
    return int(row[0]) if row else 0


def last_seal(conn: Connection[TupleRow]) -> Seal | None:
    """Return the newest seal."""
    with conn.cursor(binary=True) as cursor:
        row = cursor.execute(LAST, prepare=True).fetchone()
    return Seal(*row) if row else None


def seals(conn: Connection[TupleRow], after: int, until: int) -> Iterator[Seal]:
    """Yield the seals numbered above `after` up to `until`, in order, a few at a time."""
    while True:
        with conn.cursor(binary=True) as cursor:
            page = cursor.execute(PAGE, (after, until)).fetchall()
        yield from (Seal(*row) for row in page)
        if len(page) < PAGE_SEALS:
            return
        after = page[-1][0]


def newest_seals(conn: Connection[TupleRow], before: int, limit: int) -> list[ListedSeal]:
    """Return the last seals before a number, the newest first."""
    with conn.cursor(binary=True) as cursor:
        return [ListedSeal(*row) for row in cursor.execute(LISTED, (before, limit)).fetchall()]


def seal_hashes(conn: Connection[TupleRow], until: int) -> Iterator[bytes]:
    """Yield the hashes of the seals up to a number, in order."""
    with conn.cursor(binary=True) as cursor:
        for (found,) in cursor.stream(HASHES, (until,)):
            yield found


def tip(conn: Connection[TupleRow]) -> tuple[int, bytes] | None:
    """Return number and hash of the newest seal, without all that it covers."""
    with conn.cursor(binary=True) as cursor:
        row = cursor.execute(TIP, prepare=True).fetchone()
    return (row[0], row[1]) if row else None


def insert_seal(conn: Connection[TupleRow], seal: Seal) -> bool:
    """Store a seal behind the one that it follows; return False where that is not the newest.

    Raise UniqueViolation where its number is taken.
    """
    values = {name: getattr(seal, name) for name in NAMES}
    return conn.execute(INSERT, values).rowcount == 1

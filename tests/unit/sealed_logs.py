"""Small logs with their seals, made without a database, and what a check says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from uuid import UUID

from engine.seals.chain import NO_SEAL, Seal, StoredRow, leaf, seal_hash
from engine.seals.check import Check, Fault, Report
from engine.seals.proofs import Anchor, SealKey

AT = datetime(2026, 11, 25, 12, tzinfo=UTC)
STREAM = UUID("5f0c2f0a-7f0e-4a3c-9a39-1c6a54f2b7aa")
BLOCK = 5


def log_of(count: int) -> list[StoredRow]:
    return [StoredRow(n, STREAM, n, "test.v1", f"state {n}".encode()) for n in range(1, count + 1)]


def chain_over(rows: Sequence[StoredRow], key: SealKey | None = None) -> list[Seal]:
    """Seals in blocks of five over all rows."""
    seals: list[Seal] = []
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        previous = seals[-1].hash if seals else NO_SEAL
        leaves = b"".join(leaf(row) for row in block)
        first, last = block[0].position, block[-1].position
        digest = seal_hash(previous, first, last, leaves)
        signature, key_id = (key.sign(digest), key.key_id) if key else (None, None)
        seals.append(
            Seal(len(seals) + 1, first, last, leaves, digest, previous, signature, key_id, AT)
        )
    return seals


def checked(rows: Sequence[StoredRow], seals: Sequence[Seal], check: Check | None = None) -> Report:
    check = check or Check(known_topics={"test.v1"})
    waiting = list(rows)
    for seal in seals:
        check.take(seal)
        while waiting and waiting[0].position <= seal.last:
            check.take(waiting.pop(0))
    for row in waiting:
        check.take(row)
    return check.finish()


def fault_of(rows: Sequence[StoredRow], seals: Sequence[Seal], check: Check | None = None) -> Fault:
    fault = checked(rows, seals, check).fault
    assert fault is not None
    return fault


def named(fault: Fault) -> tuple[str, int | None, UUID | None, int | None, int | None]:
    return fault.kind.value, fault.position, fault.stream_id, fault.version, fault.seal


def anchors_of(*seals: Seal) -> Iterator[Anchor]:
    return iter([Anchor(seal.number, seal.first, seal.last, seal.hash) for seal in seals])

"""Small logs with their seals, made without a database, and what a check says of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.seals.anchors import Acceptance, Anchor, StampedSeals, anchor_of, stamped_of
from engine.seals.chain import FORMAT, NO_SEAL, Seal, StoredRow, leaf, peaks_after, seal_hash
from engine.seals.check import Check
from engine.seals.outside import Outside
from engine.seals.proofs import Proofs, SealKey
from engine.seals.report import Fault, Report

AT = datetime(2026, 11, 25, 12, tzinfo=UTC)
STREAM = UUID("5f0c2f0a-7f0e-4a3c-9a39-1c6a54f2b7aa")
BLOCK = 5
KEY = SealKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER_KEY = SealKey(Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))


def log_of(count: int) -> list[StoredRow]:
    return [StoredRow(n, STREAM, n, "test.v1", f"state {n}".encode()) for n in range(1, count + 1)]


def chain_over(
    rows: Sequence[StoredRow], key: SealKey | None = None, *, old: int = 0, unsigned: int = 0
) -> list[Seal]:
    """Seals in blocks of five over all rows, signed if there is a key.

    The first `old` of them have the former format, the first `unsigned` no signature.
    """
    seals: list[Seal] = []
    for start in range(0, len(rows), BLOCK):
        before = seals[-1] if seals else None
        its_key = key if len(seals) >= unsigned else None
        block = rows[start : start + BLOCK]
        leaves = b"".join(leaf(row) for row in block)
        peaks = peaks_after(before, [seal.hash for seal in seals])
        seal = Seal(
            number=len(seals) + 1,
            first=block[0].position,
            last=block[-1].position,
            leaves=leaves,
            hash=b"",
            previous=before.hash if before else NO_SEAL,
            signature=None,
            key_id=its_key.key_id if its_key else None,
            sealed_at=AT,
            format=FORMAT if len(seals) >= old else 1,
            peaks=peaks if len(seals) >= old else None,
        )
        seals.append(hashed(seal, its_key))
    return seals


def hashed(seal: Seal, key: SealKey | None = None) -> Seal:
    """The seal with the hash that fits what it says, signed with a key if there is one."""
    digest = seal_hash(seal)
    return replace(seal, hash=digest, signature=key.sign(digest) if key else None)


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


class Anchored:
    """A place of anchors in memory."""

    name, pause_seconds, seals_at_once = "memory", 0.0, 1_000

    def __init__(self, *seals: Seal) -> None:
        self._anchors = [anchor_of(seal) for seal in seals]

    def newest(self) -> Anchor | None:
        return self._anchors[-1] if self._anchors else None

    def append(self, seals: Iterable[Seal], token: bytes | None = None) -> None:
        self._anchors += [anchor_of(seal) for seal in seals]

    def accept(self, seal: Seal | None, acceptance: Acceptance) -> None:
        raise NotImplementedError

    def read(self) -> Iterator[Anchor]:
        return iter(self._anchors)

    def acceptances(self) -> list[Anchor]:
        return []

    def stamped(self) -> StampedSeals:
        return stamped_of(self._anchors)


def anchored(*seals: Seal) -> Proofs:
    """What a check compares with where these seals are anchored, and nothing else is known."""
    return Proofs(outside=Outside(anchors=[Anchored(*seals)]))

"""Proofs that one event is in the log: made from the database, checked with an anchor alone.

A proof is JSON: `event` as a line of an export has it, `seal` that covers it with the `path` from
the event to the root over the seal's block, and, where it leads to a later seal, that one as `head`
with the `headPath` from the seal's hash to the root over all seals before `head`. Paths are hashes,
which say nothing of other events. A seal of format 1 commits to no tree: in place of the path there
are the `leaves` of its block, and `head` can't be such a seal.
"""

from __future__ import annotations

import struct
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.archive.lines import event_line, row_of
from engine.payload_mode import PayloadMode
from engine.seals import chain, merkle
from engine.seals.anchors import Anchor
from engine.seals.chain import FAN, FORMAT, Seal, SealHeader, StoredRow, leaf
from engine.seals.merkle import HASH_BYTES
from engine.seals.proofs import PublicKeys
from engine.seals.verification import rows_between
from infra.errors import OperatorError

PROOF = 1
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, struct.error)
COVERS = f"""
SELECT {chain.COLUMNS} FROM public.backlot_seals WHERE first <= %s AND last >= %s
ORDER BY number LIMIT 1
""".encode()


class ProofRefused(OperatorError):
    """A proof that can't be made, or can't be read."""


class Disproved(Exception):
    """The proof does not hold; the text says where."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a proof shows: `position` is in the log that seal `seal` commits to, or is not.

    `by` says what vouches for that seal: `anchor`, `signature`, or None where nothing at hand does.
    """

    ok: bool
    detail: str
    position: int | None = None
    seal: int | None = None
    by: str | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the verdict as JSON has it."""
        found = {
            "ok": self.ok,
            "position": self.position,
            "seal": self.seal,
            "by": self.by,
            "detail": self.detail,
        }
        return {name: value for name, value in found.items() if value is not None}


def make_proof(
    conn: Connection[TupleRow], position: int, until: int | None = None
) -> dict[str, Any]:
    """Return the proof for an event, leading to the seal `until`; by default to the newest.

    Raise ProofRefused where there is no such event, where no seal covers it, where it is not the
    one that was sealed, and where `until` can't be reached. Raise psycopg.Error.
    """
    row = next(rows_between(conn, position - 1, position), None)
    if row is None:
        raise ProofRefused(f"there is no event at position {position}")
    with conn.cursor(binary=True) as cursor:
        found = cursor.execute(COVERS, (position, position)).fetchone()
    if found is None:
        raise ProofRefused(f"no seal covers position {position} yet: try again in some seconds")
    seal = Seal(*found)
    if leaf(row) != seal.leaf_at(position):
        raise ProofRefused(
            f"the event at position {position} is not the one that was sealed: "
            "`backlot events verify` says more"
        )
    proof: dict[str, Any] = {
        "backlotProof": PROOF,
        "event": orjson.loads(event_line(row, PayloadMode.FULL)),
        "seal": _header(seal),
    }
    if seal.format == FORMAT:
        steps = merkle.path(seal.leaves, position - seal.first, FAN)
        proof["path"] = [step.hex() for step in steps]
    else:
        proof["leaves"] = b64encode(seal.leaves).decode()
    head = _head(conn, seal, until)
    if head is None:
        return proof
    before = b"".join(chain.seal_hashes(conn, head.number - 1))
    steps = merkle.path(before, seal.number - 1)
    return {**proof, "head": _header(head), "headPath": [step.hex() for step in steps]}


def _head(conn: Connection[TupleRow], seal: Seal, until: int | None) -> Seal | None:
    """Return the later seal that the proof leads to; None where it ends with the event's own."""
    if until is None:
        newest = chain.last_seal(conn)
        later = newest is not None and newest.number > seal.number and newest.format == FORMAT
        return newest if later else None
    if until < seal.number:
        raise ProofRefused(f"seal {until} is older than the event, which seal {seal.number} covers")
    if until == seal.number:
        return None
    head = next(chain.seals(conn, until - 1, until), None)
    if head is None:
        raise ProofRefused(f"there is no seal {until}")
    if head.format != FORMAT:
        raise ProofRefused(
            f"seal {until} has the format of an older release, which commits to no tree: a proof "
            f"can lead to the event's own seal, {seal.number}, or to one of this release's"
        )
    return head


def _header(seal: Seal) -> dict[str, object]:
    header = chain.header_of(seal) if seal.format == FORMAT else None
    record: dict[str, object] = {
        "format": seal.format,
        "number": seal.number,
        "first": seal.first,
        "last": seal.last,
        "hash": seal.hash.hex(),
        "previous": seal.previous.hex(),
        "sealedAt": seal.sealed_at.isoformat(),
    }
    if header is not None:
        record |= {"events": header.events.hex(), "seals": header.seals.hex()}
    if seal.signature is not None:
        record |= {"signature": b64encode(seal.signature).decode(), "keyId": seal.key_id}
    return record


@dataclass(frozen=True, slots=True)
class ShownSeal:
    """A seal as a proof shows it, whose hash was computed from what the proof shows."""

    anchor: Anchor
    signature: bytes | None
    key_id: str | None


def check_proof(
    proof: Mapping[str, Any],
    anchors: Iterable[Anchor] = (),
    public_keys: PublicKeys | None = None,
) -> Verdict:
    """Return what a proof shows, by anchors and public keys alone.

    Raise AnchorsUnusable, and ProofRefused for what is no proof of a version known here.
    """
    try:
        if proof["backlotProof"] != PROOF:
            raise ProofRefused(f"this proof has version {proof['backlotProof']}, not {PROOF}")
        row = row_of(proof["event"])
        if orjson.loads(event_line(row, PayloadMode.FULL)) != proof["event"]:
            raise Disproved("the fields of the event contradict its exact bytes")
        seals = list(_shown(proof, row))
    except DAMAGED as error:
        raise ProofRefused(f"it is no proof that can be read: {error!r}") from error
    except Disproved as error:
        return Verdict(False, str(error))
    return _vouched(row, seals, anchors, public_keys)


def _shown(proof: Mapping[str, Any], row: StoredRow) -> Iterable[ShownSeal]:
    record = proof["seal"]
    number, first, last = (int(record[name]) for name in ("number", "first", "last"))
    if not first <= row.position <= last:
        raise Disproved(f"seal {number} does not cover position {row.position}")
    if record["format"] == FORMAT:
        steps = list(map(bytes.fromhex, proof["path"]))
        events = _climb(leaf(row), row.position - first, last - first + 1, steps, FAN)
        own = _parsed(record, events, bytes.fromhex(record["seals"])).hash()
    else:
        leaves, at = b64decode(proof["leaves"], validate=True), (row.position - first) * HASH_BYTES
        if leaves[at : at + HASH_BYTES] != leaf(row):
            raise Disproved(f"the event is not the one that seal {number} covers")
        own = chain.old_seal_hash(bytes.fromhex(record["previous"]), first, last, leaves)
    yield _compared(record, own, f"the event is not in seal {number} as the path says")
    head = proof.get("head")
    if head is not None:
        steps = list(map(bytes.fromhex, proof["headPath"]))
        root = _climb(own, number - 1, int(head["number"]) - 1, steps, 2)
        found = _parsed(head, bytes.fromhex(head["events"]), root).hash()
        told = f"seal {number} is not among those that seal {head['number']} commits to"
        yield _compared(head, found, told)


def _climb(node: bytes, index: int, count: int, steps: list[bytes], fan: int) -> bytes:
    try:
        return merkle.climb(node, index, count, steps, fan)
    except ValueError as error:
        raise Disproved(f"a path fits no tree: {error}") from error


def _parsed(record: Mapping[str, Any], events: bytes, seals: bytes) -> SealHeader:
    return SealHeader(
        int(record["number"]),
        int(record["first"]),
        int(record["last"]),
        bytes.fromhex(record["previous"]),
        datetime.fromisoformat(record["sealedAt"]),
        record.get("keyId"),
        events,
        seals,
    )


def _compared(record: Mapping[str, Any], found: bytes, wrong: str) -> ShownSeal:
    if found.hex() != record["hash"]:
        raise Disproved(wrong)
    number, first, last = (int(record[name]) for name in ("number", "first", "last"))
    signature = record.get("signature")
    return ShownSeal(
        Anchor(number, first, last, found),
        None if signature is None else b64decode(signature, validate=True),
        record.get("keyId"),
    )


def _vouched(
    row: StoredRow,
    seals: list[ShownSeal],
    anchors: Iterable[Anchor],
    public_keys: PublicKeys | None,
) -> Verdict:
    """Return by which anchor or signature the event is proved."""
    wanted = {seal.anchor.number: seal.anchor for seal in seals}
    known = list(anchors)
    for anchor in known:
        shown = wanted.get(anchor.number)
        if shown is not None and shown.seal != anchor.seal:
            return Verdict(False, f"the anchor knows another seal {anchor.number} than the proof")
    held = next((anchor.number for anchor in known if anchor.number in wanted), None)
    if held is not None:
        return _proved(row, held, "anchor")
    for seal in seals if public_keys is not None else ():
        if seal.signature is None or public_keys is None:
            continue
        why = public_keys.fault(seal.anchor.hash, seal.signature, seal.key_id)
        if why is not None:
            return Verdict(False, f"seal {seal.anchor.number}: {why}")
        return _proved(row, seal.anchor.number, "signature")
    numbers = " and ".join(map(str, wanted))
    told = f"nothing at hand vouches for seal {numbers}, which the proof leads to"
    if known:
        last = known[-1].number
        told += f": the anchors end with seal {last} (ask for a proof with --seal {last})"
    return Verdict(False, told, row.position)


def _proved(row: StoredRow, seal: int, by: str) -> Verdict:
    how = {"anchor": "is anchored", "signature": "is signed with a key that was given"}[by]
    detail = (
        f"the event at position {row.position} is in the log that seal {seal} commits to, and that "
        f"seal {how}"
    )
    return Verdict(True, detail, row.position, seal, by)

"""Seals written down outside the database, out of reach of a process that can rewrite the log.

An anchor is a line of JSON: number, first, last, hash (hexadecimal), sealedAt, and signature
(base64) with keyId where the seal is signed. Lines stand in order of their numbers.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Protocol

import orjson

from engine.seals.chain import Seal
from engine.seals.signature import PublicKeys, SealKey, read_public_keys, read_seal_key
from infra.errors import OperatorError
from infra.settings.features import SealSettings

CHUNK_BYTES = 64 * 1024


class AnchorsUnusable(OperatorError):
    """The anchors can't be read or written, or what stands there are no anchors."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """What an anchor says of a seal."""

    number: int
    first: int
    last: int
    hash: bytes

    def differs_from(self, seal: Seal) -> bool:
        return (self.first, self.last, self.hash) != (seal.first, seal.last, seal.hash)


class AnchorStore(Protocol):
    """Where anchors are stored. Any method may raise AnchorsUnusable."""

    def last_number(self) -> int:
        """Return the number of the newest anchor, 0 when there is none."""

    def append(self, seals: Sequence[Seal]) -> None:
        """Write down seals that follow the newest anchor; they are safe when this returns."""


@dataclass(frozen=True, slots=True)
class Proofs:
    """The public keys, and the file of anchors, that a verification compares with.

    Where anchors are written it may still be before the first one, and there is no file yet.
    """

    public_keys: PublicKeys | None = None
    anchors: Path | None = None
    before_first: bool = False

    def open_anchors(self) -> Iterator[Anchor] | None:
        """Return the anchors as they are now; to be opened before the log is read.

        Raise AnchorsUnusable.
        """
        if self.anchors is None or (self.before_first and not self.anchors.exists()):
            return None
        return read_anchors(self.anchors)


class FileAnchors:
    """Anchors in a file of its own, appended and synced."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def last_number(self) -> int:
        """Also cuts off a line that a crash left torn."""
        try:
            self.path.touch(0o600)
            with self.path.open("r+b") as file:
                found = last_line(file)
        except OSError as error:
            raise AnchorsUnusable(f"{self.path} can't be used: {error.strerror}") from error
        return _parse(found[1], str(self.path)).number if found else 0

    def append(self, seals: Sequence[Seal]) -> None:
        try:
            with self.path.open("ab") as file:
                file.writelines(anchor_line(seal) for seal in seals)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise AnchorsUnusable(f"{self.path} can't be written: {error.strerror}") from error


def anchor_line(seal: Seal) -> bytes:
    """Return a seal as a line of an anchors' file."""
    record: dict[str, object] = {
        "number": seal.number,
        "first": seal.first,
        "last": seal.last,
        "hash": seal.hash.hex(),
        "sealedAt": seal.sealed_at,
    }
    if seal.signature is not None:
        record |= {"signature": b64encode(seal.signature).decode(), "keyId": seal.key_id}
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def read_anchors(path: Path) -> Iterator[Anchor]:
    """Return the anchors of a file in order; those that are appended later are not read.

    Raise AnchorsUnusable for a line that is none, or that is out of order.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise AnchorsUnusable(f"{path} can't be read: {error.strerror}") from error
    return _lines(path, size)


def _lines(path: Path, size: int) -> Iterator[Anchor]:
    before = 0
    with path.open("rb") as file:
        for at, line in enumerate(file, start=1):
            size -= len(line)
            # The last line may be torn by a crash, or just being written.
            if size < 0 or not line.endswith(b"\n"):
                return
            anchor = _parse(line, f"{path}, line {at},")
            if anchor.number <= before:
                raise AnchorsUnusable(f"{path}, line {at}: anchor {anchor.number} out of order")
            before = anchor.number
            yield anchor


def last_line(file: BufferedRandom) -> tuple[int, bytes] | None:
    """Return where the last whole line begins, and the line; a torn one after it is cut off."""
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


def _parse(line: bytes, where: str) -> Anchor:
    try:
        record = orjson.loads(line)
        number, first, last = (int(record[name]) for name in ("number", "first", "last"))
        return Anchor(number, first, last, bytes.fromhex(record["hash"]))
    except (ValueError, KeyError, TypeError) as error:
        raise AnchorsUnusable(f"{where} is not an anchor: {error!r}") from error


def configured_proofs(settings: SealSettings) -> Proofs:
    """Return what the settings name. Raise KeyUnusable."""
    keys = None
    if settings.public_key_file is not None:
        keys = read_public_keys(settings.public_key_file)
    elif settings.key_file is not None:
        keys = read_seal_key(settings.key_file).public
    return Proofs(keys, settings.anchor, before_first=True)


def configured_key(settings: SealSettings) -> SealKey | None:
    """Return what new seals are signed with. Raise KeyUnusable."""
    return None if settings.key_file is None else read_seal_key(settings.key_file)


def configured_anchors(settings: SealSettings) -> FileAnchors | None:
    """Return where new seals are anchored."""
    return None if settings.anchor is None else FileAnchors(settings.anchor)

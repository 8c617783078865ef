"""What proves a chain from outside the database: signatures over its seals, and anchors.

Who can rewrite the log has neither the private key nor the file of anchors. An anchor is a line of
JSON: number, first, last, hash (hexadecimal), sealedAt, and signature (base64) with keyId where the
seal is signed. Lines stand in order of their numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import BufferedRandom
from pathlib import Path
from typing import NamedTuple

import orjson
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from engine.seals.chain import Seal
from infra.errors import OperatorError
from infra.settings.features import SealSettings

PEM = re.compile(rb"-----BEGIN [A-Z ]+-----.+?-----END [A-Z ]+-----", re.DOTALL)
CHUNK_BYTES = 64 * 1024


class KeyUnusable(OperatorError):
    """A key file that can't be read, or holds another kind of key."""


class AnchorsUnusable(OperatorError):
    """The anchors can't be read or written, or what stands there are no anchors."""


class SealKey:
    """Signs seals."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key_id = key_id(key.public_key())

    @property
    def public(self) -> PublicKeys:
        """What checks its signatures."""
        return PublicKeys([self._key.public_key()])

    def sign(self, seal_hash: bytes) -> bytes:
        """Return 64 bytes over the 32 of a seal's hash."""
        return self._key.sign(seal_hash)


class PublicKeys:
    """The keys that seals may be signed with; more than one after a key was changed."""

    def __init__(self, keys: Iterable[Ed25519PublicKey]) -> None:
        self._keys = {key_id(key): key for key in keys}

    def fault(self, seal_hash: bytes, signature: bytes, name: str | None) -> str | None:
        """Return why a signature proves nothing, None when it is right."""
        key = self._keys.get(name or "")
        if key is None:
            return f"it is signed with the key {name}, not with {' or '.join(self._keys)}"
        try:
            key.verify(signature, seal_hash)
        except InvalidSignature:
            return f"its signature is not the key {name}'s over its hash"
        return None


class Anchor(NamedTuple):
    """What an anchor says of a seal."""

    number: int
    first: int
    last: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Proofs:
    """The public keys, and the file of anchors, that a verification compares with.

    Where anchors are written it may still be before the first one, and there is no file yet.
    """

    public_keys: PublicKeys | None = None
    anchors: Path | None = None
    before_first: bool = False

    def open_anchors(self) -> Iterator[Anchor] | None:
        """Return the anchors as they are now, before the log is read. Raise AnchorsUnusable."""
        if self.anchors is None or (self.before_first and not self.anchors.exists()):
            return None
        return read_anchors(self.anchors)


NO_PROOFS = Proofs()


class FileAnchors:
    """Anchors in a file of its own, appended and synced. Its methods raise AnchorsUnusable."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def last_number(self) -> int:
        """Return the newest anchor's number, or 0; cut off a line that a crash left torn."""
        try:
            self.path.touch(0o600)
            with self.path.open("r+b") as file:
                found = last_line(file)
        except OSError as error:
            raise AnchorsUnusable(f"{self.path} can't be used: {error.strerror}") from error
        return _parse(found[1], str(self.path)).number if found else 0

    def append(self, seals: Iterable[Seal]) -> None:
        """Write down seals that follow the newest anchor; they are safe when this returns."""
        try:
            with self.path.open("ab") as file:
                file.writelines(map(anchor_line, seals))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise AnchorsUnusable(f"{self.path} can't be written: {error.strerror}") from error


def anchor_line(seal: Seal) -> bytes:
    """Return a seal as a line of a file of anchors."""
    record = seal.as_dict()
    del record["previous"], record["leaves"]
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
    size, wanted = file.seek(0, os.SEEK_END), CHUNK_BYTES
    while True:
        start = max(0, size - wanted)
        file.seek(start)
        tail = file.read(size - start)
        end = tail.rfind(b"\n") + 1
        begin = tail.rfind(b"\n", 0, max(0, end - 1)) + 1
        if start == 0 or begin > 0:
            break
        wanted *= 2
    if end < len(tail):
        file.truncate(start + end)
    return (start + begin, tail[begin:end]) if end else None


def _parse(line: bytes, where: str) -> Anchor:
    try:
        record = orjson.loads(line)
        number, first, last = (int(record[name]) for name in ("number", "first", "last"))
        return Anchor(number, first, last, bytes.fromhex(record["hash"]))
    except (ValueError, KeyError, TypeError) as error:
        raise AnchorsUnusable(f"{where} is not an anchor: {error!r}") from error


def key_id(key: Ed25519PublicKey) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the raw public key."""
    return sha256(key.public_bytes_raw()).hexdigest()[:16]


def read_seal_key(path: Path) -> SealKey:
    """Return the private key in a PEM file (`openssl genpkey`). Raise KeyUnusable."""
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUnusable(f"{path} holds no private key in PEM that can be read") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusable(f"{path} holds another kind of key than Ed25519")
    return SealKey(key)


def read_public_keys(path: Path) -> PublicKeys:
    """Return the public keys in a PEM file, one or several. Raise KeyUnusable."""
    try:
        keys = [load_pem_public_key(block) for block in PEM.findall(_read(path))]
    except (ValueError, UnsupportedAlgorithm):
        keys = []
    if not keys:
        raise KeyUnusable(f"{path} holds no public key in PEM that can be read")
    found = [key for key in keys if isinstance(key, Ed25519PublicKey)]
    if len(found) < len(keys):
        raise KeyUnusable(f"{path} holds another kind of key than Ed25519")
    return PublicKeys(found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyUnusable(f"the key file {path} can't be read: {error.strerror}") from error


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

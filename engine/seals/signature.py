"""Ed25519 signatures over seals: a chain that was rewritten without the key is found."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from infra.errors import OperatorError

PEM = re.compile(rb"-----BEGIN [A-Z ]+-----.+?-----END [A-Z ]+-----", re.DOTALL)


class KeyUnusable(OperatorError):
    """A key file that can't be read, or holds another kind of key."""


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
        """64 bytes over the 32 of a seal's hash."""
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


def key_id(key: Ed25519PublicKey) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the raw public key."""
    return sha256(key.public_bytes_raw()).hexdigest()[:16]


def read_seal_key(path: Path) -> SealKey:
    """Return the private key in a PEM file. Raise KeyUnusable.

    `openssl genpkey -algorithm ed25519` makes one.
    """
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyUnusable(f"{path} holds no private key in PEM that can be read") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusable(f"{path} holds another kind of key than Ed25519")
    return SealKey(key)


def read_public_keys(path: Path) -> PublicKeys:
    """Return the public keys in a PEM file, one or several. Raise KeyUnusable."""
    found = []
    for block in PEM.findall(_read(path)):
        try:
            key = load_pem_public_key(block)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyUnusable(f"{path} holds no public key in PEM that can be read") from error
        if not isinstance(key, Ed25519PublicKey):
            raise KeyUnusable(f"{path} holds another kind of key than Ed25519")
        found.append(key)
    if not found:
        raise KeyUnusable(f"{path} holds no public key in PEM that can be read")
    return PublicKeys(found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyUnusable(f"the key file {path} can't be read: {error.strerror}") from error

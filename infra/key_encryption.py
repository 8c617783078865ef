"""What wraps the keys of this installation: a key-encryption key that lies outside the database.

Whoever has the database and not this key can read no text of anybody, and can confirm no name.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from infra.errors import OperatorError

KEY_BYTES = 32
NONCE_BYTES = 12


class KeyEncryptionFailed(OperatorError):
    """The key-encryption key is missing, can't be reached, or is not the one that wrapped."""


class KeyEncryption(Protocol):
    """Wraps and unwraps keys; a value that can be handed to a child process.

    Both raise KeyEncryptionFailed.
    """

    @property
    def name(self) -> str:
        """What is told of the key: where it lies, nothing of itself."""

    def wrap(self, key: bytes) -> bytes:
        """Return the key, encrypted by the newest version of the key-encryption key."""

    def unwrap(self, wrapped: bytes) -> bytes:
        """Return what was wrapped, by whatever version."""

    def make(self) -> None:
        """Make the key-encryption key where there is none; for a database without any keys."""


def encrypt(key: bytes, text: bytes, about: bytes) -> bytes:
    """Return a nonce and the AES-256-GCM cipher text; `about` is bound to it."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, about)


def decrypt(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """Return what was encrypted; raise InvalidTag for another key, other text, or another `about`."""
    return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], about)


class LocalKey:
    """A key that this process itself has."""

    name: str

    def wrap(self, key: bytes) -> bytes:
        return encrypt(self._key(), key, b"")

    def unwrap(self, wrapped: bytes) -> bytes:
        try:
            return decrypt(self._key(), wrapped, b"")
        except InvalidTag as error:
            raise KeyEncryptionFailed(
                f"{self.name} is not the key-encryption key that wrapped this database's keys: "
                "give back the one that did"
            ) from error

    def make(self) -> None:
        """Nothing is made where a key was given."""

    def _key(self) -> bytes:
        raise NotImplementedError


class GivenKey(LocalKey):
    """A key that a setting gives: 64 hexadecimal digits."""

    name = "KEY_ENCRYPTION_KEY"

    def __init__(self, digits: str) -> None:
        self._digits = digits

    def _key(self) -> bytes:
        return _parsed(self._digits, self.name)


class FileKey(LocalKey):
    """A key in a file that its owner alone can read: 64 hexadecimal digits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = str(path)

    def make(self) -> None:
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(KEY_BYTES) + "\n")
                file.flush()
                os.fsync(file.fileno())
            # Never over a key that is there.
            with suppress(FileExistsError):
                os.link(draft, self._path)
        finally:
            draft.unlink()

    def _key(self) -> bytes:
        try:
            return _parsed(self._path.read_text(), self.name)
        except FileNotFoundError:
            raise KeyEncryptionFailed(
                f"the key-encryption key {self.name} is missing, and this database has keys that "
                "it has wrapped: restore the file, or set KEY_ENCRYPTION_KEY"
            ) from None
        except OSError as error:
            raise KeyEncryptionFailed(
                f"the key-encryption key {self.name} can't be read: {error.strerror}"
            ) from error


def _parsed(digits: str, name: str) -> bytes:
    with suppress(ValueError):
        key = bytes.fromhex(digits.strip())
        if len(key) == KEY_BYTES:
            return key
    raise KeyEncryptionFailed(
        f"{name}: a key-encryption key has {2 * KEY_BYTES} hexadecimal digits "
        "(`openssl rand -hex 32` makes one)"
    )

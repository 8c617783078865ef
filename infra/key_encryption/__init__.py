"""What wraps the keys of this installation: a key-encryption key that lies outside the database.

Whoever has the database and not this key can read no text of anybody, and can confirm no name. The
key lies in a file or a setting, or never leaves the service that keeps it: see `vault` and `kms`.
"""

from __future__ import annotations

import os
import secrets
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from tempfile import mkstemp
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from infra.data_folder import key_encryption_key_path
from infra.errors import OperatorError
from infra.settings.adapters import KeySettings

KEY_BYTES = 32
NONCE_BYTES = 12


class KeyEncryptionFailed(OperatorError):
    """The key-encryption key is missing, can't be reached, or is not the one that wrapped."""


class WrongKey(KeyEncryptionFailed):
    """What is to be unwrapped was wrapped by another key-encryption key, or is not there at all."""


class KeyEncryption(Protocol):
    """Wraps and unwraps keys; a value that can be handed to a child process.

    Each answers within seconds, or raises KeyEncryptionFailed with one line for operators.
    """

    @property
    def name(self) -> str:
        """What is told of the key: where it lies, nothing of itself."""

    def wrap(self, key: bytes, purpose: str) -> bytes:
        """Return the key, encrypted by the newest version of the key-encryption key.

        The purpose is bound to it: a key of one can't be put in the place of another.
        """

    def unwrap(self, wrapped: bytes, purpose: str) -> bytes:
        """Return what was wrapped, by whatever version. Raise WrongKey too."""

    def make(self) -> None:
        """Make the key-encryption key where there is none; for a database without any keys."""


def key_encryption_of(settings: KeySettings, data_dir: Path) -> KeyEncryption:
    """Return what the settings choose; where they choose nothing, the key in the data folder."""
    if settings.key_encryption_key is not None:
        variable = settings.variable("key_encryption_key")
        return GivenKey(settings.key_encryption_key.get_secret_value(), variable)
    # Their clients are slow to import, and not needed where the key is at hand.
    if settings.vault_transit_key is not None:
        from infra.key_encryption.vault import VaultKey

        return VaultKey.from_settings(settings)
    if settings.kms_key_id is not None:
        from infra.key_encryption.kms import KmsKey

        return KmsKey(settings.kms_key_id, settings.kms_region, settings.kms_endpoint_url)
    return FileKey(key_encryption_key_path(data_dir.absolute()))


def encrypt(key: bytes, text: bytes, about: bytes) -> bytes:
    """Return a nonce and the AES-256-GCM cipher text; `about` is bound to it."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, about)


def decrypt(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """Return what was encrypted; raise InvalidTag for another key, text or `about`."""
    return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], about)


class LocalKey(ABC):
    """A key that this process itself has."""

    name: str

    def wrap(self, key: bytes, purpose: str) -> bytes:
        return encrypt(self._key(), key, purpose.encode())

    def unwrap(self, wrapped: bytes, purpose: str) -> bytes:
        try:
            return decrypt(self._key(), wrapped, purpose.encode())
        except (InvalidTag, ValueError) as error:
            raise WrongKey(f"{self.name} is another key-encryption key") from error

    @abstractmethod
    def _key(self) -> bytes:
        """Return the key itself."""


class GivenKey(LocalKey):
    """A key that a setting gives: 64 hexadecimal digits."""

    def __init__(self, digits: str, name: str = "KEY_ENCRYPTION_KEY") -> None:
        self._digits = digits
        self.name = name

    def make(self) -> None:
        """Nothing is made where a key was given."""

    def _key(self) -> bytes:
        return _parsed(self._digits, self.name)


class FileKey(LocalKey):
    """A key in a file that its owner alone can read: 64 hexadecimal digits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = str(path)

    def make(self) -> None:
        try:
            # Its owner alone can read what this makes.
            descriptor, draft = mkstemp(prefix=f"{self._path.name}.", dir=self._path.parent)
        except OSError as error:
            raise KeyEncryptionFailed(
                f"the key-encryption key {self.name} can't be made: {error.strerror}"
            ) from error
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(KEY_BYTES) + "\n")
                file.flush()
                os.fsync(file.fileno())
            # Never over a key that is there.
            with suppress(FileExistsError):
                os.link(draft, self._path)
        finally:
            Path(draft).unlink()
        _sync_folder(self._path.parent)

    def _key(self) -> bytes:
        try:
            return _parsed(self._path.read_text(), self.name)
        except FileNotFoundError:
            raise WrongKey(f"the key-encryption key {self.name} is missing") from None
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise KeyEncryptionFailed(
                f"the key-encryption key {self.name} can't be read: {reason}"
            ) from error


def _sync_folder(folder: Path) -> None:
    """Have a crash of the machine forget no name that was made there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parsed(digits: str, name: str) -> bytes:
    with suppress(ValueError):
        key = bytes.fromhex(digits.strip())
        if len(key) == KEY_BYTES:
            return key
    raise KeyEncryptionFailed(
        f"{name}: a key-encryption key has {2 * KEY_BYTES} hexadecimal digits "
        "(`openssl rand -hex 32` makes one)"
    )

"""What wraps the keys of this installation: a key-encryption key that lies outside the database.

Whoever has the database and not this key can read no text of anybody, and can confirm no name. The
key lies in a file or a setting, or never leaves the service that keeps it: Vault, or AWS KMS. Their
clients are slow to import, and not needed where the key is at hand.
"""

from __future__ import annotations

import os
import secrets
import ssl
from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkstemp
from typing import TYPE_CHECKING, Any, Protocol, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from infra.data_folder import key_encryption_key_path
from infra.errors import OperatorError
from infra.settings.adapters import KeySettings

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from httpx import Response

KEY_BYTES = 32
NONCE_BYTES = 12

VAULT_CONNECT_SECONDS, VAULT_ANSWER_SECONDS = 3.0, 5.0
VAULT_PREFIX = b"vault:"
"""What every cipher text of the transit engine begins with."""
# What Vault says, with 400, of a cipher text that this key has not made.
NOT_OF_VAULT = ("message authentication failed", "invalid ciphertext", "encryption key not found")

KMS_CONNECT_SECONDS, KMS_ANSWER_SECONDS, KMS_ATTEMPTS = 2.0, 3.0, 2
NOT_OF_KMS = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
KMS_REMEDIES = {
    "AccessDeniedException": "let its policy allow kms:Encrypt and kms:Decrypt",
    "NotFoundException": "there is no such key: see KMS_KEY_ID and KMS_REGION",
    "DisabledException": "enable the key",
    "KMSInvalidStateException": "see the state of the key",
    "UnrecognizedClientException": "see the credentials of AWS",
    "InvalidSignatureException": "see the credentials of AWS, and this machine's clock",
    "ExpiredTokenException": "renew the credentials of AWS",
}


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
    if settings.vault_transit_key is not None:
        return VaultKey.from_settings(settings)
    if settings.kms_key_id is not None:
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


@dataclass(frozen=True, slots=True)
class VaultKey:
    """A key in the transit engine of HashiCorp Vault, or of OpenBao, of the type aes256-gcm96.

    Vault rotates it, and `backlot keys rewrap` follows. The protocol (`encrypt`, `decrypt`):
    https://developer.hashicorp.com/vault/api-docs/secret/transit
    """

    address: str
    token: str = field(repr=False)
    path: str
    namespace: str | None = None
    ca_file: Path | None = None

    @classmethod
    def from_settings(cls, settings: KeySettings) -> Self:
        """Return the key that the settings name; they name all that it takes."""
        token = settings.vault_token.get_secret_value() if settings.vault_token else ""
        return cls(
            settings.vault_addr or "",
            token,
            settings.vault_transit_key or "",
            settings.vault_namespace,
            settings.vault_cacert,
        )

    @property
    def name(self) -> str:
        return f"vault:{self.path}"

    def wrap(self, key: bytes, purpose: str) -> bytes:
        given = {"plaintext": _base64(key), "associated_data": _base64(purpose.encode())}
        return str(self._ask("encrypt", given, "ciphertext")).encode()

    def unwrap(self, wrapped: bytes, purpose: str) -> bytes:
        if not wrapped.startswith(VAULT_PREFIX):
            raise WrongKey(f"the transit key {self.path} of Vault has not wrapped this")
        about = _base64(purpose.encode())
        given = {"ciphertext": wrapped.decode(errors="replace"), "associated_data": about}
        return b64decode(str(self._ask("decrypt", given, "plaintext")))

    def make(self) -> None:
        """Vault's operators make it."""

    def _ask(self, what: str, given: dict[str, str], wanted: str) -> Any:
        import httpx

        mount, _, key = self.path.rpartition("/")
        url = f"{self.address}/v1/{mount or 'transit'}/{what}/{key}"
        headers = {"X-Vault-Token": self.token, "X-Vault-Request": "true"}
        if self.namespace is not None:
            headers["X-Vault-Namespace"] = self.namespace
        times = httpx.Timeout(VAULT_ANSWER_SECONDS, connect=VAULT_CONNECT_SECONDS)
        try:
            trust: Any = True
            if self.ca_file is not None:
                trust = ssl.create_default_context(cafile=self.ca_file)
            answer = httpx.post(url, json=given, headers=headers, timeout=times, verify=trust)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            told = str(error) or type(error).__name__
            raise KeyEncryptionFailed(
                f"Vault at {self.address} does not answer ({told}): start it, or see VAULT_ADDR"
            ) from error
        if answer.status_code != httpx.codes.OK:
            raise self._refusal(answer)
        try:
            return answer.json()["data"][wanted]
        except (ValueError, LookupError, TypeError) as error:
            raise KeyEncryptionFailed(
                f"what answers at {self.address} is no Vault: see VAULT_ADDR"
            ) from error

    def _refusal(self, answer: Response) -> KeyEncryptionFailed:
        from httpx import codes

        told = _told(answer)
        status = answer.status_code
        if status == codes.BAD_REQUEST and any(each in told for each in NOT_OF_VAULT):
            return WrongKey(f"the transit key {self.path} of Vault has not wrapped this")
        remedy = "see its log"
        if status in (codes.UNAUTHORIZED, codes.FORBIDDEN):
            remedy = f"see VAULT_TOKEN, and whether its policy lets it use {self.path}"
        elif status == codes.NOT_FOUND:
            remedy = "see VAULT_TRANSIT_KEY and VAULT_NAMESPACE"
        return KeyEncryptionFailed(
            f"Vault at {self.address} refuses ({status}{told and f', {told}'}): {remedy}"
        )


def _told(answer: Response) -> str:
    """Return what Vault says is wrong, in one line; nothing where that can't be read."""
    try:
        return " ".join("; ".join(answer.json()["errors"]).split())
    except (ValueError, LookupError, TypeError):
        return ""


def _base64(value: bytes) -> str:
    return b64encode(value).decode()


@dataclass(frozen=True, slots=True)
class KmsKey:
    """A symmetric key in the Key Management Service of AWS, by its id, its ARN or an alias.

    AWS rotates what is behind it. Credentials are found as AWS's own programs find them: in the
    environment, in its files, by the role of the machine.
    """

    key_id: str
    region: str | None = None
    endpoint_url: str | None = None

    @property
    def name(self) -> str:
        return f"kms:{self.key_id}"

    def wrap(self, key: bytes, purpose: str) -> bytes:
        given = {"Plaintext": key, "EncryptionContext": _about(purpose)}
        return self._ask("encrypt", "CiphertextBlob", **given)

    def unwrap(self, wrapped: bytes, purpose: str) -> bytes:
        given = {"CiphertextBlob": wrapped, "EncryptionContext": _about(purpose)}
        return self._ask("decrypt", "Plaintext", **given)

    def make(self) -> None:
        """Operators of AWS make it."""

    def _ask(self, what: str, wanted: str, **given: Any) -> bytes:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            client = boto3.session.Session().client(
                "kms",
                region_name=self.region,
                endpoint_url=self.endpoint_url,
                config=Config(
                    connect_timeout=KMS_CONNECT_SECONDS,
                    read_timeout=KMS_ANSWER_SECONDS,
                    retries={"total_max_attempts": KMS_ATTEMPTS, "mode": "standard"},
                ),
            )
            return bytes(getattr(client, what)(KeyId=self.key_id, **given)[wanted])
        except ClientError as error:
            raise self._refusal(error) from error
        except (BotoCoreError, ValueError, LookupError) as error:
            told = " ".join(str(error).split())
            raise KeyEncryptionFailed(
                f"KMS can't be asked ({told}): see KMS_REGION, KMS_ENDPOINT_URL and the "
                "credentials of AWS"
            ) from error

    def _refusal(self, error: ClientError) -> KeyEncryptionFailed:
        code = error.response.get("Error", {}).get("Code", "")
        if code in NOT_OF_KMS:
            return WrongKey(f"the key {self.key_id} of KMS has not wrapped this")
        told, remedy = " ".join(str(error).split()), KMS_REMEDIES.get(code, "see KMS_KEY_ID")
        return KeyEncryptionFailed(f"KMS refuses the key {self.key_id} ({told}): {remedy}")


def _about(purpose: str) -> dict[str, str]:
    return {"application": "backlot", "purpose": purpose}

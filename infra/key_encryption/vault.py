"""A key-encryption key in the transit engine of HashiCorp Vault, or of OpenBao.

The protocol: https://developer.hashicorp.com/vault/api-docs/secret/transit (`encrypt`, `decrypt`).
"""

from __future__ import annotations

import ssl
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from infra.key_encryption import KeyEncryptionFailed, WrongKey
from infra.settings.adapters import KeySettings

CONNECT_SECONDS, ANSWER_SECONDS = 3.0, 5.0
PREFIX = b"vault:"
"""What every cipher text of the transit engine begins with."""
# What Vault says, with 400, of a cipher text that this key has not made.
NOT_ITS_OWN = ("message authentication failed", "invalid ciphertext", "encryption key not found")


@dataclass(frozen=True, slots=True)
class VaultKey:
    """A key of the type aes256-gcm96; Vault rotates it, and `backlot keys rewrap` follows."""

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
        if not wrapped.startswith(PREFIX):
            raise WrongKey(f"the transit key {self.path} of Vault has not wrapped this")
        about = _base64(purpose.encode())
        given = {"ciphertext": wrapped.decode(errors="replace"), "associated_data": about}
        return b64decode(str(self._ask("decrypt", given, "plaintext")))

    def make(self) -> None:
        """Vault's operators make it."""

    def _ask(self, what: str, given: dict[str, str], wanted: str) -> Any:
        mount, _, key = self.path.rpartition("/")
        url = f"{self.address}/v1/{mount or 'transit'}/{what}/{key}"
        headers = {"X-Vault-Token": self.token, "X-Vault-Request": "true"}
        if self.namespace is not None:
            headers["X-Vault-Namespace"] = self.namespace
        times = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
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

    def _refusal(self, answer: httpx.Response) -> KeyEncryptionFailed:
        told = _told(answer)
        status = answer.status_code
        if status == httpx.codes.BAD_REQUEST and any(each in told for each in NOT_ITS_OWN):
            return WrongKey(f"the transit key {self.path} of Vault has not wrapped this")
        remedy = "see its log"
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            remedy = f"see VAULT_TOKEN, and whether its policy lets it use {self.path}"
        elif status == httpx.codes.NOT_FOUND:
            remedy = "see VAULT_TRANSIT_KEY and VAULT_NAMESPACE"
        return KeyEncryptionFailed(
            f"Vault at {self.address} refuses ({status}{told and f', {told}'}): {remedy}"
        )


def _told(answer: httpx.Response) -> str:
    """Return what Vault says is wrong, in one line; nothing where that can't be read."""
    try:
        return " ".join("; ".join(answer.json()["errors"]).split())
    except (ValueError, LookupError, TypeError):
        return ""


def _base64(value: bytes) -> str:
    return b64encode(value).decode()

"""A key-encryption key in the Key Management Service of AWS, or in what speaks like it.

Credentials are found as AWS's own programs find them: in the environment, in its files, by the role
of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import boto3
from botocore import exceptions
from botocore.config import Config

from infra.key_encryption import KeyEncryptionFailed, WrongKey

CONNECT_SECONDS, ANSWER_SECONDS, ATTEMPTS = 2.0, 3.0, 2
NOT_ITS_OWN = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})
REMEDIES = {
    "AccessDeniedException": "let its policy allow kms:Encrypt and kms:Decrypt",
    "NotFoundException": "there is no such key: see KMS_KEY_ID and KMS_REGION",
    "DisabledException": "enable the key",
    "KMSInvalidStateException": "see the state of the key",
    "UnrecognizedClientException": "see the credentials of AWS",
    "InvalidSignatureException": "see the credentials of AWS, and this machine's clock",
    "ExpiredTokenException": "renew the credentials of AWS",
}


@dataclass(frozen=True, slots=True)
class KmsKey:
    """A symmetric key, by its id, its ARN or an alias; AWS rotates what is behind it."""

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
        try:
            client = boto3.session.Session().client(
                "kms",
                region_name=self.region,
                endpoint_url=self.endpoint_url,
                config=Config(
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=ANSWER_SECONDS,
                    retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
                ),
            )
            return bytes(getattr(client, what)(KeyId=self.key_id, **given)[wanted])
        except exceptions.ClientError as error:
            raise self._refusal(error) from error
        except (exceptions.BotoCoreError, ValueError, LookupError) as error:
            told = " ".join(str(error).split())
            raise KeyEncryptionFailed(
                f"KMS can't be asked ({told}): see KMS_REGION, KMS_ENDPOINT_URL and the "
                "credentials of AWS"
            ) from error

    def _refusal(self, error: exceptions.ClientError) -> KeyEncryptionFailed:
        code = error.response.get("Error", {}).get("Code", "")
        if code in NOT_ITS_OWN:
            return WrongKey(f"the key {self.key_id} of KMS has not wrapped this")
        told, remedy = " ".join(str(error).split()), REMEDIES.get(code, "see KMS_KEY_ID")
        return KeyEncryptionFailed(f"KMS refuses the key {self.key_id} ({told}): {remedy}")


def _about(purpose: str) -> dict[str, str]:
    return {"application": "backlot", "purpose": purpose}

"""What S3's answers mean: which object stands, which parts are wrong, what an operator is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from botocore import exceptions

from infra.objects.port import (
    PART_ETAG,
    ObjectStoreUnavailable,
    Part,
    PartMismatch,
    PartRef,
    StoredObject,
    bare_etag,
    multipart_etag,
)

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import HeadObjectOutputTypeDef

MIN_PART_BYTES = 5 * 1024 * 1024
S3Error = (exceptions.ClientError, exceptions.BotoCoreError)

_NO_CREDENTIALS = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
)
_UNREACHABLE = (
    exceptions.ConnectionError,
    exceptions.ConnectionClosedError,
    exceptions.ReadTimeoutError,
)
# HEAD answers have no body to name the error in: there, the status is the code.
_REMEDIES = {
    "404": "there is no such bucket: make it, or set S3_BUCKET to another",
    "NoSuchBucket": "there is no such bucket: make it, or set S3_BUCKET to another",
    "301": "it lies in another region: set S3_REGION",
    "PermanentRedirect": "it lies in another region: set S3_REGION",
    "AuthorizationHeaderMalformed": "it lies in another region: set S3_REGION",
    "403": "access is refused: check the S3 credentials and what they are allowed",
    "AccessDenied": "access is refused: check what the S3 credentials are allowed",
    "InvalidAccessKeyId": "there is no such key: check S3_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the signature is refused: check S3_SECRET_ACCESS_KEY",
    "ExpiredToken": "the S3 credentials have expired: renew them",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
}


def code_of(error: Exception) -> str:
    """S3's own code for what it refused, the status where it gave none; '' for other failures."""
    if not isinstance(error, exceptions.ClientError):
        return ""
    return error.response.get("Error", {}).get("Code", "")


def unavailable(error: Exception, bucket: str, endpoint: str) -> ObjectStoreUnavailable:
    """The port's error, its cause being one line that tells an operator what to do."""
    where = f"The S3 bucket {bucket} at {endpoint} can't be used"
    return ObjectStoreUnavailable(f"{where}: {_reason(error)}.")


def _reason(error: Exception) -> str:
    if isinstance(error, _NO_CREDENTIALS):
        return "there are no credentials: set S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY"
    if isinstance(error, exceptions.SSLError):
        return f"its certificate is refused: {_one_line(error)}"
    if isinstance(error, _UNREACHABLE):
        return "it does not answer: check S3_ENDPOINT_URL, the network and the store"
    return _REMEDIES.get(code_of(error)) or _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def stored_object(key: str, found: HeadObjectOutputTypeDef) -> StoredObject:
    """What HEAD tells, as the port tells it."""
    return StoredObject(key, found["ContentLength"], bare_etag(found["ETag"]))


def is_made_of(found: HeadObjectOutputTypeDef, refs: Sequence[PartRef]) -> bool:
    """By ETag; where S3 makes ETags that can't be computed, by the number of parts in it."""
    etag = bare_etag(found["ETag"])
    secret = found.get("ServerSideEncryption", "").startswith("aws:")
    secret = secret or "SSECustomerAlgorithm" in found
    if secret or not all(PART_ETAG.fullmatch(ref.etag) for ref in refs):
        return etag.endswith(f"-{len(refs)}")
    return etag == multipart_etag(refs)


def refuse_mismatch(refs: Sequence[PartRef], arrived: Sequence[Part], code: str) -> None:
    """Raise PartMismatch for what S3 refused without saying which parts it meant."""
    held = {part.number: part for part in arrived}
    missing = [ref.number for ref in refs if ref.number not in held]
    wrong = [r.number for r in refs if r.number in held and held[r.number].etag != r.etag]
    if code == "EntityTooSmall":
        named = [held[ref.number] for ref in refs[:-1] if ref.number in held]
        wrong += [part.number for part in named if part.size < MIN_PART_BYTES]
    if missing or wrong:
        raise PartMismatch(missing, sorted(set(wrong)))

"""Clients of one S3 bucket: credentials, addresses, signed URLs, and what S3's errors mean."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import quote, urlsplit

import boto3
from botocore import exceptions
from botocore.config import Config

from infra.errors import OperatorError
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
from infra.settings import MIN_S3_PART_BYTES
from infra.settings.adapters import ObjectSettings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import HeadObjectOutputTypeDef

ALGORITHM = "AWS4-HMAC-SHA256"

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

THREADS = 32
DEFAULT_REGION = "us-east-1"
USUAL_PORTS = {"http": 80, "https": 443}


class AccessKeys(NamedTuple):
    """Credentials of one moment; `token` comes with temporary ones."""

    access_key: str
    secret_key: str
    token: str | None = None


@dataclass(frozen=True, slots=True)
class S3UrlSigner:
    """Signs for one bucket.

    `bucket_url` is the bucket as clients reach it, path-style or by host name, without a slash at
    its end.
    """

    bucket_url: str
    region: str

    def sign(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        *,
        headers: Mapping[str, str],
        keys: AccessKeys,
        at: datetime,
        ttl: timedelta,
    ) -> str:
        """Return a URL for one method on `key`; `headers` (lower case) have to be sent as given.

        Algorithm: "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)".
        """
        target = urlsplit(f"{self.bucket_url}/{key}")
        signed = {"host": target.netloc, **headers}
        moment = at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{moment[:8]}/{self.region}/s3/aws4_request"
        claims = {
            "X-Amz-Algorithm": ALGORITHM,
            "X-Amz-Credential": f"{keys.access_key}/{scope}",
            "X-Amz-Date": moment,
            "X-Amz-Expires": str(int(ttl.total_seconds())),
            "X-Amz-SignedHeaders": ";".join(sorted(signed)),
        }
        token = {"X-Amz-Security-Token": keys.token} if keys.token else {}
        full = _encode({**query, **claims, **token})
        digest = _digest(method, target.path, full, signed)
        text = "\n".join((ALGORITHM, moment, scope, digest))
        signature = _mac(_signing_key(keys.secret_key, scope), text).hex()
        return f"{target.geturl()}?{full}&X-Amz-Signature={signature}"


def _digest(method: str, path: str, query: str, headers: Mapping[str, str]) -> str:
    names = sorted(headers)
    lines = [method, path, query, *(f"{name}:{headers[name]}" for name in names)]
    request = "\n".join([*lines, "", ";".join(names), "UNSIGNED-PAYLOAD"])
    return hashlib.sha256(request.encode()).hexdigest()


def _encode(parameters: Mapping[str, str]) -> str:
    pairs = sorted(
        (quote(name, safe=""), quote(text, safe="")) for name, text in parameters.items()
    )
    return "&".join(f"{name}={text}" for name, text in pairs)


def _signing_key(secret: str, scope: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for piece in scope.split("/"):
        key = _mac(key, piece)
    return key


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


def code_of(error: Exception) -> str:
    """S3's own code for what it refused, the status where it gave none; '' for other failures."""
    if not isinstance(error, exceptions.ClientError):
        return ""
    return error.response.get("Error", {}).get("Code", "")


def unavailable(error: Exception, bucket: str, endpoint: str) -> ObjectStoreUnavailable:
    """Return the port's error, its cause being one line that tells an operator what to do."""
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
    """Return what HEAD tells, as the port tells it."""
    return StoredObject(key, found["ContentLength"], bare_etag(found["ETag"]))


def is_made_of(found: HeadObjectOutputTypeDef, refs: Sequence[PartRef]) -> bool:
    """Return whether an object is made of these parts, by its ETag or the number of parts in it."""
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
        wrong += [part.number for part in named if part.size < MIN_S3_PART_BYTES]
    if missing or wrong:
        raise PartMismatch(missing, sorted(set(wrong)))


class S3Misconfigured(OperatorError):
    """The settings name nothing that boto3 could use."""


class S3Session:
    """Makes the clients of one bucket; they all share its credentials."""

    def __init__(self, settings: ObjectSettings) -> None:
        """Raise S3Misconfigured when there are no credentials or no readable configuration.

        What is not set is left to boto3's own configuration.
        """
        self._settings, self.bucket = settings, settings.bucket or ""
        secret = settings.secret_access_key
        try:
            self._session = boto3.session.Session(
                aws_access_key_id=settings.access_key_id,
                aws_secret_access_key=secret.get_secret_value() if secret else None,
            )
            self.region = settings.region or self._session.region_name or DEFAULT_REGION
            found = self._session.get_credentials()
        except S3Error as error:
            raise S3Misconfigured(f"boto3's configuration is of no use: {error}") from error
        if found is None:
            raise S3Misconfigured(
                "S3_BUCKET is set, but there are no credentials for it: "
                "set S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY"
            )
        self._credentials = found

    def keys(self) -> AccessKeys:
        """Return what to sign with now; temporary credentials are renewed by botocore when due."""
        now = self._credentials.get_frozen_credentials()
        return AccessKeys(now.access_key or "", now.secret_key or "", now.token)

    def client(self, *, connect: float = 3, read: float = 30, attempts: int = 3) -> S3Client:
        """Return a client with these timeouts in seconds for each of its attempts."""
        return self._client(self._settings.endpoint_url, connect, read, attempts)

    def bucket_url(self, *, public: bool) -> str:
        """Return the URL of the bucket, for clients if `public`: botocore chooses host and path.

        The host is written as clients send it, since it is signed: small, without a usual port.
        """
        endpoint = (public and self._settings.public_endpoint_url) or self._settings.endpoint_url
        client = self._client(endpoint, 1, 1, 1)
        parameters = {"Bucket": self.bucket, "Key": "key"}
        url: str = client.generate_presigned_url("get_object", Params=parameters)
        parts = urlsplit(url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        if parts.port not in (None, USUAL_PORTS[parts.scheme]):
            host = f"{host}:{parts.port}"
        return f"{parts.scheme}://{host}{parts.path.removesuffix('/key')}"

    def _addressing_style(self, endpoint_url: str | None) -> Literal["path", "virtual"]:
        """Decided here: left to botocore, URLs of AWS would lead past the bucket's region."""
        style = self._settings.addressing_style
        if style != "auto":
            return style
        # A dot in the name would not fit AWS's certificate.
        return "virtual" if endpoint_url is None and "." not in self.bucket else "path"

    def _client(
        self, endpoint_url: str | None, connect: float, read: float, attempts: int
    ) -> S3Client:
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": self._addressing_style(endpoint_url)},
            connect_timeout=connect,
            read_timeout=read,
            retries={"mode": "standard", "total_max_attempts": attempts},
            max_pool_connections=THREADS,
            # The checksums that newer SDKs add are refused by many stores other than AWS.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return self._session.client(
            "s3", region_name=self.region, endpoint_url=endpoint_url, config=config
        )

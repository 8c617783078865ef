"""The object store of the production shape: one bucket of S3, or of what speaks like it.

Bytes go between clients and the store by presigned URLs; only control passes through here.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, reduce
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import boto3
from botocore import exceptions, session
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from botocore.loaders import create_loader

from infra.errors import OperatorError
from infra.objects.fragments import S3Writer, report_unusable
from infra.objects.port import (
    BYTES,
    KEY,
    OPAQUE_ETAG,
    PART_ETAG,
    NoSuchUpload,
    ObjectStoreUnavailable,
    OpenUpload,
    Part,
    PartMismatch,
    PartRef,
    SignedUrl,
    StoredObject,
    bare_etag,
    check_key,
    check_part,
    disposition,
    multipart_etag,
    now,
    ordered_refs,
    safe_content_type,
    safe_filename,
)
from infra.settings import MIN_S3_PART_BYTES
from infra.settings.adapters import ObjectSettings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import HeadObjectOutputTypeDef, PartTypeDef

# How long a call may wait for a thread, in seconds; longer means that the store hangs.
PATIENCE = 5.0
# An empty id would turn aborting an upload into deleting the object.
UPLOAD_ID = re.compile(r"[!-~]{1,2048}")
PAGE = 1000
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
_loader = cache(create_loader)  # It keeps what services are like; S3's takes long to read.

T = TypeVar("T")


class S3Store:
    """An ObjectStore whose URLs lead to S3; Backlot moves no bytes."""

    def __init__(
        self,
        settings: ObjectSettings,
        clock: Callable[[], datetime] = now,
        *,
        for_clients: bool = True,
    ) -> None:
        """Raise S3Misconfigured without credentials; call nobody. `close` ends its threads.

        Its URLs are for clients, or else for this program itself, which may reach the store
        elsewhere.
        """
        bucket = S3Session(settings)
        self._bucket, self._ttl, self._clock = bucket.bucket, settings.url_ttl, clock
        self._client = bucket.client(settings.endpoint_url)
        # Readiness is asked every few seconds and must not wait for retries.
        self._impatient = bucket.client(settings.endpoint_url, connect=1.5, read=1.5, attempts=1)
        self._endpoint = self._client.meta.endpoint_url
        self._keys = bucket.keys
        self._signer = S3UrlSigner(bucket.bucket_url(public=for_clients), bucket.region)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")
        self.writer = S3Writer(self._client, self._bucket, self._here)

    @property
    def url(self) -> str:
        """Where the bucket lies, for an operator; it holds no secret."""
        return f"{self._endpoint}/{self._bucket}"

    def close(self) -> None:
        """Take no more calls; those under way end by their timeouts."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.writer.close()

    def probe(self) -> None:
        """Ask for the bucket, with retries, in this thread. Raise ObjectStoreUnavailable."""
        self._here(self._look_at_bucket, self._client)

    async def check(self) -> None:
        await self._run(self._look_at_bucket, self._impatient)

    async def begin(self, key: str) -> str:
        return await self._run(self._begin, check_key(key))

    def part_url(
        self, key: str, store_upload_id: str, number: int, size: int, base_url: str
    ) -> SignedUrl:
        """Return a URL that takes no body of another size: Content-Length is signed."""
        check_part(number, size)
        query = {"partNumber": str(number), "uploadId": store_upload_id}
        return self._sign("PUT", key, query, {"content-length": str(size)})

    def get_url(self, key: str, content_type: str, filename: str, base_url: str) -> SignedUrl:
        name = quote(safe_filename(filename), safe="", errors="replace")
        query = {
            "response-content-type": safe_content_type(content_type),
            "response-content-disposition": f"{disposition(content_type)}; filename*=UTF-8''{name}",
        }
        return self._sign("GET", key, query, {})

    async def list_parts(self, key: str, store_upload_id: str) -> list[Part]:
        return await self._run(self._list_parts, check_key(key), _known(store_upload_id))

    async def last_arrival(self, key: str, store_upload_id: str) -> datetime | None:
        return await self._run(self._last_arrival, check_key(key), _known(store_upload_id))

    async def list_uploads(self, older_than: datetime) -> list[OpenUpload]:
        """MinIO tells of none: it lists only the uploads of one exactly named key."""
        return await self._run(self._list_uploads, older_than)

    async def complete(
        self, key: str, store_upload_id: str, parts: Sequence[PartRef]
    ) -> StoredObject:
        refs = ordered_refs(parts, OPAQUE_ETAG)
        return await self._run(self._complete, check_key(key), _known(store_upload_id), refs)

    async def abort(self, key: str, store_upload_id: str) -> None:
        with suppress(NoSuchUpload):
            await self._run(self._abort, check_key(key), _known(store_upload_id))

    async def head(self, key: str) -> StoredObject | None:
        found = await self._run(self._head, check_key(key))
        return stored_object(key, found) if found else None

    async def delete(self, key: str) -> None:
        await self._run(self._delete, check_key(key))

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        """Do blocking work in a thread. Raise NoSuchUpload, and ObjectStoreUnavailable, logged."""
        asked = monotonic()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._in_time, asked, work, *args)
        except ObjectStoreUnavailable as error:
            report_unusable(work, error)
            raise

    def _here(self, work: Callable[..., T], *args: object) -> T:
        """Do the work in this thread. Raise NoSuchUpload and ObjectStoreUnavailable."""
        try:
            return work(*args)
        except S3Error as error:
            if code_of(error) == "NoSuchUpload":
                raise NoSuchUpload from error
            raise unavailable(error, self._bucket, self._endpoint) from error

    def _in_time(self, asked: float, work: Callable[..., T], *args: object) -> T:
        # A store that hangs would otherwise gather a queue that outlives every caller.
        if monotonic() - asked > PATIENCE:
            raise ObjectStoreUnavailable(
                f"All {THREADS} calls to {self._endpoint} hung for {PATIENCE:g} seconds."
            )
        return self._here(work, *args)

    def _sign(
        self, method: str, key: str, query: dict[str, str], headers: dict[str, str]
    ) -> SignedUrl:
        at = self._clock().astimezone(UTC).replace(microsecond=0)
        url = self._signer.sign(
            method, check_key(key), query, headers=headers, keys=self._keys(), at=at, ttl=self._ttl
        )
        return SignedUrl(url, at + self._ttl)

    def _look_at_bucket(self, client: S3Client) -> None:
        client.head_bucket(Bucket=self._bucket)

    def _begin(self, key: str) -> str:
        # For browsers that are sent here without our URLs, such as by a CDN.
        safe: Any = {"ContentType": BYTES, "ContentDisposition": "attachment"}
        begun = self._client.create_multipart_upload(Bucket=self._bucket, Key=key, **safe)
        return begun["UploadId"]

    def _list_parts(self, key: str, upload_id: str) -> list[Part]:
        return [
            Part(part["PartNumber"], bare_etag(part["ETag"]), part["Size"])
            for part in self._arrived(key, upload_id)
        ]

    def _last_arrival(self, key: str, upload_id: str) -> datetime | None:
        times = (part["LastModified"] for part in self._arrived(key, upload_id))
        return max(times, default=None)

    def _arrived(self, key: str, upload_id: str) -> Iterator[PartTypeDef]:
        pages = self._client.get_paginator("list_parts").paginate(
            Bucket=self._bucket, Key=key, UploadId=upload_id, PaginationConfig={"PageSize": PAGE}
        )
        for page in pages:
            yield from page.get("Parts", [])

    def _list_uploads(self, older_than: datetime) -> list[OpenUpload]:
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._bucket, Prefix="videos/", PaginationConfig={"PageSize": PAGE}
        )
        return [
            OpenUpload(upload["Key"], upload["UploadId"])
            for page in pages
            for upload in page.get("Uploads", [])
            if upload["Initiated"] < older_than and KEY.fullmatch(upload["Key"])
        ]

    def _complete(self, key: str, upload_id: str, refs: list[PartRef]) -> StoredObject:
        try:
            self._client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Parts": [{"PartNumber": r.number, "ETag": r.etag} for r in refs]},
            )
        except S3Error as error:
            return self._after_failure(error, key, upload_id, refs)
        found = self._head(key)
        if found is None:
            # Aborted and deleted within this moment.
            raise NoSuchUpload
        return stored_object(key, found)

    def _after_failure(
        self, error: Exception, key: str, upload_id: str, refs: list[PartRef]
    ) -> StoredObject:
        """Look what stands: the answer may have been lost, or another completion was first.

        In this order: an upload that is seen gone has its object by then, or never will.
        """
        arrived = None
        try:
            arrived = self._list_parts(key, upload_id)
        except S3Error as gone:
            if code_of(gone) != "NoSuchUpload":
                raise
        found = self._head(key)
        if found is not None:
            if not is_made_of(found, refs):
                raise PartMismatch(wrong=[ref.number for ref in refs]) from error
            return stored_object(key, found)
        if arrived is None:
            raise NoSuchUpload from error
        refuse_mismatch(refs, arrived, code_of(error))
        raise error

    def _abort(self, key: str, upload_id: str) -> None:
        self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)

    def _head(self, key: str) -> HeadObjectOutputTypeDef | None:
        try:
            return self._client.head_object(Bucket=self._bucket, Key=key)
        except S3Error as error:
            if code_of(error) not in ("404", "NoSuchKey"):
                raise
            return None

    def _delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=key)


def _known(upload_id: str) -> str:
    if not UPLOAD_ID.fullmatch(upload_id):
        raise NoSuchUpload
    return upload_id


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
        keys: ReadOnlyCredentials,
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
        full = urlencode(sorted({**query, **claims, **token}.items()), safe="", quote_via=quote)
        lines = (f"{name}:{value}" for name, value in sorted(signed.items()))
        names = claims["X-Amz-SignedHeaders"]
        request = "\n".join((method, target.path, full, *lines, "", names, "UNSIGNED-PAYLOAD"))
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = "\n".join((ALGORITHM, moment, scope, digest))
        secret = reduce(_mac, scope.split("/"), f"AWS4{keys.secret_key}".encode())
        return f"{target.geturl()}?{full}&X-Amz-Signature={_mac(secret, text).hex()}"


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


def code_of(error: Exception) -> str:
    """Return S3's code for what it refused, the status where it gave none, '' for other errors."""
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
        secret, core = settings.secret_access_key, session.get_session()
        try:
            core.register_component("data_loader", _loader(core.get_config_variable("data_path")))
            self._session = boto3.session.Session(
                aws_access_key_id=settings.access_key_id,
                aws_secret_access_key=secret.get_secret_value() if secret else None,
                botocore_session=core,
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
        # Temporary credentials are renewed by botocore when due.
        self.keys = found.get_frozen_credentials

    def client(
        self, endpoint_url: str | None, *, connect: float = 3, read: float = 30, attempts: int = 3
    ) -> S3Client:
        """Return a client with these timeouts in seconds for each of its attempts."""
        style = self._settings.addressing_style
        if style == "auto":
            # Left to botocore, URLs of AWS would lead past the bucket's region. A dot in the name
            # would not fit AWS's certificate.
            style = "virtual" if endpoint_url is None and "." not in self.bucket else "path"
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": style},
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

    def bucket_url(self, *, public: bool) -> str:
        """Return the URL of the bucket, for clients if `public`: botocore chooses host and path.

        The host is written as clients send it, since it is signed: small, without a usual port.
        """
        endpoint = (public and self._settings.public_endpoint_url) or self._settings.endpoint_url
        parameters = {"Bucket": self.bucket, "Key": "key"}
        url: str = self.client(endpoint).generate_presigned_url("get_object", Params=parameters)
        parts = urlsplit(url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        if parts.port not in (None, USUAL_PORTS[parts.scheme]):
            host = f"{host}:{parts.port}"
        return f"{parts.scheme}://{host}{parts.path.removesuffix('/key')}"

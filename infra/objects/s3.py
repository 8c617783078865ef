"""The object store of the production shape: one bucket of S3, or of what speaks like it.

Bytes go between clients and the store by presigned URLs; only control passes through here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import structlog

from infra.objects.port import (
    KEY,
    OBJECT_STORE_FAILURES,
    OPAQUE_ETAG,
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
    ordered_refs,
    safe_content_type,
    safe_filename,
)
from infra.objects.s3_client import (
    THREADS,
    S3Error,
    S3Session,
    S3UrlSigner,
    code_of,
    is_made_of,
    refuse_mismatch,
    stored_object,
    unavailable,
)
from infra.settings.adapters import ObjectSettings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import HeadObjectOutputTypeDef, PartTypeDef

log = structlog.get_logger(__name__)

# How long a call may wait for a thread, in seconds; longer means that the store hangs.
PATIENCE = 5.0

# An empty id would turn aborting an upload into deleting the object.
UPLOAD_ID = re.compile(r"[!-~]{1,2048}")
PAGE = 1000

T = TypeVar("T")


class S3Calls:
    """Runs calls to one bucket."""

    def __init__(self, bucket: str, endpoint: str) -> None:
        """Both are only for telling an operator what failed."""
        self._bucket, self._endpoint = bucket, endpoint
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")

    def close(self) -> None:
        """Take no more calls; those under way end by their timeouts."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Do blocking work in a thread. Raise NoSuchUpload, and ObjectStoreUnavailable, logged."""
        asked = monotonic()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._in_time, asked, work, *args)
        except ObjectStoreUnavailable as error:
            OBJECT_STORE_FAILURES.inc()
            log.error("s3_unusable", doing=work.__name__.strip("_"), reason=error.cause)
            raise

    def here(self, work: Callable[..., T], *args: object) -> T:
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
        return self.here(work, *args)


class S3Store:
    """An ObjectStore whose URLs lead to S3; Backlot moves no bytes."""

    def __init__(
        self, settings: ObjectSettings, clock: Callable[[], datetime], *, for_clients: bool = True
    ) -> None:
        """Raise S3Misconfigured without credentials; call nobody. `close` ends its threads."""
        session = S3Session(settings)
        self._bucket, self._ttl, self._clock = session.bucket, settings.url_ttl, clock
        self._client = session.client()
        # Readiness is asked every few seconds and must not wait for retries.
        self._impatient = session.client(connect=1.5, read=1.5, attempts=1)
        self._keys = session.keys
        self._signer = S3UrlSigner(session.bucket_url(public=for_clients), session.region)
        self._calls = S3Calls(session.bucket, self._client.meta.endpoint_url)

    @property
    def url(self) -> str:
        """Where the bucket lies, for an operator; it holds no secret."""
        return f"{self._client.meta.endpoint_url}/{self._bucket}"

    def close(self) -> None:
        """Take no more calls; those under way end by their timeouts."""
        self._calls.close()

    def probe(self) -> None:
        """Ask for the bucket, with retries, in this thread. Raise ObjectStoreUnavailable."""
        self._calls.here(self._look_at_bucket, self._client)

    async def check(self) -> None:
        await self._calls.run(self._look_at_bucket, self._impatient)

    async def begin(self, key: str) -> str:
        return await self._calls.run(self._begin, check_key(key))

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
        return await self._calls.run(self._list_parts, check_key(key), _known(store_upload_id))

    async def last_arrival(self, key: str, store_upload_id: str) -> datetime | None:
        return await self._calls.run(self._last_arrival, check_key(key), _known(store_upload_id))

    async def list_uploads(self, older_than: datetime) -> list[OpenUpload]:
        """MinIO tells of none: it lists only the uploads of one exactly named key."""
        return await self._calls.run(self._list_uploads, older_than)

    async def complete(
        self, key: str, store_upload_id: str, parts: Sequence[PartRef]
    ) -> StoredObject:
        refs = ordered_refs(parts, OPAQUE_ETAG)
        return await self._calls.run(self._complete, check_key(key), _known(store_upload_id), refs)

    async def abort(self, key: str, store_upload_id: str) -> None:
        with suppress(NoSuchUpload):
            await self._calls.run(self._abort, check_key(key), _known(store_upload_id))

    async def head(self, key: str) -> StoredObject | None:
        found = await self._calls.run(self._head, check_key(key))
        return stored_object(key, found) if found else None

    async def delete(self, key: str) -> None:
        await self._calls.run(self._delete, check_key(key))

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
        return self._client.create_multipart_upload(Bucket=self._bucket, Key=key)["UploadId"]

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
        arrived = self._parts_if_under_way(key, upload_id)
        found = self._head(key)
        if found is not None:
            if not is_made_of(found, refs):
                raise PartMismatch(wrong=[ref.number for ref in refs]) from error
            return stored_object(key, found)
        if arrived is None:
            raise NoSuchUpload from error
        refuse_mismatch(refs, arrived, code_of(error))
        raise error

    def _parts_if_under_way(self, key: str, upload_id: str) -> list[Part] | None:
        try:
            return self._list_parts(key, upload_id)
        except S3Error as error:
            if code_of(error) != "NoSuchUpload":
                raise
            return None

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


def make_s3(settings: ObjectSettings, *, for_clients: bool = True) -> S3Store:
    """Return the store of the S3_* settings, without a call; raise OperatorError without keys.

    Its URLs are for clients, or else for this program itself, which may reach the store elsewhere.
    `close` it.
    """
    return S3Store(settings, now, for_clients=for_clients)


def now() -> datetime:
    """Return the clock of the stores, in UTC."""
    return datetime.now(UTC)

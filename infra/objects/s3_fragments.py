"""Parts and fragments that the program itself writes into the bucket."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import structlog

from infra.objects.disk import COPY_BYTES
from infra.objects.fragments import AREA, Fragment
from infra.objects.port import (
    OBJECT_STORE_FAILURES,
    ObjectStoreUnavailable,
    Part,
    bare_etag,
    check_key,
    check_part,
)

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import ObjectTypeDef

log = structlog.get_logger(__name__)

# Threads of their own: bytes take longer than control, which must not wait for them.
WRITERS = 8

T = TypeVar("T")


def report_unusable(work: Callable[..., object], error: ObjectStoreUnavailable) -> None:
    """Count and log what the bucket could not do."""
    OBJECT_STORE_FAILURES.inc()
    log.error("s3_unusable", doing=work.__name__.strip("_"), reason=error.cause)


class S3Writer:
    """A PartWriter beside a bucket's parts: an object per fragment, under `fragments/<uuid>/`."""

    def __init__(self, client: S3Client, bucket: str, here: Callable[..., object]) -> None:
        """`here` calls work and translates what S3 refuses; `close` ends the threads."""
        self._client, self._bucket, self._here = client, bucket, here
        self._threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="s3-writes")

    def close(self) -> None:
        """Take no more calls."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def write_part(
        self, key: str, store_upload_id: str, number: int, size: int, source: BinaryIO
    ) -> Part:
        check_part(number, size)
        return await self._run(self._put, check_key(key), store_upload_id, number, size, source)

    async def write_fragment(self, key: str, fragment: Fragment, source: BinaryIO) -> None:
        await self._run(self._write, _name(key, fragment), source)

    async def list_fragments(self, key: str) -> list[Fragment]:
        return [fragment for _, fragment, _ in await self._run(self._list, _prefix(key))]

    async def read_fragment(self, key: str, fragment: Fragment, target: BinaryIO) -> None:
        await self._run(self._read, _name(key, fragment), target)

    async def drop_fragments(self, key: str, fragments: Iterable[Fragment]) -> None:
        await self._run(self._drop, [_name(key, fragment) for fragment in fragments])

    async def last_fragment(self, key: str) -> datetime | None:
        found = await self._run(self._list, _prefix(key))
        return max((time for _, _, time in found), default=None)

    async def sweep_fragments(self, older_than: datetime) -> int:
        return await self._run(self._sweep, older_than)

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        """Do the work in a thread. Raise NoSuchUpload, and ObjectStoreUnavailable, logged."""
        loop = asyncio.get_running_loop()
        try:
            done = await loop.run_in_executor(self._threads, self._here, work, *args)
        except ObjectStoreUnavailable as error:
            report_unusable(work, error)
            raise
        return done  # type: ignore[return-value]  # `here` returns what `work` does

    def _put(
        self, key: str, store_upload_id: str, number: int, size: int, source: BinaryIO
    ) -> Part:
        answer = self._client.upload_part(
            Bucket=self._bucket,
            Key=key,
            UploadId=store_upload_id,
            PartNumber=number,
            Body=source,
        )
        return Part(number, bare_etag(answer["ETag"]), size)

    def _write(self, name: str, source: BinaryIO) -> None:
        self._client.put_object(Bucket=self._bucket, Key=name, Body=source)

    def _read(self, name: str, target: BinaryIO) -> None:
        body = self._client.get_object(Bucket=self._bucket, Key=name)["Body"]
        shutil.copyfileobj(body, target, COPY_BYTES)

    def _list(self, prefix: str) -> list[tuple[str, Fragment, datetime]]:
        return list(self._found(prefix))

    def _drop(self, names: Iterable[str]) -> None:
        # One by one: the call for many needs a checksum that not every store takes.
        for name in names:
            self._client.delete_object(Bucket=self._bucket, Key=name)

    def _sweep(self, older_than: datetime) -> int:
        old = [name for name, _, time in self._found(f"{AREA}/") if time < older_than]
        self._drop(old)
        return len(old)

    def _found(self, prefix: str) -> Iterator[tuple[str, Fragment, datetime]]:
        for listed in self._objects(prefix):
            fragment = Fragment.named(listed["Key"].rpartition("/")[2])
            if fragment is not None:
                yield listed["Key"], fragment, listed["LastModified"]

    def _objects(self, prefix: str) -> Iterator[ObjectTypeDef]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=prefix
        )
        for page in pages:
            yield from page.get("Contents", [])


def _prefix(key: str) -> str:
    return f"{AREA}/{check_key(key).removeprefix('videos/')}/"


def _name(key: str, fragment: Fragment) -> str:
    return f"{_prefix(key)}{fragment.name}"

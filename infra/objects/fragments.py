"""Parts that the program itself receives: whole, or in fragments until the rest has come.

Object stores take whole parts only. What has come of one is kept beside them, so that any process
goes on where another one was cut off.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol, TypeVar

import structlog
from anyio import to_thread

from infra.objects.disk import COPY_BYTES, Disk, sync_folder
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

AREA = "fragments"
FRAGMENT_NAME = re.compile(r"([0-9]{1,5})-([0-9]{1,10})-([0-9]{1,10})")

# Threads of their own: bytes take longer than control, which must not wait for them.
WRITERS = 8

T = TypeVar("T")
PutPart = Callable[[str, str, int, int, AsyncIterator[bytes]], Coroutine[Any, Any, Part]]


class Fragment(NamedTuple):
    """Bytes of part `number` (from 1), the first of them at `start` within the part."""

    number: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """Where within the part the next byte belongs."""
        return self.start + self.size

    @property
    def name(self) -> str:
        """What its file or object is called, in the folder of its upload."""
        return f"{self.number}-{self.start}-{self.size}"

    @classmethod
    def named(cls, name: str) -> Fragment | None:
        """Return the fragment of such a name, or None for any other name."""
        found = FRAGMENT_NAME.fullmatch(name)
        return None if found is None else cls(*map(int, found.groups()))


class PartWriter(Protocol):
    """Parts from files of this program, and fragments of parts by the key of their upload.

    Any method may raise ObjectStoreUnavailable, and InvalidKey for a key of another form. Files
    that are read stand at their beginning; what is written goes where the file stands.
    """

    async def write_part(
        self, key: str, store_upload_id: str, number: int, size: int, source: BinaryIO
    ) -> Part:
        """Keep part `number`, which the whole file of `size` bytes is. Raise NoSuchUpload."""

    async def write_fragment(self, key: str, fragment: Fragment, source: BinaryIO) -> None:
        """Keep a fragment, which the whole file is; it is durable once this returns."""

    async def list_fragments(self, key: str) -> list[Fragment]:
        """Return all fragments of an upload."""

    async def read_fragment(self, key: str, fragment: Fragment, target: BinaryIO) -> None:
        """Write a fragment into the file."""

    async def drop_fragments(self, key: str, fragments: Iterable[Fragment]) -> None:
        """Remove these; those that are gone already are no error."""

    async def last_fragment(self, key: str) -> datetime | None:
        """Return when the latest fragment arrived (UTC), None where there is none."""

    async def sweep_fragments(self, older_than: datetime) -> int:
        """Remove the fragments of all uploads that came before this time; return how many."""


def covering(fragments: Iterable[Fragment], number: int) -> list[Fragment]:
    """Return fragments of a part that cover it from its beginning as far as possible.

    Requests that raced may have left several of the same bytes.
    """
    candidates = [each for each in fragments if each.number == number]
    chosen: list[Fragment] = []
    while True:
        reached = chosen[-1].end if chosen else 0
        further = [each for each in candidates if each.start <= reached < each.end]
        if not further:
            return chosen
        chosen.append(max(further, key=lambda each: each.end))


async def drop_all(writer: PartWriter, key: str) -> None:
    """Remove every fragment of an upload."""
    await writer.drop_fragments(key, await writer.list_fragments(key))


class FolderWriter:
    """A PartWriter beside a folder store: a folder per upload, with a file per fragment."""

    def __init__(self, disk: Disk, put_part: PutPart) -> None:
        self._disk, self._put_part = disk, put_part

    async def write_part(
        self, key: str, store_upload_id: str, number: int, size: int, source: BinaryIO
    ) -> Part:
        return await self._put_part(key, store_upload_id, number, size, _blocks(source))

    async def write_fragment(self, key: str, fragment: Fragment, source: BinaryIO) -> None:
        await self._disk.run(self._write, check_key(key), fragment, source)

    async def list_fragments(self, key: str) -> list[Fragment]:
        return [fragment for fragment, _ in await self._disk.run(self._scan, check_key(key))]

    async def read_fragment(self, key: str, fragment: Fragment, target: BinaryIO) -> None:
        await self._disk.run(self._read, check_key(key), fragment, target)

    async def drop_fragments(self, key: str, fragments: Iterable[Fragment]) -> None:
        await self._disk.run(self._drop, check_key(key), list(fragments))

    async def last_fragment(self, key: str) -> datetime | None:
        times = [time for _, time in await self._disk.run(self._scan, check_key(key))]
        return datetime.fromtimestamp(max(times), UTC) if times else None

    async def sweep_fragments(self, older_than: datetime) -> int:
        return await self._disk.run(self._sweep, older_than.timestamp())

    def _folder(self, key: str) -> Path:
        return self._disk.inside(AREA, key.removeprefix("videos/"))

    def _write(self, key: str, fragment: Fragment, source: BinaryIO) -> None:
        scratch = self._disk.scratch()
        try:
            with scratch.open("xb") as target:
                shutil.copyfileobj(source, target, COPY_BYTES)
                target.flush()
                os.fsync(target.fileno())
            self._disk.area(AREA)
            folder = self._folder(key)
            folder.mkdir(exist_ok=True)
            scratch.rename(folder / fragment.name)
        finally:
            scratch.unlink(missing_ok=True)
        sync_folder(folder)
        sync_folder(folder.parent)

    def _scan(self, key: str) -> list[tuple[Fragment, float]]:
        try:
            return list(_found(self._folder(key)))
        except FileNotFoundError:
            return []

    def _read(self, key: str, fragment: Fragment, target: BinaryIO) -> None:
        with (self._folder(key) / fragment.name).open("rb") as source:
            shutil.copyfileobj(source, target, COPY_BYTES)

    def _drop(self, key: str, fragments: Sequence[Fragment]) -> None:
        folder = self._folder(key)
        for fragment in fragments:
            (folder / fragment.name).unlink(missing_ok=True)
        with suppress(OSError):
            # Another request may have put a fragment there.
            folder.rmdir()

    def _sweep(self, older_than: float) -> int:
        swept = 0
        for folder in list(self._disk.area(AREA).iterdir()):
            key = f"videos/{folder.name}"
            old = [fragment for fragment, time in self._scan(key) if time < older_than]
            if old or not any(folder.iterdir()):
                self._drop(key, old)
            swept += len(old)
        return swept


def _found(folder: Path) -> Iterable[tuple[Fragment, float]]:
    for path in list(folder.iterdir()):
        fragment = Fragment.named(path.name)
        with suppress(FileNotFoundError):
            if fragment is not None:
                yield fragment, path.stat().st_mtime


async def _blocks(source: BinaryIO) -> AsyncIterator[bytes]:
    while block := await to_thread.run_sync(source.read, COPY_BYTES):
        yield block


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

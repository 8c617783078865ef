"""Parts that the program itself receives: whole, or in fragments until the rest has come.

Object stores take whole parts only. What has come of one is kept beside them, so that any process
goes on where another one was cut off.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from anyio import to_thread

from infra.objects.disk import COPY_BYTES, Disk, sync_folder
from infra.objects.port import Part, check_key

AREA = "fragments"
FRAGMENT_NAME = re.compile(r"([0-9]{1,5})-([0-9]{1,10})-([0-9]{1,10})")

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

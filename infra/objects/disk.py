"""The files of the folder store: safe paths, work in threads, parts and their checksums."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog
from anyio import to_thread

from infra.cancellation import to_the_end
from infra.objects.port import (
    ALGORITHMS,
    CONTENT_MD5,
    OBJECT_STORE_FAILURES,
    Checksum,
    ObjectStoreError,
    ObjectStoreUnavailable,
    Part,
)

log = structlog.get_logger(__name__)

COPY_BYTES = 1024 * 1024
KERNEL_COPY_BYTES = 256 * 1024 * 1024
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW

_REMEDIES = {
    errno.ENOSPC: "its disk is full: free some space",
    errno.EDQUOT: "its disk quota is used up: free some space or raise the quota",
    errno.EFBIG: "the file size limit is too low: raise it (`ulimit -f`)",
    errno.EACCES: "it is not writable: check its owner and mode",
    errno.EPERM: "it is not writable: check its owner, mode and attributes",
    errno.EROFS: "its file system is read-only: mount it writable",
    errno.ENOTDIR: "something on its path is not a folder: move that away",
    errno.EEXIST: "something on its path is not a folder: move that away",
    errno.ELOOP: "a symbolic link lies in it: remove the link",
    errno.EMFILE: "too many files are open: raise the limit (`ulimit -n`)",
}
# What the kernel answers when it can't copy between these two files by itself.
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}

BLOCK_BYTES = 1024 * 1024
PART_NAME = re.compile(r"(\d{5})-(\d+)-([0-9a-f]{32})-(\d+)")

T = TypeVar("T")


class Disk:
    """One folder with the sub-folders of the store; all of them on one file system."""

    AREAS = ("uploads", "fragments", "objects/videos", "tmp")

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Do blocking work in a thread. Raise ObjectStoreUnavailable for an OSError."""
        try:
            return await to_thread.run_sync(work, *args)
        except OSError as error:
            reason = _REMEDIES.get(error.errno or 0, str(error))
            OBJECT_STORE_FAILURES.inc()
            log.error("object_folder_unusable", folder=str(self.root), reason=reason)
            cause = f"The object folder {self.root} can't be used: {reason}."
            raise ObjectStoreUnavailable(cause) from error

    def inside(self, *names: str) -> Path:
        """Return the path under the root; raise OSError when a symbolic link leads elsewhere."""
        path = self.root.joinpath(*names)
        if path.resolve() != path:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        return path

    def area(self, name: str) -> Path:
        """Return one of the sub-folders, which is made where it is missing. Raise OSError."""
        folder = self.inside(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def prepare(self) -> None:
        """Make the sub-folders and empty `tmp/`."""
        for area in self.AREAS:
            sync_folder(self.area(area).parent)
        for leftover in list(self.inside("tmp").iterdir()):
            _remove(leftover)
        sync_folder(self.root)

    def probe(self) -> None:
        """Write and remove a small file in every sub-folder. Raise OSError."""
        for area in self.AREAS:
            path = self.area(area) / f".probe-{secrets.token_hex(8)}"
            try:
                path.write_bytes(bytes(4096))
            finally:
                path.unlink(missing_ok=True)

    def scratch(self) -> Path:
        """Return a new name in `tmp/`; nothing is there yet."""
        return self.area("tmp") / secrets.token_hex(16)

    def discard(self, folder: Path) -> None:
        """Make `folder` vanish at once, then remove what was in it; nothing if it isn't there."""
        grave = self.scratch()
        try:
            folder.rename(grave)
        except FileNotFoundError:
            return
        sync_folder(folder.parent)
        _remove(grave)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make names that were just put into `folder`, or taken from it, survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """Write everything, in as many steps as the kernel wants."""
    written = os.write(descriptor, content)
    while written < len(content):
        written += os.write(descriptor, memoryview(content)[written:])


def start_writeback(descriptor: int, offset: int, size: int) -> None:
    """Let the disk begin with these bytes, just written; where it can't be asked, do nothing."""
    if sys.platform == "linux" and size:
        # To drop what is dirty, Linux starts to write it, and keeps it until that is done.
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


def move_new_folder(source: Path, target: Path) -> None:
    """Make `source` appear as `target`, unless a non-empty `target` is there: then do nothing."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    sync_folder(target.parent)


def join_files(sources: Iterable[tuple[Path, int]], target: Path) -> None:
    """Write the new, synced file `target` out of files with their sizes in bytes, one by one.

    Raise FileNotFoundError when a source is gone, OSError when one is shorter than told.
    """
    descriptor = os.open(target, NEW_FILE, 0o600)
    try:
        for path, size in sources:
            left = size
            source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                while left:
                    copied = _copy_some(source, descriptor, left)
                    if not copied:
                        raise OSError(errno.EIO, "a part's file is shorter than its name says")
                    left -= copied
            finally:
                os.close(source)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_some(source: int, target: int, most: int) -> int:
    if sys.platform == "linux":
        try:
            return os.copy_file_range(source, target, min(most, KERNEL_COPY_BYTES))
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
    block = os.read(source, min(most, COPY_BYTES))
    write_all(target, block)
    return len(block)


class PartTooLarge(ObjectStoreError):
    """More bytes than the URL was signed for."""


class PartTooShort(ObjectStoreError):
    """Fewer bytes than the URL was signed for."""


class PartCutOff(ObjectStoreError):
    """The connection ended within the part."""


class PartStalled(ObjectStoreError):
    """The connection is open, but no byte came for too long."""


class ChecksumMismatch(ObjectStoreError):
    """The bytes don't add up to a checksum that was sent with them."""


@dataclass(frozen=True, order=True)
class PartFile:
    """A part's file; of several with one number the greatest holds.

    `turn` grows with every re-sending, so order needs no clock and no lock: whoever publishes a
    part removes only smaller ones, and the greatest is never removed.
    """

    number: int
    turn: int
    etag: str
    size: int
    path: Path = field(compare=False)

    @classmethod
    def named(cls, path: Path) -> PartFile | None:
        """Return the part that the file's name tells of, or None for a foreign file."""
        found = PART_NAME.fullmatch(path.name)
        if found is None:
            return None
        number, turn, etag, size = found.groups()
        return cls(int(number), int(turn), etag, int(size), path)

    @classmethod
    def within(cls, folder: Path, number: int, turn: int, etag: str, size: int) -> PartFile:
        """Return the file that such a part has in `folder`."""
        path = folder / f"{number:05d}-{turn}-{etag}-{size}"
        return cls(number, turn, etag, size, path)

    @property
    def part(self) -> Part:
        """What the port tells of it."""
        return Part(self.number, self.etag, self.size)


def scan_parts(folder: Path, only: int | None = None) -> list[PartFile]:
    """Return all part files, or those of number `only`, in order. Raise FileNotFoundError."""
    prefix = "" if only is None else f"{only:05d}-"
    with os.scandir(folder) as entries:
        paths = [
            folder / entry.name
            for entry in entries
            if entry.name.startswith(prefix) and entry.is_file(follow_symlinks=False)
        ]
    return sorted(file for file in map(PartFile.named, paths) if file is not None)


def publish_part(spool: Path, folder: Path, number: int, etag: str, size: int) -> Part:
    """Move a complete, synced file in as part `number`, in place of earlier ones.

    Raise FileNotFoundError when the upload's folder is gone.
    """
    earlier = scan_parts(folder, number)
    turn = earlier[-1].turn + 1 if earlier else 1
    file = PartFile.within(folder, number, turn, etag, size)
    spool.rename(file.path)
    for stale in scan_parts(folder, number)[:-1]:
        stale.path.unlink(missing_ok=True)
    sync_folder(folder)
    return file.part


class PartSpool:
    """A part on its way to the disk; the hashes are kept beside it, so no byte is read twice."""

    def __init__(
        self, disk: Disk, path: Path, size: int, checksums: Sequence[Checksum] = ()
    ) -> None:
        """`path` is a new file on `disk`, `size` the exact number of bytes to come."""
        self._disk, self._path, self._size, self._checksums = disk, path, size, checksums
        headers = [CONTENT_MD5, *(checksum.header for checksum in checksums)]
        self._hashes = {header: ALGORITHMS[header]() for header in headers}
        self._written = 0

    async def receive(self, chunks: AsyncIterable[bytes]) -> str:
        """Write and sync the bytes, and return their MD5 in hex.

        Raise PartTooLarge as soon as one byte too many comes, PartTooShort, ChecksumMismatch,
        ObjectStoreUnavailable and whatever `chunks` raises; the file is then of no use.
        """
        descriptor = await self._disk.run(os.open, self._path, NEW_FILE, 0o600)
        try:
            await self._overlap(descriptor, self._blocks(chunks))
            for sent in self._checksums:
                if self._hashes[sent.header].digest() != sent.digest:
                    told = f"The bytes that came don't match {sent.header}; send the part again."
                    raise ChecksumMismatch(told)
            await self._disk.run(os.fsync, descriptor)
        finally:
            os.close(descriptor)
        return self._hashes[CONTENT_MD5].digest().hex()

    async def _overlap(self, descriptor: int, blocks: AsyncIterable[list[bytes]]) -> None:
        """Write and hash one block while the next is received; no more than two are held."""
        writing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        writing.set_result(None)
        try:
            async for block in blocks:
                await asyncio.shield(writing)
                writing = asyncio.create_task(self._disk.run(self._write, descriptor, block))
            await asyncio.shield(writing)
        finally:
            # The file must not be closed under a thread that is still writing.
            await to_the_end(asyncio.gather(writing, return_exceptions=True))

    async def _blocks(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[list[bytes]]:
        """Yield the chunks as they came, in lists of a block's size: joining would copy them."""
        received, block, held = 0, [], 0
        async for chunk in chunks:
            received += len(chunk)
            if received > self._size:
                raise PartTooLarge(f"The part has more than the announced {self._size} bytes.")
            block.append(chunk)
            held += len(chunk)
            if held >= BLOCK_BYTES:
                yield block
                block, held = [], 0
        if received < self._size:
            raise PartTooShort(f"Only {received} of {self._size} bytes came; send the part again.")
        yield block

    def _write(self, descriptor: int, block: list[bytes]) -> None:
        begun = self._written
        for chunk in block:
            write_all(descriptor, chunk)
            self._written += len(chunk)
        # The disk works while the block is hashed, and little is left for the sync at the end.
        start_writeback(descriptor, begun, self._written - begun)
        for chunk in block:
            for hashing in self._hashes.values():
                hashing.update(chunk)

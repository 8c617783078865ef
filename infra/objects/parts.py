"""Parts as files: received block by block, listed without reading a byte of their content."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.cancellation import to_the_end
from infra.objects.checksums import ALGORITHMS, CONTENT_MD5, Checksum
from infra.objects.disk import NEW_FILE, Disk, start_writeback, sync_folder, write_all
from infra.objects.port import ObjectStoreError, Part

BLOCK_BYTES = 1024 * 1024
PART_NAME = re.compile(r"(\d{5})-(\d+)-([0-9a-f]{32})-(\d+)")


class PartRefused(ObjectStoreError):
    """The bytes that came are not the part that was announced; nothing of them is kept."""


class PartTooLarge(PartRefused):
    """More bytes than the URL was signed for."""


class PartTooShort(PartRefused):
    """Fewer bytes than the URL was signed for."""


class PartCutOff(PartRefused):
    """The connection ended within the part."""


class PartStalled(PartRefused):
    """The connection is open, but no byte came for too long."""


class ChecksumMismatch(PartRefused):
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
        """The part that the file's name tells of, or None for a foreign file."""
        found = PART_NAME.fullmatch(path.name)
        if found is None:
            return None
        number, turn, etag, size = found.groups()
        return cls(int(number), int(turn), etag, int(size), path)

    @classmethod
    def within(cls, folder: Path, number: int, turn: int, etag: str, size: int) -> PartFile:
        """The file that such a part has in `folder`."""
        path = folder / f"{number:05d}-{turn}-{etag}-{size}"
        return cls(number, turn, etag, size, path)

    def is_whole(self) -> bool:
        """Whether the file is as long as its name says. Raises FileNotFoundError."""
        return self.path.stat().st_size == self.size

    @property
    def part(self) -> Part:
        """What the port tells of it."""
        return Part(self.number, self.etag, self.size)


def scan_parts(folder: Path, only: int | None = None) -> list[PartFile]:
    """All part files, or those of number `only`, in order. Raises FileNotFoundError."""
    prefix = "" if only is None else f"{only:05d}-"
    with os.scandir(folder) as entries:
        paths = [
            folder / entry.name
            for entry in entries
            if entry.name.startswith(prefix) and entry.is_file(follow_symlinks=False)
        ]
    return sorted(file for file in map(PartFile.named, paths) if file is not None)


def holding_parts(folder: Path) -> dict[int, PartFile]:
    """For each number the file that holds, in order of number. Raises FileNotFoundError."""
    return {file.number: file for file in scan_parts(folder)}


def publish_part(spool: Path, folder: Path, number: int, etag: str, size: int) -> Part:
    """Move a complete, synced file in as part `number`, in place of earlier ones.

    Raises FileNotFoundError when the upload's folder is gone.
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
        headers = {CONTENT_MD5, *(checksum.header for checksum in checksums)}
        self._hashes = {header: ALGORITHMS[header]() for header in headers}
        self._written = 0

    async def receive(self, chunks: AsyncIterable[bytes]) -> str:
        """Write and sync the bytes, and return their MD5 in hex.

        Raises PartTooLarge as soon as one byte too many comes, PartTooShort, ChecksumMismatch,
        ObjectStoreUnavailable and whatever `chunks` raises; the file is then of no use.
        """
        descriptor = await self._disk.run(os.open, self._path, NEW_FILE, 0o600)
        try:
            await self._overlap(descriptor, self._blocks(chunks))
            self._compare()
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
        """The chunks as they came, in lists of a block's size: joining them would copy them."""
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

    def _compare(self) -> None:
        for checksum in self._checksums:
            if self._hashes[checksum.header].digest() != checksum.digest:
                told = f"The bytes that came don't match {checksum.header}; send the part again."
                raise ChecksumMismatch(told)

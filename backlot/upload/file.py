"""The file to upload: read block by block, and watched for changes while it is sent."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

from backlot.upload.problems import FileChanged, UploadFailed

# Small, because a slow connection has to take each block before it counts as broken.
BLOCK_BYTES = 256 * 1024


class LocalFile:
    """An open file; `size` in bytes, `mtime` in nanoseconds. To be closed after use."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises UploadFailed for what is no readable file, or an empty one."""
        self.path = path.absolute()
        try:
            # Opening must not wait for the other end of a pipe.
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UploadFailed(f"{path} can't be read: {error.strerror}") from error
        found = os.fstat(self._descriptor)
        self.size, self.mtime = found.st_size, found.st_mtime_ns
        self._identity = _identity(found)
        problem = None
        if not stat.S_ISREG(found.st_mode):
            problem = "is not a file"
        elif self.size == 0:
            problem = "is empty: there is nothing to upload"
        if problem is not None:
            self.close()
            raise UploadFailed(f"{path} {problem}")

    @property
    def name(self) -> str:
        """The last component of the path, in characters that JSON can carry."""
        return self.path.name.encode(errors="replace").decode()

    def check_unchanged(self) -> None:
        """Raise FileChanged unless the file under this path is still the one that was opened."""
        try:
            same = _identity(self.path.stat()) == self._identity
        except OSError:
            same = False
        if not same:
            raise self._changed()

    async def blocks(self, offset: int, size: int) -> AsyncIterator[bytes]:
        """Exactly `size` bytes from `offset`. Raises FileChanged where the file ends before."""
        end = offset + size
        while offset < end:
            block = await asyncio.to_thread(self._read, offset, min(BLOCK_BYTES, end - offset))
            yield block
            offset += len(block)

    async def md5(self, offset: int, size: int) -> bytes:
        """The binary MD5 of a part, which is what object stores make its ETag of."""
        digest = hashlib.md5(usedforsecurity=False)
        async for block in self.blocks(offset, size):
            await asyncio.to_thread(digest.update, block)
        return digest.digest()

    def close(self) -> None:
        """Let the file go."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self, offset: int, size: int) -> bytes:
        try:
            block = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise UploadFailed(f"{self.path} can't be read: {error.strerror}") from error
        if not block:
            raise self._changed()
        return block

    def _changed(self) -> FileChanged:
        return FileChanged(
            f"{self.path} changed while it was uploaded: upload it again once it is whole"
        )


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

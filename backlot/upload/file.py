"""The file to upload: read block by block, and watched for changes while it is sent."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backlot.upload.api import Details, FileChanged, UploadFailed

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
        regular = stat.S_ISREG(found.st_mode)
        if not regular or self.size == 0:
            self.close()
            problem = "is empty: there is nothing to upload" if regular else "is not a file"
            raise UploadFailed(f"{path} {problem}")

    @property
    def name(self) -> str:
        """The last component of the path, in characters that JSON can carry."""
        return self.path.name.encode(errors="replace").decode()

    def check_unchanged(self) -> None:
        """Raise FileChanged unless the file under this path is still the one that was opened."""
        with suppress(OSError):
            if _identity(self.path.stat()) == self._identity:
                return
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

    def __exit__(self, *_: object) -> None:
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


# Longer than a server keeps an unfinished upload.
KEPT_SECONDS = 30 * 24 * 3600


class Begun(BaseModel):
    """An upload that was asked for; without `upload_id` when the answer was never seen.

    `details` and `key` make a repeat of that request the same request for the server.
    """

    model_config = ConfigDict(frozen=True)

    details: Details
    key: str = Field(default_factory=lambda: str(uuid4()))
    upload_id: UUID | None = None
    position: str | None = None


class Memory:
    """The place where the upload of one file to one server by one user is remembered.

    A folder that can't be used costs the resuming, not the upload: `complain` is told.
    """

    def __init__(
        self, folder: Path, file: LocalFile, url: str, user: str, complain: Callable[[str], None]
    ) -> None:
        names = (str(file.path), str(file.size), str(file.mtime), url, user)
        digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
        self._path = folder / f"{digest.hexdigest()}.json"
        self._complain = complain

    def recall(self) -> Begun | None:
        """What was remembered; None for nothing, and for what can't be understood."""
        with self._complaining():
            try:
                return Begun.model_validate_json(self._path.read_bytes())
            except FileNotFoundError:
                return None
            except ValidationError:
                self._complain(f"{self._path} is damaged: it is left out of account")
        return None

    def remember(self, begun: Begun) -> None:
        """Replace what was remembered, for the user's eyes only; survives a crash."""
        with self._complaining():
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._clear_out()
            draft = self._path.with_suffix(f".{os.getpid()}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(begun.model_dump_json().encode())
                file.flush()
                os.fsync(descriptor)
            draft.replace(self._path)

    def forget(self) -> None:
        """There is nothing to go on with any more."""
        with self._complaining():
            self._path.unlink(missing_ok=True)

    def _clear_out(self) -> None:
        too_old = time.time() - KEPT_SECONDS
        for path in self._path.parent.iterdir():
            # Another run may be clearing out, too.
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < too_old:
                    path.unlink()

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = f"{self._path.parent} can't be used: {error.strerror}"
            self._complain(f"this upload can't be resumed ({reason})")


def state_folder(environment: Mapping[str, str]) -> Path:
    """Where this user's programs keep such state (XDG base directories).

    Raises UploadFailed for a user without a home.
    """
    configured = Path(environment.get("XDG_STATE_HOME", ""))
    try:
        base = configured if configured.is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise UploadFailed("nowhere to remember the upload: set XDG_STATE_HOME") from error
    return base / "backlot" / "uploads"

"""The folder under the folder store: safe paths, blocking work in threads, errors told plainly."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import structlog
from anyio import to_thread

from infra.objects.port import OBJECT_STORE_FAILURES, ObjectStoreUnavailable

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

T = TypeVar("T")


class Disk:
    """One folder with the sub-folders of the store; all of them on one file system."""

    AREAS = ("uploads", "objects/videos", "tmp")

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Do blocking work in a thread. Raises ObjectStoreUnavailable for an OSError."""
        try:
            return await to_thread.run_sync(work, *args)
        except OSError as error:
            reason = _REMEDIES.get(error.errno or 0, str(error))
            OBJECT_STORE_FAILURES.inc()
            log.error("object_folder_unusable", folder=str(self.root), reason=reason)
            cause = f"The object folder {self.root} can't be used: {reason}."
            raise ObjectStoreUnavailable(cause) from error

    def inside(self, *names: str) -> Path:
        """The path under the root. Raises OSError when a symbolic link on it leads elsewhere."""
        path = self.root.joinpath(*names)
        if path.resolve() != path:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        return path

    def prepare(self) -> None:
        """Make the sub-folders and empty `tmp/`."""
        for area in self.AREAS:
            folder = self.inside(area)
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)
        for leftover in list(self.inside("tmp").iterdir()):
            _remove(leftover)
        sync_folder(self.root)

    def probe(self) -> None:
        """Write and remove a small file in every sub-folder. Raises OSError."""
        for area in self.AREAS:
            folder = self.inside(area)
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f".probe-{secrets.token_hex(8)}"
            try:
                path.write_bytes(bytes(4096))
            finally:
                path.unlink(missing_ok=True)

    def scratch(self) -> Path:
        """A new name in `tmp/`; nothing is there yet."""
        folder = self.inside("tmp")
        folder.mkdir(parents=True, exist_ok=True)
        return folder / secrets.token_hex(16)

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

    Raises FileNotFoundError when a source is gone, OSError when one is shorter than told.
    """
    descriptor = os.open(target, NEW_FILE, 0o600)
    try:
        for path, size in sources:
            source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                _copy(source, descriptor, size)
            finally:
                os.close(source)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(source: int, target: int, size: int) -> None:
    left = size
    while left:
        copied = _copy_some(source, target, left)
        if not copied:
            raise OSError(errno.EIO, "a part's file is shorter than its name says")
        left -= copied


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

"""The folder that holds everything of an embedded Backlot, for one process at a time.

Its format is checked before anything in it is touched, so that an older program never harms
data that a newer one wrote.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self

from infra.errors import OperatorError

FORMAT = 1
FORMAT_FILE = "backlot-format"
LOCK_FILE = "backlot.lock"
# What a folder may hold and still count as new: our lock from a start that got no further, and
# what file systems put into a fresh mount.
HARMLESS = frozenset({LOCK_FILE, "lost+found", ".DS_Store"})


class DataFolderError(OperatorError):
    """The data folder cannot be used; nothing in it was changed."""


class DataFolder:
    """A data folder that this process holds exclusively until ``close``."""

    def __init__(self, path: Path, *, joins: bool = False) -> None:
        """Create, check and lock the folder. Raise DataFolderError with what to do about it.

        Where the process `joins` another one of the same Backlot, that one holds the folder.
        """
        self.path = path.absolute()
        self.postgres = cluster_path(self.path)
        self.objects = objects_path(self.path)
        self.secret = secret_path(self.path)
        self.key_encryption_key = key_encryption_key_path(self.path)
        check_format(self.path)
        self._lock = -1
        if not joins:
            self._create()
            self._lock = self._acquire()
            self._mark_format()

    def close(self) -> None:
        """Let another process use the folder; safe to call twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".write-test-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise DataFolderError(
                f"data folder {self.path} is not writable ({error.strerror}): "
                "set BACKLOT_DATA_DIR to one that is"
            ) from error

    def _acquire(self) -> int:
        descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            holder = lock_holder(self.path)
            raise DataFolderError(
                f"data folder {self.path} is in use by another Backlot"
                f"{f' (pid {holder})' if holder else ''}: "
                "stop it, or set BACKLOT_DATA_DIR to another folder"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return descriptor

    def _mark_format(self) -> None:
        # Checked again under the lock: another process may have made the folder meanwhile.
        check_format(self.path)
        marker = self.path / FORMAT_FILE
        if not marker.exists():
            draft = marker.with_suffix(".draft")
            draft.write_text(f"{FORMAT}\n")
            draft.rename(marker)


def cluster_path(folder: Path) -> Path:
    """Return where a data folder keeps the cluster of the embedded PostgreSQL."""
    return folder / "postgres"


def objects_path(folder: Path) -> Path:
    """Return where a data folder keeps media objects and the parts of unfinished uploads."""
    return folder / "objects"


def secret_path(folder: Path) -> Path:
    """Return where a data folder keeps the local signing secret of tokens and part URLs."""
    return folder / "jwt-secret"


def key_encryption_key_path(folder: Path) -> Path:
    """Return where a data folder keeps the key that wraps the keys of persons."""
    return folder / "key-encryption-key"


def seal_head_path(folder: Path) -> Path:
    """Return where a data folder keeps number and hash of the newest seal over the event log."""
    return folder / "seal-head.json"


def forgotten_path(folder: Path) -> Path:
    """Return where a data folder keeps who was forgotten, for databases that are restored."""
    return folder / "forgotten.jsonl"


def lock_holder(folder: Path) -> int | None:
    """Return the pid of the process that holds the folder, None when nobody does."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32).decode(errors="replace").strip()
        return int(text) if text.isdecimal() else None
    finally:
        os.close(descriptor)
    return None


def check_format(folder: Path) -> None:
    """Raise DataFolderError unless the folder is absent, empty or in this program's format."""
    try:
        if not folder.exists():
            return
        if not folder.is_dir():
            raise DataFolderError(f"data folder {folder} is not a folder: set BACKLOT_DATA_DIR")
        marker = folder / FORMAT_FILE
        if marker.exists():
            _check_marker(folder, marker.read_text(errors="replace").strip())
        elif strangers := {entry.name for entry in folder.iterdir()} - HARMLESS:
            raise DataFolderError(
                f"data folder {folder} is not Backlot's: it holds {min(strangers)!r} and no "
                f"{FORMAT_FILE}; set BACKLOT_DATA_DIR to an empty or new folder"
            )
    except OSError as error:
        raise DataFolderError(
            f"data folder {folder} cannot be read ({error.strerror}): set BACKLOT_DATA_DIR"
        ) from error


def _check_marker(folder: Path, found: str) -> None:
    if found == str(FORMAT):
        return
    newer = found.isdecimal() and int(found) > FORMAT
    raise DataFolderError(
        f"data folder {folder} has format {found[:20]!r}, this Backlot reads {FORMAT}: "
        + ("use the newer Backlot that wrote it" if newer else f"its {FORMAT_FILE} is damaged")
        + "; nothing was changed"
    )

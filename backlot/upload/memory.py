"""Remembers an unfinished upload across runs: a small file per media file, server and user.

Not in the data folder: that is the server's, and may lie on another machine.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from backlot.upload.api import Details
from backlot.upload.file import LocalFile
from backlot.upload.problems import UploadFailed

# Longer than a server keeps an unfinished upload.
KEPT_SECONDS = 30 * 24 * 3600


class Begun(BaseModel):
    """An upload that was asked for; without `upload_id` when the answer was never seen.

    `details` and `key` make a repeat of that request the same request for the server.
    """

    model_config = ConfigDict(frozen=True)

    details: Details
    key: str
    upload_id: UUID | None = None
    position: str | None = None

    @classmethod
    def now(cls, details: Details) -> Begun:
        """A new one, under a key of its own."""
        return cls(details=details, key=str(uuid4()))


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

"""One run of `backlot upload`, from the command line's words to its exit code."""

from __future__ import annotations

import hashlib
import mimetypes
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backlot.calls import CallFailed, Patience, check_url
from backlot.output import show
from backlot.screen import BYTES, Screen
from backlot.signals import run
from backlot.upload.transfer import (
    Details,
    FileChanged,
    LocalFile,
    Transfer,
    UploadApi,
    UploadEnded,
    UploadFailed,
)
from commands.upload_shapes import UploadCompleted, UploadStarted
from infra.errors import ExitCode
from infra.http.shapes import UploadStatus

# Longer than a server keeps an unfinished upload.
KEPT_SECONDS = 30 * 24 * 3600
ENDED = frozenset({httpx.codes.NOT_FOUND, httpx.codes.CONFLICT})


class UnfinishedUpload(BaseModel):
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

    def recall(self) -> UnfinishedUpload | None:
        """Return what was remembered; None for nothing, and for a damaged file."""
        with self._complaining():
            try:
                return UnfinishedUpload.model_validate_json(self._path.read_bytes())
            except FileNotFoundError:
                return None
            except ValidationError:
                self._complain(f"{self._path} is damaged: it is left out of account")
        return None

    def remember(self, begun: UnfinishedUpload) -> None:
        """Replace what was remembered; only the user can read it, and it survives a crash."""
        with self._complaining():
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._clear_out()
            with NamedTemporaryFile(dir=self._path.parent, delete=False) as draft:
                draft.write(begun.model_dump_json().encode())
                draft.flush()
                os.fsync(draft.fileno())
            Path(draft.name).replace(self._path)

    def forget(self) -> None:
        """Remove what was remembered: nothing is left to resume."""
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


def state_folder() -> Path:
    """Return the folder of this user's unfinished uploads (XDG base directories).

    Raise UploadFailed for a user without a home.
    """
    configured = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:
        base = configured if configured.is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise UploadFailed("nowhere to remember the upload: set XDG_STATE_HOME") from error
    return base / "backlot" / "uploads"


@dataclass(frozen=True)
class FinishedUpload:
    """A completed upload; `parts_sent` are those of this run."""

    video: UploadCompleted
    parts: int
    parts_sent: int
    resumed: bool

    def as_dict(self, url: str, seconds: float) -> dict[str, Any]:
        """Return the upload as `--json` prints it."""
        return {
            "uploadId": str(self.video.upload_id),
            "videoId": str(self.video.video_id),
            "url": f"{url}/videos/{self.video.video_id}",
            "sizeBytes": self.video.size_bytes,
            "etag": self.video.etag,
            "parts": self.parts,
            "partsSent": self.parts_sent,
            "resumed": self.resumed,
            "seconds": round(seconds, 2),
        }


class UploadSession:
    """One run of the client, for one file. `under_way`: parts of it may have arrived."""

    def __init__(
        self, api: UploadApi, file: LocalFile, memory: Memory, screen: Screen, *, parallel: int
    ) -> None:
        self._api, self._file, self._memory, self._screen = api, file, memory, screen
        self._parallel = parallel
        self.under_way = False

    async def run(
        self, named: Mapping[str, str], assumed: Mapping[str, str], *, resume: bool
    ) -> FinishedUpload:
        """Upload the file with the details that the user named, else with the assumed ones.

        Raises UploadFailed, and CallFailed; then what has arrived is remembered.
        """
        begun = self._memory.recall()
        if begun is not None and begun.upload_id is not None:
            if not resume:
                await self._give_up(begun.upload_id)
            elif status := await self._find(begun, begun.upload_id, named):
                return await self._go_on(status)
            begun = None
        details: Details = {"filename": self._file.name, "sizeBytes": self._file.size}
        details |= {**assumed, **named}
        if begun is None or begun.details != details or not resume:
            begun = UnfinishedUpload(details=details)
        return await self._transfer(await self._begin(begun), resumed=False)

    async def _find(
        self, begun: UnfinishedUpload, upload_id: UUID, named: Mapping[str, str]
    ) -> UploadStatus | None:
        """Return the remembered upload, if it is under way or done. Raise UploadFailed."""
        self._api.position = begun.position
        status = await self._api.status(upload_id)
        if status is None or status.status not in ("started", "completed"):
            told = status.status if status else "unknown to the server"
            self._screen.say(f"the earlier upload is {told}: beginning anew")
            return None
        for name, wish in named.items():
            if (other := begun.details.get(name, "")) != wish:
                raise UploadFailed(
                    f"the unfinished upload of {self._file.path} has the {name} {other!r}: leave "
                    "yours out to resume it, or begin anew with --no-resume"
                )
        return status

    async def _go_on(self, status: UploadStatus) -> FinishedUpload:
        if status.status == "completed":
            self._screen.say("an earlier run came as far as completing it")
            video = await self._api.complete(status.upload_id, {})
            self._memory.forget()
            return FinishedUpload(video, status.part_count, 0, resumed=True)
        arrived = f"{len(status.parts)} of {status.part_count} parts have arrived"
        self._screen.say(f"resuming: {arrived}")
        return await self._transfer(status, resumed=True)

    async def _begin(self, begun: UnfinishedUpload) -> UploadStarted:
        """Begin the upload; it is remembered before, so that a crash begins no second one."""
        self._memory.remember(begun)
        try:
            started = await self._api.start(begun.details, begun.key)
        except CallFailed as failure:
            if failure.status is not None and not failure.passing:
                self._memory.forget()
            raise
        known = {"upload_id": started.upload_id, "position": self._api.position}
        self._memory.remember(begun.model_copy(update=known))
        return started

    async def _transfer(
        self, upload: UploadStarted | UploadStatus, *, resumed: bool
    ) -> FinishedUpload:
        self.under_way = True
        with self._screen.act("uploading", self._file.size, BYTES) as act:
            transfer = Transfer(
                self._api, self._file, upload, parallel=self._parallel, progress=act.advance
            )
            try:
                video = await transfer.run()
            except FileChanged:
                await self._give_up(upload.upload_id)
                raise
            except CallFailed as failure:
                video = await self._look_again(upload.upload_id, failure)
        self._memory.forget()
        return FinishedUpload(video, upload.part_count, transfer.parts_sent, resumed)

    async def _look_again(self, upload_id: UUID, failure: CallFailed) -> UploadCompleted:
        """Return what another run completed meanwhile; else raise the failure, or UploadEnded."""
        if failure.status not in ENDED:
            raise failure
        status = await self._api.status(upload_id)
        if status is not None and status.status == "started":
            raise failure
        if status is not None and status.status == "completed":
            return await self._api.complete(upload_id, {})
        self._memory.forget()
        told = status.status if status else "removed"
        raise UploadEnded(
            f"the upload was {told} meanwhile: run the same command again to begin anew"
        ) from failure

    async def _give_up(self, upload_id: UUID) -> None:
        """Forget the upload, and tell the server that it need not keep it."""
        self._memory.forget()
        try:
            await self._api.abort(upload_id)
        except CallFailed as failure:
            self._screen.say(f"the earlier upload could not be given up: {failure}")


# Outlasts a server's restart: two minutes at most, and whatever pauses the server asks for.
PATIENCE = Patience(attempts=12, first=0.5, longest=15.0, longest_told=300.0)
AGAIN = "run the same command again to send only the rest"
# A part's answer comes once its bytes are on the disk, and a completion's once they are joined.
TIMEOUT = httpx.Timeout(120.0, connect=15.0)
# A proxy that the environment names is for other machines.
DIRECT = ("all://localhost", "all://127.0.0.1", "all://[::1]")
NOTE_SECONDS = 10.0
MAX_TITLE = 200
# What the standard library does not know everywhere, or takes for something else.
TYPES = {
    ".flac": "audio/flac",
    ".m2ts": "video/mp2t",
    ".m4a": "audio/mp4",
    ".m4v": "video/x-m4v",
    ".mkv": "video/x-matroska",
    ".mts": "video/mp2t",
    ".ogg": "audio/ogg",
    ".ogv": "video/ogg",
    ".ts": "video/mp2t",
}


def run_upload(
    path: Path,
    url: str,
    token: str,
    *,
    named: Mapping[str, str],
    parallel: int = 4,
    resume: bool = True,
    as_json: bool = False,
) -> int:
    """Upload the file at `path` to the server at `url` (no slash at the end).

    `token` says who uploads; `named` are details by their API names: `title`, `description`,
    `category`, `visibility`, `contentType`. Returns the exit code. Raises OperatorError with what
    to do about it.
    """
    screen, started = Screen(), time.perf_counter()
    with LocalFile(path) as file:
        _check(url, token)
        assumed = _assumed(file, named)
        memory = Memory(state_folder(), file, url, _subject(token), screen.say)

        async def upload() -> FinishedUpload:
            async with _client(url) as http:
                api = UploadApi(http, token, patience=PATIENCE, note=Notes(screen.say))
                session = UploadSession(api, file, memory, screen, parallel=parallel)
                try:
                    return await session.run(named, assumed, resume=resume)
                except CallFailed as failure:
                    raise _explained(failure, url, under_way=session.under_way) from failure

        try:
            found = run(upload())
        except KeyboardInterrupt:
            screen.say(f"interrupted: {AGAIN}{'' if resume else ', without --no-resume'}")
            return ExitCode.INTERRUPTED
    seconds = time.perf_counter() - started
    screen.say(f"uploaded {file.name}: {found.video.size_bytes:,} bytes in {seconds:.1f} s")
    told = found.as_dict(url, seconds)
    show(f"video {told['videoId']}\n{told['url']}", told, as_json)
    return ExitCode.DONE


def _client(url: str) -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(base_url=url, timeout=TIMEOUT, mounts=dict.fromkeys(DIRECT))
    except (httpx.InvalidURL, ValueError, ImportError) as error:
        raise UploadFailed(f"{url} or the proxy for it can't be used: {error}") from error


def _check(url: str, token: str) -> None:
    """Raise UploadFailed for what is no URL of a server, or no token."""
    check_url(url, UploadFailed)
    if not re.fullmatch("[!-~]+", token):
        raise UploadFailed("--token: this is no token; `backlot token` prints one")


def _subject(token: str) -> str:
    """Return whom the token claims to stand for; the server decides whether that is true."""
    try:
        return str(jwt.decode(token, options={"verify_signature": False}).get("sub", ""))
    except jwt.PyJWTError:
        return ""


def _assumed(file: LocalFile, named: Mapping[str, str]) -> dict[str, str]:
    """Return a title and a type for the upload. Raise UploadFailed for no video or audio."""
    assumed = {"title": file.name[:MAX_TITLE]}
    if "contentType" not in named:
        ending = file.path.suffix.lower()
        guessed = TYPES.get(ending) or mimetypes.guess_type(file.name)[0] or "unknown"
        if not guessed.startswith(("video/", "audio/")):
            raise UploadFailed(
                f"{file.path} does not look like video or audio: say what it is, "
                "for example --content-type video/mp4"
            )
        assumed["contentType"] = guessed
    return assumed


class Notes:
    """Tells of tries that failed and will be repeated, but not of each."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told_at = -NOTE_SECONDS

    def __call__(self, failure: CallFailed, pause: float | None) -> None:
        if pause is not None and time.monotonic() - self._told_at > NOTE_SECONDS:
            self._told_at = time.monotonic()
            self._say(f"{failure}; trying again")


def _explained(failure: CallFailed, url: str, *, under_way: bool) -> UploadFailed:
    text = str(failure)
    if under_way:
        text = f"broken off: {failure}; {AGAIN}"
    elif failure.status is None and failure.passing:
        text = (
            f"no server at {url} ({failure.problem}): start one with `make up`, or give its --url"
        )
    elif failure.status == httpx.codes.UNAUTHORIZED:
        text = (
            f"the server at {url} refuses the token ({failure.problem}): give another --token, "
            "or set the BACKLOT_DATA_DIR or JWT_SECRET that it runs with"
        )
    elif not failure.slug and not failure.passing:
        text = f"what answers at {url} is not Backlot ({failure}): give its --url"
    return UploadFailed(text)

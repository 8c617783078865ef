"""One run of `backlot upload`, from the command line's words to its exit code."""

from __future__ import annotations

import mimetypes
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import jwt

from backlot.calls import CallFailed, Patience
from backlot.output import show
from backlot.screen import Screen
from backlot.signals import run
from backlot.upload.api import UploadApi
from backlot.upload.file import LocalFile
from backlot.upload.memory import Memory, state_folder
from backlot.upload.problems import UploadFailed
from backlot.upload.session import Uploaded, UploadSession, Wishes
from infra.errors import ExitCode

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


@dataclass(frozen=True)
class Target:
    """The server at `url` (no slash at the end), as whoever the token stands for."""

    url: str
    token: str


def run_upload(
    path: Path,
    target: Target,
    *,
    named: Mapping[str, str],
    parallel: int = 4,
    resume: bool = True,
    as_json: bool = False,
) -> int:
    """Upload the file at `path`; returns the exit code. `named` are details by their API names.

    Raises OperatorError with what to do about it.
    """
    screen, started = Screen(), time.perf_counter()
    with LocalFile(path) as file:
        try:
            found = run(_run(file, target, named, screen, parallel, resume))
        except KeyboardInterrupt:
            screen.say(f"interrupted: {AGAIN}{'' if resume else ', without --no-resume'}")
            return ExitCode.INTERRUPTED
        seconds = time.perf_counter() - started
        _tell(found, file, target.url, seconds, as_json=as_json, say=screen.say)
    return ExitCode.DONE


async def _run(
    file: LocalFile,
    target: Target,
    named: Mapping[str, str],
    screen: Screen,
    parallel: int,
    resume: bool,
) -> Uploaded:
    _check(target)
    wishes = Wishes(named, _assumed(file, named))
    user = _subject(target.token)
    memory = Memory(state_folder(os.environ), file, target.url, user, screen.say)
    async with _client(target.url) as http:
        api = UploadApi(http, target.token, patience=PATIENCE, note=Notes(screen.say))
        session = UploadSession(api, file, memory, screen, parallel=parallel)
        try:
            return await session.run(wishes, resume=resume)
        except CallFailed as failure:
            raise _explained(failure, target.url, session) from failure


def _client(url: str) -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(base_url=url, timeout=TIMEOUT, mounts=dict.fromkeys(DIRECT))
    except (httpx.InvalidURL, ValueError, ImportError) as error:
        raise UploadFailed(f"{url} or the proxy for it can't be used: {error}") from error


def _check(target: Target) -> None:
    try:
        scheme = httpx.URL(target.url).scheme
    except httpx.InvalidURL as error:
        raise UploadFailed(f"--url: {target.url!r} is not a URL ({error})") from error
    if scheme not in ("http", "https"):
        raise UploadFailed(f"--url: {target.url!r} has to start with http:// or https://")
    printable = target.token.isascii() and target.token.isprintable()
    if not printable or not target.token or " " in target.token:
        raise UploadFailed("--token: this is no token; `backlot token` prints one")


def _subject(token: str) -> str:
    """Whom the token claims to stand for; the server decides whether that is true."""
    try:
        return str(jwt.decode(token, options={"verify_signature": False}).get("sub", ""))
    except jwt.PyJWTError:
        return ""


def _assumed(file: LocalFile, named: Mapping[str, str]) -> dict[str, str]:
    """The title and type of a file that nobody said anything about. Raises UploadFailed."""
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


def _explained(failure: CallFailed, url: str, session: UploadSession) -> UploadFailed:
    if session.under_way:
        return UploadFailed(f"broken off: {failure}; {AGAIN}")
    if failure.status is None and failure.passing:
        return UploadFailed(
            f"no server at {url} ({failure.problem}): start one with `make up`, or give its --url"
        )
    if failure.status == httpx.codes.UNAUTHORIZED:
        return UploadFailed(
            f"the server at {url} refuses the token ({failure.problem}): give another --token, "
            "or set the BACKLOT_DATA_DIR or JWT_SECRET that it runs with"
        )
    if not failure.slug and not failure.passing:
        return UploadFailed(f"what answers at {url} is not Backlot ({failure}): give its --url")
    return UploadFailed(str(failure))


def _tell(
    found: Uploaded,
    file: LocalFile,
    url: str,
    seconds: float,
    *,
    as_json: bool,
    say: Callable[[str], None],
) -> None:
    video = found.video
    address = f"{url}/videos/{video.video_id}"
    told = {
        "uploadId": str(video.upload_id),
        "videoId": str(video.video_id),
        "url": address,
        "sizeBytes": video.size_bytes,
        "etag": video.etag,
        "parts": found.parts,
        "partsSent": found.parts_sent,
        "resumed": found.resumed,
        "seconds": round(seconds, 2),
    }
    say(f"uploaded {file.name}: {video.size_bytes:,} bytes in {seconds:.1f} s")
    show(f"video {video.video_id}\n{address}", told, as_json)

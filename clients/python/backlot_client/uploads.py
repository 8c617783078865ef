"""Uploads of files, in parts that are sent side by side, and again where they did not arrive."""

from __future__ import annotations

import base64
import hashlib
import mimetypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict
from uuid import UUID

import httpx

from backlot_client.generated import AuthenticatedClient
from backlot_client.generated.api.uploads import complete_upload, get_part_urls, get_upload
from backlot_client.generated.models import (
    ArrivedPart,
    CommentPolicy,
    PartNumbers,
    StartUpload,
    UploadCompleted,
    UploadStatus,
    Visibility,
)
from backlot_client.problem import Problem, answered
from backlot_client.retries import UNANSWERED, Attempts, RetryPolicy

URLS_AT_ONCE = 100
ROUNDS = 3
PASSING_STATUSES = frozenset({400, 403, 408, 422, 429})


class Details(TypedDict, total=False):
    """What may be said of a video beside its title."""

    description: str
    category: str
    visibility: Visibility
    comment_policy: CommentPolicy


class FileChanged(Exception):
    """The file is not the one that the upload began with, or changed meanwhile."""


class UploadEnded(Exception):
    """The upload was given up, or nothing happened on it for too long."""


@dataclass(frozen=True)
class Progress:
    """How much of an upload has arrived."""

    upload_id: UUID
    parts: int
    part_count: int


OnProgress = Callable[[Progress], None]


class UploadFile:
    """The file of an upload, part by part."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def require(self, status: UploadStatus) -> None:
        """Raise UploadEnded, and FileChanged for a file that has another size than the upload."""
        if status.status in ("aborted", "expired"):
            raise UploadEnded(status.status)
        if status.size_bytes != self._path.stat().st_size:
            raise FileChanged(f"{self._path} does not have {status.size_bytes} bytes")

    def lacks(self, status: UploadStatus, number: int, arrived: ArrivedPart | None) -> bool:
        """Return whether the server does not have these very bytes."""
        if arrived is None:
            return True
        piece = self.piece(status, number)
        held = arrived.etag.strip('"'), arrived.size_bytes
        return held != (_md5(piece).hex(), len(piece))

    def piece(self, status: UploadStatus, number: int) -> bytes:
        """Return the bytes of a part; raise FileChanged where they are not there any more."""
        first = (number - 1) * status.part_size_bytes
        size = min(status.part_size_bytes, status.size_bytes - first)
        with self._path.open("rb") as file:
            file.seek(first)
            piece = file.read(size)
        if len(piece) != size:
            raise FileChanged(f"{self._path} became shorter")
        return piece


class Upload:
    """An upload that has begun; keep its `upload_id` to go on with it later, in any process."""

    def __init__(
        self,
        api: AuthenticatedClient,
        parts: httpx.Client,
        policy: RetryPolicy,
        path: Path,
        upload_id: UUID,
    ) -> None:
        self._api = api
        self._parts = parts
        self._policy = policy
        self._file = UploadFile(path)
        self.upload_id = upload_id

    def run(self, *, parallel: int = 4, on_progress: OnProgress | None = None) -> UploadCompleted:
        """Send what has not arrived, `parallel` parts at a time, and complete the upload.

        Parts that have arrived are compared with the file by their MD5, and not sent again.
        Interrupted, it can run again. Raise FileChanged, UploadEnded or Problem.
        """
        for last in (False,) * (ROUNDS - 1) + (True,):
            status = self._status()
            if status.status == "started":
                self._send_missing(status, parallel, on_progress)
            try:
                return answered(complete_upload.sync_detailed(self.upload_id, client=self._api))
            except Problem as problem:
                # Somebody else may have sent parts, or the store lost some.
                if problem.type != "parts-mismatch" or last:
                    raise
        raise AssertionError("the last round returns or raises")

    def _status(self) -> UploadStatus:
        status: UploadStatus = answered(get_upload.sync_detailed(self.upload_id, client=self._api))
        self._file.require(status)
        return status

    def _send_missing(
        self, status: UploadStatus, parallel: int, on_progress: OnProgress | None
    ) -> None:
        arrived = {part.number: part for part in status.parts}
        done = 0
        pool = ThreadPoolExecutor(parallel, thread_name_prefix="backlot-upload")
        try:
            for some in in_groups(status.part_count):
                lacking = pool.map(lambda n: self._file.lacks(status, n, arrived.get(n)), some)
                missing = [number for number, lacks in zip(some, lacking, strict=True) if lacks]
                done += len(some) - len(missing)
                for _ in pool.map(
                    lambda each: self._send(status, *each), self._urls(missing).items()
                ):
                    done += 1
                    if on_progress is not None:
                        on_progress(Progress(self.upload_id, done, status.part_count))
        finally:
            # What was not begun is not sent any more, once one has failed.
            pool.shutdown(cancel_futures=True)

    def _urls(self, numbers: list[int]) -> dict[int, str]:
        if not numbers:
            return {}
        body = PartNumbers(numbers)
        found = answered(get_part_urls.sync_detailed(self.upload_id, client=self._api, body=body))
        return {part.number: part.url for part in found.parts}

    def _send(self, status: UploadStatus, number: int, url: str) -> None:
        piece = self._file.piece(status, number)
        attempts = Attempts(self._policy)
        while True:
            try:
                response = self._parts.put(url, content=piece, headers=digest_headers(piece))
            except UNANSWERED:
                pause = attempts.pause()
                if pause is None:
                    raise
            else:
                if response.is_success:
                    return
                pause = attempts.pause_after(response) if may_arrive(response) else None
                if pause is None:
                    raise Problem.of(response)
            self._policy.sleep(pause)
            # The one before may have expired.
            url = self._urls([number])[number]


def new_upload(path: Path, title: str, content_type: str | None, details: Details) -> StartUpload:
    """Return what begins the upload of a file; raise ValueError for one of no known type."""
    content_type = content_type or mimetypes.guess_type(path.name)[0]
    if content_type is None:
        raise ValueError(f"say the content type of {path.name}")
    return StartUpload(title, path.name, content_type, path.stat().st_size, **details)


def may_arrive(response: httpx.Response) -> bool:
    """Return whether a part may be taken at another attempt, with a fresh URL.

    S3 refuses a URL whose time is over like one that was never good, and bytes that came broken
    like others that are wrong.
    """
    return response.status_code in PASSING_STATUSES or response.is_server_error


def digest_headers(piece: bytes) -> dict[str, str]:
    """Return what the store compares the bytes of a part with."""
    return {"Content-MD5": base64.b64encode(_md5(piece)).decode()}


def in_groups(part_count: int) -> Iterator[range]:
    """Return the numbers of parts, as many at a time as one call gives URLs for."""
    numbers = range(1, part_count + 1)
    return (numbers[at : at + URLS_AT_ONCE] for at in range(0, len(numbers), URLS_AT_ONCE))


def _md5(piece: bytes) -> bytes:
    """Return what object stores make a part's ETag of; nothing is protected by it."""
    return hashlib.md5(piece, usedforsecurity=False).digest()

"""The calls of an upload, each repeated while that may help."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

import httpx
from pydantic import ValidationError

from backlot.calls import CallFailed, Note, Patience, may_pass, persist
from commands.upload_shapes import (
    PartUrl,
    PartUrls,
    UploadCompleted,
    UploadedPart,
    UploadStarted,
)
from infra.errors import OperatorError
from infra.http.shapes import UploadStatus, Wire

W = TypeVar("W", bound=Wire)
Details = dict[str, str | int]
"""The body that begins an upload."""

# Joining a large file's parts takes its time, and others may be doing it for us.
FINALIZING_SECONDS = 900.0
FINALIZING = frozenset({"upload-finalizing", "contended"})
GONE = frozenset({httpx.codes.NOT_FOUND, httpx.codes.FORBIDDEN})
FRESH_MS = "5000"
# What a store answers when an URL is no longer good, or bytes were damaged or cut off.
MENDABLE = frozenset({400, 403, 422})
MENDS = 4


class UploadApi:
    """One user's uploads on one server. Any call may raise CallFailed.

    `position` is how far in the log this user has written.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        token: str,
        *,
        patience: Patience,
        note: Note,
    ) -> None:
        self.position: str | None = None
        self._http, self._patience, self._note = http, patience, note
        self._authorization = {"Authorization": f"Bearer {token}"}
        self._met = False

    async def start(self, details: Details, key: str) -> UploadStarted:
        """Begin; the same details under the same key begin the same upload."""
        headers = {"Idempotency-Key": key}
        answer = await self._call("POST", "/uploads", headers, json=details)
        self.position = answer.headers.get("Backlot-Position", self.position)
        return _read(UploadStarted, answer)

    async def status(self, upload_id: UUID) -> UploadStatus | None:
        """How the upload stands; None when this user has no such upload there."""
        path = f"/uploads/{upload_id}"
        fresh = {"Backlot-Min-Position": self.position or "", "Backlot-Timeout-Ms": FRESH_MS}
        try:
            try:
                answer = await self._call("GET", path, fresh if self.position else {})
            except CallFailed as failure:
                if failure.slug not in ("read-model-behind", "position-invalid"):
                    raise
                # A server that was set up anew never comes as far as the old one was.
                answer = await self._call("GET", path)
        except CallFailed as failure:
            if failure.status in GONE:
                return None
            raise
        return _read(UploadStatus, answer)

    async def part_urls(self, upload_id: UUID, numbers: Sequence[int]) -> list[PartUrl]:
        """Where to send these parts (at most 1,000)."""
        path = f"/uploads/{upload_id}/part-urls"
        answer = await self._call("POST", path, json={"numbers": list(numbers)})
        return _read(PartUrls, answer).parts

    async def send_part(
        self,
        number: int,
        url_of: Callable[[int], Awaitable[str]],
        headers: Mapping[str, str],
        body: Callable[[], AsyncIterator[bytes]],
    ) -> str:
        """PUT a part and return its ETag. Each try takes an URL from `url_of`, and a new `body`.

        The URL is the permission, and may lead to another host: the token stays here.
        """
        mends = 0

        def again(failure: CallFailed) -> bool:
            nonlocal mends
            mends += failure.status in MENDABLE
            return failure.passing or (failure.status in MENDABLE and mends < MENDS)

        async def send() -> httpx.Response:
            url = await url_of(number)
            return await self._http.put(url, headers=dict(headers), content=body())

        call = f"PUT part {number}"
        answer = await persist(call, send, self._patience, note=self._note, again=again)
        etag: str | None = answer.headers.get("ETag")
        if not etag:
            raise CallFailed(call, "the answer has no ETag, so the part can't be named")
        return etag

    async def complete(self, upload_id: UUID, parts: Sequence[UploadedPart]) -> UploadCompleted:
        """Join the parts; waits while another request does the same."""
        path = f"/uploads/{upload_id}/complete"
        body = {"parts": [part.model_dump(by_alias=True) for part in parts]}
        deadline = time.monotonic() + FINALIZING_SECONDS
        while True:
            try:
                answer = await self._call("POST", path, json=body)
            except CallFailed as failure:
                if failure.slug not in FINALIZING or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(self._patience.pause(2, failure.told_pause))
            else:
                return _read(UploadCompleted, answer)

    async def abort(self, upload_id: UUID) -> None:
        """Give the upload up, so that the server need not keep its parts."""
        await self._call("DELETE", f"/uploads/{upload_id}")

    async def _call(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        async def send() -> httpx.Response:
            sent = {**self._authorization, **(headers or {})}
            answer = await self._http.request(method, path, headers=sent, **options)
            self._met = True
            return answer

        def again(failure: CallFailed) -> bool:
            # Where nobody has answered yet, somebody would wait for a mistyped address.
            return may_pass(failure) and (self._met or failure.status is not None)

        call = f"{method} {path}"
        return await persist(call, send, self._patience, note=self._note, again=again)


def _read(shape: type[W], answer: httpx.Response) -> W:
    try:
        return shape.model_validate_json(answer.content)
    except ValidationError as error:
        call = f"{answer.request.method} {answer.request.url.path}"
        raise CallFailed(call, "what answers is not Backlot") from error


class UploadFailed(OperatorError):
    """The file is not uploaded; the text says why, and what to do."""


class FileChanged(UploadFailed):
    """The file is no longer what the upload began with, so its parts don't make one file."""


class UploadEnded(UploadFailed):
    """The server no longer takes parts of this upload."""

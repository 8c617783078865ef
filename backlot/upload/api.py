"""The calls of an upload, each repeated while that may help."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TypeVar
from uuid import UUID

import httpx
from pydantic import ValidationError

from backlot.calls import CallFailed, UserClient, persist
from commands.upload_shapes import PartUrl, PartUrls, UploadCompleted, UploadedPart, UploadStarted
from infra.errors import OperatorError
from infra.http.shapes import UploadStatus, Wire

W = TypeVar("W", bound=Wire)
Details = dict[str, str | int]
"""The body that begins an upload."""

# Joining a large file's parts takes its time, and others may be doing it for us.
FINALIZING_SECONDS = 900.0
FINALIZING = frozenset({"upload-finalizing", "contended"})
GONE = frozenset({httpx.codes.NOT_FOUND, httpx.codes.FORBIDDEN})
BEHIND = frozenset({"read-model-behind", "position-invalid"})
FRESH_MS = "5000"
# What a store answers when an URL is no longer good, or bytes were damaged or cut off.
MENDABLE = frozenset({400, 403, 422})
MENDS = 4


class UploadApi(UserClient):
    """One user's uploads on one server."""

    async def start(self, details: Details, key: str) -> UploadStarted:
        """Begin; the same details under the same key begin the same upload."""
        answer = await self.call("POST", "/uploads", {"Idempotency-Key": key}, json=details)
        return _read(UploadStarted, answer)

    async def status(self, upload_id: UUID) -> UploadStatus | None:
        """How the upload stands; None when this user has no such upload there."""
        fresh = {"Backlot-Min-Position": self.position or "", "Backlot-Timeout-Ms": FRESH_MS}
        try:
            answer = await self.call("GET", f"/uploads/{upload_id}", fresh if self.position else {})
        except CallFailed as failure:
            if failure.status in GONE:
                return None
            if self.position is None or failure.slug not in BEHIND:
                raise
            # A server that was set up anew never comes as far as the old one was.
            self.position = None
            return await self.status(upload_id)
        return _read(UploadStatus, answer)

    async def part_urls(self, upload_id: UUID, numbers: Sequence[int]) -> list[PartUrl]:
        """Where to send these parts (at most 1,000)."""
        path = f"/uploads/{upload_id}/part-urls"
        answer = await self.call("POST", path, json={"numbers": list(numbers)})
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
            return await self.http.put(url, headers=dict(headers), content=body())

        call = f"PUT part {number}"
        answer = await persist(call, send, self.patience, note=self.note, again=again)
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
                answer = await self.call("POST", path, json=body)
            except CallFailed as failure:
                if failure.slug not in FINALIZING or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(self.patience.pause(2, failure.told_pause))
            else:
                return _read(UploadCompleted, answer)

    async def abort(self, upload_id: UUID) -> None:
        """Give the upload up, so that the server need not keep its parts."""
        await self.call("DELETE", f"/uploads/{upload_id}")


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

"""One file's way to the store: its missing parts, several at once, and then joined."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import httpx
from pydantic import ValidationError

from backlot.calls import CallFailed, UserClient, persist
from commands.upload_shapes import PartUrl, PartUrls, UploadCompleted, UploadedPart, UploadStarted
from infra.cancellation import together
from infra.errors import OperatorError
from infra.http.shapes import ArrivedPart, UploadStatus, Wire

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
URLS_AT_ONCE = 100
# A part is not begun under an URL that may end before it arrives.
MARGIN = timedelta(seconds=15)
ROUNDS = 3
# Small, because a slow connection has to take each block before it counts as broken.
BLOCK_BYTES = 256 * 1024


class UploadFailed(OperatorError):
    """The file is not uploaded; the text says why, and what to do."""


class FileChanged(UploadFailed):
    """The file is no longer what the upload began with, so its parts don't make one file."""


class UploadEnded(UploadFailed):
    """The server no longer takes parts of this upload."""


class UploadApi(UserClient):
    """One user's uploads on one server."""

    async def start(self, details: Details, key: str) -> UploadStarted:
        """Begin an upload; the same details under the same key begin the same one."""
        answer = await self.call("POST", "/uploads", {"Idempotency-Key": key}, json=details)
        return _read(UploadStarted, answer)

    async def status(self, upload_id: UUID) -> UploadStatus | None:
        """Return the state of the upload; None when this user has no such upload there."""
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
        """Return the URLs to send these parts to (at most 100)."""
        path = f"/uploads/{upload_id}/part-urls"
        answer = await self.call("POST", path, json={"numbers": list(numbers)})
        return _read(PartUrls, answer).parts

    async def complete(self, upload_id: UUID, etags: Mapping[int, str]) -> UploadCompleted:
        """Join the parts of these numbers; wait while another request does the same."""
        path = f"/uploads/{upload_id}/complete"
        parts = [UploadedPart(number=number, etag=etags[number]) for number in sorted(etags)]
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


class LocalFile(AbstractContextManager["LocalFile"]):
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
        """Return the last component of the path, in characters that JSON can carry."""
        return self.path.name.encode(errors="replace").decode()

    def check_unchanged(self) -> None:
        """Raise FileChanged unless the file under this path is still the one that was opened."""
        with suppress(OSError):
            if _identity(self.path.stat()) == self._identity:
                return
        raise self._changed()

    async def blocks(self, offset: int, size: int) -> AsyncIterator[bytes]:
        """Yield exactly `size` bytes from `offset`. Raise FileChanged where the file is shorter."""
        end = offset + size
        while offset < end:
            block = await asyncio.to_thread(self._read, offset, min(BLOCK_BYTES, end - offset))
            yield block
            offset += len(block)

    async def md5(self, offset: int, size: int) -> bytes:
        """Return the binary MD5 of a part, which is what object stores make its ETag of."""
        digest = hashlib.md5(usedforsecurity=False)
        async for block in self.blocks(offset, size):
            await asyncio.to_thread(digest.update, block)
        return digest.digest()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

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


class Transfer:
    """One file's way to the store. `progress` is told of bytes sent, and of bytes to repeat."""

    def __init__(
        self,
        api: UploadApi,
        file: LocalFile,
        upload: UploadStarted | UploadStatus,
        *,
        parallel: int = 4,
        progress: Callable[[int], None],
    ) -> None:
        self._api, self._file, self._upload = api, file, upload
        self._parallel, self._progress = parallel, progress
        self._urls: dict[int, PartUrl] = {}
        self._arrived: dict[int, ArrivedPart] = {}
        if isinstance(upload, UploadStarted):
            self._urls = {url.number: url for url in upload.parts}
        else:
            self._arrived = {part.number: part for part in upload.parts}
        self._etags: dict[int, str] = {}
        self._asking = asyncio.Lock()
        self.parts_sent = 0

    async def run(self) -> UploadCompleted:
        """Send, complete, and return what stands in the store.

        Raises FileChanged, UploadFailed and CallFailed; what has arrived stays there.
        """
        await self._send(range(1, self._upload.part_count + 1))
        for _ in range(ROUNDS):
            try:
                return await self._complete()
            except CallFailed as failure:
                lost = self._lost(failure)
                if not lost:
                    raise
                for number in lost:
                    self._arrived.pop(number, None)
                    del self._etags[number]
                    self._progress(-self._span(number)[1])
                await self._send(lost)
        return await self._complete()

    async def _complete(self) -> UploadCompleted:
        self._file.check_unchanged()
        done = await self._api.complete(self._upload.upload_id, self._etags)
        if done.size_bytes != self._file.size:
            raise UploadFailed(
                f"the server keeps {done.size_bytes} bytes of the {self._file.size} of "
                f"{self._file.path} as video {done.video_id}: delete that, and report this"
            )
        return done

    async def _send(self, numbers: Iterable[int]) -> None:
        queue = iter(numbers)

        async def work() -> None:
            for number in queue:
                self._etags[number] = await self._part(number)

        await together(*(work() for _ in range(self._parallel)))

    async def _part(self, number: int) -> str:
        """Return the part's ETag; send the part unless the store holds these very bytes."""
        self._file.check_unchanged()
        offset, size = self._span(number)
        digest = await self._file.md5(offset, size)
        arrived = self._arrived.get(number)
        if arrived and (arrived.etag.strip('"'), arrived.size_bytes) == (digest.hex(), size):
            self._progress(size)
            return arrived.etag
        md5 = base64.b64encode(digest).decode()
        headers = {"Content-Length": str(size), "Content-MD5": md5}
        sent = 0

        async def body() -> AsyncIterator[bytes]:
            nonlocal sent
            # Another try does not count the bytes of the one before twice.
            self._progress(-sent)
            sent = 0
            self._file.check_unchanged()
            async for block in self._file.blocks(offset, size):
                yield block
                sent += len(block)
                self._progress(len(block))

        etag = await self._put(number, headers, body)
        self.parts_sent += 1
        return etag

    async def _put(
        self, number: int, headers: dict[str, str], body: Callable[[], AsyncIterator[bytes]]
    ) -> str:
        """PUT a part and return its ETag; each try takes another URL, and a new `body`.

        The URL is the permission, and may lead to another host: the token stays here.
        """
        call, mends = f"PUT part {number}", 0

        def again(failure: CallFailed) -> bool:
            nonlocal mends
            mends += failure.status in MENDABLE
            return failure.passing or (failure.status in MENDABLE and mends < MENDS)

        async def send() -> httpx.Response:
            url = await self._url(number)
            return await self._api.http.put(url, headers=headers, content=body())

        answer = await persist(call, send, self._api.patience, note=self._api.note, again=again)
        etag: str | None = answer.headers.get("ETag")
        if not etag:
            raise CallFailed(call, "the answer has no ETag, so the part can't be named")
        return etag

    def _span(self, number: int) -> tuple[int, int]:
        """Return the offset and the size of a part, in bytes."""
        offset = (number - 1) * self._upload.part_size_bytes
        return offset, min(self._upload.part_size_bytes, self._file.size - offset)

    async def _url(self, number: int) -> str:
        """Return an URL for the next try; that of the try before may be why it failed."""
        async with self._asking:
            if not self._is_good(number):
                await self._ask(number)
            return self._urls.pop(number).url

    def _is_good(self, number: int) -> bool:
        known = self._urls.get(number)
        return known is not None and known.expires_at - MARGIN > datetime.now(UTC)

    async def _ask(self, number: int) -> None:
        """Get an URL for this part, and for others that still need one."""
        needed = {*range(1, self._upload.part_count + 1)} - self._arrived.keys() - {number}
        others = (each for each in sorted(needed - self._etags.keys()) if not self._is_good(each))
        numbers = [number, *islice(others, URLS_AT_ONCE - 1)]
        for url in await self._api.part_urls(self._upload.upload_id, numbers):
            self._urls[url.number] = url
        if number not in self._urls:
            raise CallFailed("part-urls", f"no URL came for part {number}")

    def _lost(self, failure: CallFailed) -> list[int]:
        """Return the parts that the refusal of a completion calls missing or wrong."""
        if failure.slug != "parts-mismatch":
            return []
        named = {*failure.members.get("missing", ()), *failure.members.get("wrong", ())}
        return sorted(named.intersection(self._etags))

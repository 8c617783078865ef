"""Sends what is missing of one upload, several parts at once, and has them joined."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import UUID

from backlot.calls import CallFailed
from backlot.upload.api import UploadApi, UploadFailed
from backlot.upload.file import LocalFile
from commands.upload_shapes import PartUrl, UploadCompleted, UploadedPart, UploadStarted
from infra.cancellation import together
from infra.http.shapes import ArrivedPart, UploadStatus

URLS_AT_ONCE = 100
# A part is not begun under an URL that may end before it arrives.
MARGIN = timedelta(seconds=15)
ROUNDS = 3


@dataclass(frozen=True)
class TransferPlan:
    """An upload under way; sizes in bytes, `arrived` and `urls` as far as they are known."""

    upload_id: UUID
    size: int
    part_bytes: int
    part_count: int
    arrived: Mapping[int, ArrivedPart] = field(default_factory=dict)
    urls: Iterable[PartUrl] = ()

    @classmethod
    def begun(cls, started: UploadStarted, size: int) -> TransferPlan:
        """Everything is still to be sent."""
        part_bytes, part_count = started.part_size_bytes, started.part_count
        return cls(started.upload_id, size, part_bytes, part_count, urls=started.parts)

    @classmethod
    def resumed(cls, found: UploadStatus) -> TransferPlan:
        """Some parts have arrived."""
        arrived = {part.number: part for part in found.parts}
        part_bytes, part_count = found.part_size_bytes, found.part_count
        return cls(found.upload_id, found.size_bytes, part_bytes, part_count, arrived)

    def span(self, number: int) -> tuple[int, int]:
        """Offset and size of a part."""
        offset = (number - 1) * self.part_bytes
        return offset, min(self.part_bytes, self.size - offset)


class PartUrlSupply:
    """Hands out an URL per try, asking for many at once."""

    def __init__(self, api: UploadApi, plan: TransferPlan) -> None:
        self._api, self._upload_id = api, plan.upload_id
        self._known = {url.number: url for url in plan.urls}
        numbers = range(1, plan.part_count + 1)
        self._left = dict.fromkeys(number for number in numbers if number not in plan.arrived)
        self._asking = asyncio.Lock()

    async def take(self, number: int) -> str:
        """An URL for the next try; the one of the try before may be why that failed."""
        async with self._asking:
            if not self._is_good(number):
                await self._ask(number)
            return self._known.pop(number).url

    def done(self, number: int) -> None:
        """The part needs no more URLs."""
        self._left.pop(number, None)

    def _is_good(self, number: int) -> bool:
        known = self._known.get(number)
        return known is not None and known.expires_at - MARGIN > datetime.now(UTC)

    async def _ask(self, number: int) -> None:
        others = (other for other in self._left if other != number and not self._is_good(other))
        numbers = [number, *islice(others, URLS_AT_ONCE - 1)]
        for url in await self._api.part_urls(self._upload_id, numbers):
            self._known[url.number] = url
        if number not in self._known:
            raise CallFailed("part-urls", f"no URL came for part {number}")


class Transfer:
    """One file's way to the store. `progress` is told of bytes sent, and of bytes to repeat."""

    def __init__(
        self,
        api: UploadApi,
        file: LocalFile,
        plan: TransferPlan,
        *,
        parallel: int = 4,
        progress: Callable[[int], None],
    ) -> None:
        self._api, self._file, self._plan = api, file, plan
        self._parallel, self._progress = parallel, progress
        self._arrived = dict(plan.arrived)
        self._urls = PartUrlSupply(api, plan)
        self._etags: dict[int, str] = {}
        self.parts_sent = 0

    async def run(self) -> UploadCompleted:
        """Send, complete, and return what stands in the store.

        Raises FileChanged, UploadFailed and CallFailed; what has arrived stays there.
        """
        await self._send(range(1, self._plan.part_count + 1))
        for _ in range(ROUNDS):
            try:
                return await self._complete()
            except CallFailed as failure:
                lost = self._lost(failure)
                if not lost:
                    raise
                self._take_back(lost)
                await self._send(lost)
        return await self._complete()

    async def _complete(self) -> UploadCompleted:
        self._file.check_unchanged()
        etags = sorted(self._etags.items())
        parts = [UploadedPart(number=number, etag=etag) for number, etag in etags]
        done = await self._api.complete(self._plan.upload_id, parts)
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
                self._urls.done(number)

        await together(*(work() for _ in range(self._parallel)))

    async def _part(self, number: int) -> str:
        """The part's ETag, from the store if it holds these very bytes, else by sending them."""
        self._file.check_unchanged()
        offset, size = self._plan.span(number)
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

        etag = await self._api.send_part(number, self._urls.take, headers, body)
        self.parts_sent += 1
        return etag

    def _lost(self, failure: CallFailed) -> list[int]:
        """The parts that a refused completion misses, or knows as others."""
        if failure.slug != "parts-mismatch":
            return []
        named = {*failure.members.get("missing", ()), *failure.members.get("wrong", ())}
        return sorted(named.intersection(self._etags))

    def _take_back(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._arrived.pop(number, None)
            self._etags.pop(number, None)
            self._progress(-self._plan.span(number)[1])

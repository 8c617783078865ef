"""Uploads of files from event loops: what they are from threads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import httpx

from backlot_client.async_session import Sleep
from backlot_client.generated import AuthenticatedClient
from backlot_client.generated.api.uploads import complete_upload, get_part_urls, get_upload
from backlot_client.generated.models import PartNumbers, UploadCompleted, UploadStatus
from backlot_client.problem import Problem, answered
from backlot_client.retries import UNANSWERED, Attempts, RetryPolicy
from backlot_client.uploads import (
    ROUNDS,
    OnProgress,
    Progress,
    UploadFile,
    digest_headers,
    in_groups,
    may_arrive,
)

T = TypeVar("T")


class AsyncUpload:
    """An upload that has begun; keep its `upload_id` to go on with it later, in any process."""

    def __init__(
        self,
        api: AuthenticatedClient,
        parts: httpx.AsyncClient,
        policy: RetryPolicy,
        sleep: Sleep,
        path: Path,
        upload_id: UUID,
    ) -> None:
        self._api = api
        self._parts = parts
        self._policy = policy
        self._sleep = sleep
        self._file = UploadFile(path)
        self.upload_id = upload_id

    async def run(
        self, *, parallel: int = 4, on_progress: OnProgress | None = None
    ) -> UploadCompleted:
        """Send what has not arrived, and complete the upload, as Upload.run does."""
        for last in (False,) * (ROUNDS - 1) + (True,):
            status = await self._status()
            if status.status == "started":
                await self._send_missing(status, parallel, on_progress)
            try:
                return answered(
                    await complete_upload.asyncio_detailed(self.upload_id, client=self._api)
                )
            except Problem as problem:
                # Somebody else may have sent parts, or the store lost some.
                if problem.type != "parts-mismatch" or last:
                    raise
        raise AssertionError("the last round returns or raises")

    async def _status(self) -> UploadStatus:
        status: UploadStatus = answered(
            await get_upload.asyncio_detailed(self.upload_id, client=self._api)
        )
        await asyncio.to_thread(self._file.require, status)
        return status

    async def _send_missing(
        self, status: UploadStatus, parallel: int, on_progress: OnProgress | None
    ) -> None:
        arrived = {part.number: part for part in status.parts}
        done = 0
        for some in in_groups(status.part_count):
            missing: list[int] = []

            async def look(number: int, missing: list[int] = missing) -> None:
                part = arrived.get(number)
                if await asyncio.to_thread(self._file.lacks, status, number, part):
                    missing.append(number)

            await _side_by_side(look, some, parallel)
            done += len(some) - len(missing)
            urls = await self._urls(sorted(missing))

            async def send(number: int, urls: dict[int, str] = urls) -> None:
                nonlocal done
                await self._send(status, number, urls[number])
                done += 1
                if on_progress is not None:
                    on_progress(Progress(self.upload_id, done, status.part_count))

            await _side_by_side(send, urls, parallel)

    async def _urls(self, numbers: list[int]) -> dict[int, str]:
        if not numbers:
            return {}
        found = answered(
            await get_part_urls.asyncio_detailed(
                self.upload_id, client=self._api, body=PartNumbers(numbers)
            )
        )
        return {part.number: part.url for part in found.parts}

    async def _send(self, status: UploadStatus, number: int, url: str) -> None:
        piece = await asyncio.to_thread(self._file.piece, status, number)
        attempts = Attempts(self._policy)
        while True:
            try:
                response = await self._parts.put(url, content=piece, headers=digest_headers(piece))
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
            await self._sleep(pause)
            # The one before may have expired.
            url = (await self._urls([number]))[number]


async def _side_by_side(
    work: Callable[[T], Awaitable[None]], over: Iterable[T], parallel: int
) -> None:
    """Do the work for each, so many at a time; the first failure, or a cancellation, ends all."""
    waiting = iter(over)

    async def one_by_one() -> None:
        for each in waiting:
            await work(each)

    tasks = [asyncio.create_task(one_by_one()) for _ in range(parallel)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

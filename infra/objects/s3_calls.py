"""Blocking calls to S3 off the event loop: as many at once as there are threads, failures told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TypeVar

import structlog

from infra.objects.port import OBJECT_STORE_FAILURES, NoSuchUpload, ObjectStoreUnavailable
from infra.objects.s3_answers import S3Error, code_of, unavailable
from infra.objects.s3_client import THREADS

log = structlog.get_logger(__name__)

# How long a call may wait for a thread, in seconds; longer means that the store hangs.
PATIENCE = 5.0

T = TypeVar("T")


class S3Calls:
    """Runs calls to one bucket."""

    def __init__(self, bucket: str, endpoint: str) -> None:
        """Both are only for telling an operator what failed."""
        self._bucket, self._endpoint = bucket, endpoint
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")

    def close(self) -> None:
        """Take no more calls; those under way end by their timeouts."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Do blocking work in a thread. Raises NoSuchUpload, and ObjectStoreUnavailable, told."""
        asked = monotonic()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._in_time, asked, work, *args)
        except ObjectStoreUnavailable as error:
            OBJECT_STORE_FAILURES.inc()
            log.error("s3_unusable", doing=work.__name__.strip("_"), reason=error.cause)
            raise

    def here(self, work: Callable[..., T], *args: object) -> T:
        """Do the work in this thread. Raises NoSuchUpload and ObjectStoreUnavailable."""
        try:
            return work(*args)
        except S3Error as error:
            if code_of(error) == "NoSuchUpload":
                raise NoSuchUpload from error
            raise unavailable(error, self._bucket, self._endpoint) from error

    def _in_time(self, asked: float, work: Callable[..., T], *args: object) -> T:
        # A store that hangs would otherwise gather a queue that outlives every caller.
        if monotonic() - asked > PATIENCE:
            raise ObjectStoreUnavailable(
                f"All {THREADS} calls to {self._endpoint} hung for {PATIENCE:g} seconds."
            )
        return self.here(work, *args)

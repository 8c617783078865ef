"""One at a time ends an upload: the lock, and what becomes of those who find it taken."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import structlog

from commands.endpoint import Execute
from commands.queries import FindUpload, UploadFacts
from domain.errors import Conflict
from domain.upload import Status
from infra.locks import Lease, LocksUnavailable, LockTaken
from infra.metrics import counter, histogram

log = structlog.get_logger(__name__)

FIRST_PAUSE_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 0.2

UPLOAD_LOCK_WAIT_SECONDS = histogram(
    "backlot_upload_lock_wait_seconds",
    "Time until a request to complete or abort an upload had its lock, its answer or a refusal.",
)
UPLOAD_LOCK_REFUSALS = counter(
    "backlot_upload_lock_refusals",
    "Requests to complete or abort an upload that did not get its lock (taken, unavailable).",
    ("reason",),
)
UPLOAD_LOCKS_LOST = counter(
    "backlot_upload_locks_lost",
    "Locks on uploads that could not be kept until their work was done.",
)


def lock_key(upload_id: UUID) -> str:
    """Whoever holds this lock may end the upload."""
    return f"upload:finalize:{upload_id}"


class UploadFinalizing(Conflict):
    """Somebody else is about to end this upload, and was not done within the wait."""

    def __init__(self) -> None:
        super().__init__("Another request is about to end this upload; ask again for its answer.")


@dataclass(frozen=True)
class HeldUpload:
    """An upload as it was seen under its lock, or without one because it has ended."""

    facts: UploadFacts
    lease: Lease | None

    def require_lock(self) -> None:
        """Raise UploadFinalizing when others may have taken the lock in the meantime."""
        if self.lease is not None and self.lease.lost:
            UPLOAD_LOCKS_LOST.inc()
            log.warning("finalize_gave_way", upload_id=str(self.facts.upload_id))
            raise UploadFinalizing


@asynccontextmanager
async def alone(execute: Execute, upload_id: UUID) -> AsyncIterator[HeldUpload]:
    """The upload as it stands; while it is under way, nobody else ends it within the block.

    Waits a little for whoever holds it, and then sees what became of it. Raises UploadFinalizing
    when that takes too long, LocksUnavailable, and what `FindUpload` raises.
    """
    async with AsyncExitStack() as stack:
        started = time.monotonic()
        try:
            held = await _enter(stack, execute, upload_id)
        except (UploadFinalizing, LocksUnavailable) as error:
            reason = "taken" if isinstance(error, UploadFinalizing) else "unavailable"
            UPLOAD_LOCK_REFUSALS.labels(reason).inc()
            log.warning("finalize_lock_refused", upload_id=str(upload_id), reason=reason)
            raise
        finally:
            UPLOAD_LOCK_WAIT_SECONDS.observe(time.monotonic() - started)
        yield held


async def _enter(stack: AsyncExitStack, execute: Execute, upload_id: UUID) -> HeldUpload:
    """Of the requests in this process one at a time competes; the others wait for its end."""
    ending = execute.services.ending
    deadline = time.monotonic() + execute.services.finalize_wait_seconds
    while (rival := ending.get(upload_id)) is not None:
        facts = await execute.value(FindUpload(upload_id))
        if facts.status is not Status.STARTED:
            return HeldUpload(facts, None)
        await _end_of(rival, deadline)
    done = ending[upload_id] = asyncio.Event()
    stack.callback(done.set)
    stack.callback(ending.pop, upload_id)
    return await _compete(stack, execute, upload_id, deadline)


async def _end_of(rival: asyncio.Event, deadline: float) -> None:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            await rival.wait()
    except TimeoutError:
        raise UploadFinalizing from None


async def _compete(
    stack: AsyncExitStack, execute: Execute, upload_id: UUID, deadline: float
) -> HeldUpload:
    services = execute.services
    pause = FIRST_PAUSE_SECONDS
    while True:
        facts = await execute.value(FindUpload(upload_id))
        if facts.status is not Status.STARTED:
            return HeldUpload(facts, None)
        try:
            holding = services.locks.hold(lock_key(upload_id), services.finalize_lock_seconds)
            lease = await stack.enter_async_context(holding)
        except LockTaken:
            if time.monotonic() >= deadline:
                raise UploadFinalizing from None
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - only spreads
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        else:
            return HeldUpload(await execute.value(FindUpload(upload_id)), lease)

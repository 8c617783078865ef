"""Ends uploads that nobody goes on with, or that never end, and tells commands how videos engage.

Any replica may run the job. One at a time does; two at once would do no harm, because a stream
admits one end, and what follows from it in the object store can be repeated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID, uuid4

import psycopg
import structlog
from eventsourcing.persistence import PersistenceError
from psycopg import Cursor
from psycopg.rows import TupleRow

from commands.catalog import EngagementCounts, EngagementOf
from commands.upload_queries import FindUploadStatus
from commands.uploads import ENDS, ExpireUpload, FinishUpload, drop, lock_key
from domain.model import SystemActor
from domain.upload import Status
from engine.command_bus import Command, CommandBus
from engine.lookups import Readers
from engine.projection import ReadModels
from engine.reservations import Allowance, Reservations
from engine.schedule import Job, repeat
from engine.telemetry import views_of
from infra.batcher import QueueFull
from infra.metrics import counter
from infra.objects.fragments import drop_all
from infra.objects.port import NoSuchUpload, ObjectStore, ObjectStoreUnavailable, OpenUpload
from infra.postgres.connection import open_async_connection
from infra.redlock import LocksUnavailable, LockTaken, Redlock
from projections.catalog import Catalog, UploadRow
from projections.comments import Comments
from workers.parts import Parts

log = structlog.get_logger(__name__)

R = TypeVar("R")

ACTOR = SystemActor.EXPIRY
JOB_LOCK = "upload:expiry:job"
LOCK_SECONDS = 60.0
KEPT = "kept"
ROWS_AT_ONCE = 500
OUTAGES = (PersistenceError, psycopg.Error, ObjectStoreUnavailable, LocksUnavailable, QueueFull)

UPLOADS_TIDIED = counter(
    "backlot_uploads_tidied",
    "Abandoned uploads: expired; finished, because their object stood; swept from the store.",
    ("how",),
)
EXPIRY_RUNS = counter(
    "backlot_expiry_runs",
    "Runs of the job that expires uploads, by outcome (done, elsewhere, postponed, broke).",
    ("outcome",),
)


@dataclass
class Expiry:
    """Expires what was started, and got its latest part, longer ago than `idle`.

    What was started longer ago than `longest` expires, whatever still comes. Asking for a state or
    for part URLs does not count: it leaves nothing behind, and a part that follows does. The read
    model names the candidates, the store says when parts arrived, and the log decides.
    """

    bus: CommandBus
    objects: ObjectStore
    locks: Redlock
    catalog: Catalog
    database_url: str
    idle: timedelta
    longest: timedelta
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    run_id: str = ""

    async def run(self) -> Counter[str]:
        """Look once; return how many uploads were expired, finished, swept, kept, and failed.

        Raise LockTaken when another replica is at it, and whatever is in OUTAGES.
        """
        async with self.locks.hold(JOB_LOCK, LOCK_SECONDS):
            self.run_id = f"expiry-{uuid4()}"
            before = self.clock() - self.idle
            done: Counter[str] = Counter()
            async for row in self._candidates(self.clock() - self.longest):
                done[await self._tidied(str(row.upload_id), self._end(row))] += 1
            async for row in self._candidates(before):
                done[await self._tidied(str(row.upload_id), self._end_idle(row, before))] += 1
            for upload in await self.objects.list_uploads(before):
                done[await self._tidied(upload.key, self._sweep(upload))] += 1
            # A request that raced with the end of its upload may have left one.
            await self.objects.writer.sweep_fragments(self.clock() - self.longest)
            return done

    async def _tidied(self, name: str, work: Awaitable[str]) -> str:
        """Return the work's answer; an upload that fails must not hold up the others."""
        try:
            how = await work
        except OUTAGES:
            raise
        except Exception:
            how = "failed"
            log.exception("upload_not_tidied", upload=name)
        if how != KEPT:
            UPLOADS_TIDIED.labels(how).inc()
            log.info("upload_tidied", upload=name, how=how)
        return how

    async def _candidates(self, before: datetime) -> AsyncIterator[UploadRow]:
        last = UUID(int=0)
        async with await open_async_connection(self.database_url, "expiry") as conn:
            while rows := await self.catalog.under_way(conn, before, last, ROWS_AT_ONCE):
                for row in rows:
                    yield row
                last = rows[-1].upload_id

    async def _end_idle(self, row: UploadRow, before: datetime) -> str:
        return await self._end(row) if await self._is_idle(row, before) else KEPT

    async def _end(self, row: UploadRow) -> str:
        try:
            async with self.locks.hold(lock_key(row.upload_id), LOCK_SECONDS):
                standing = await self.objects.head(row.object_key)
                if standing is not None:
                    # A completion was cut off before its event; its owner need not repeat it.
                    finished = await self._execute(FinishUpload(row.upload_id, standing))
                    return "finished" if finished else KEPT
                if not await self._execute(ExpireUpload(row.upload_id)):
                    return KEPT
                await drop(self.objects, row.object_key, row.store_upload_id)
                return "expired"
        except LockTaken:
            # Somebody is just ending it.
            return KEPT

    async def _is_idle(self, row: UploadRow, before: datetime) -> bool:
        try:
            latest = await self.objects.last_arrival(row.object_key, row.store_upload_id)
        except NoSuchUpload:
            # The store gave it up by itself, or joined it for somebody who never came back.
            return True
        fragment = await self.objects.writer.last_fragment(row.object_key)
        return all(time is None or time < before for time in (latest, fragment))

    async def _sweep(self, upload: OpenUpload) -> str:
        """Drop what the store still has of an upload that is not under way in the log."""
        upload_id = UUID(upload.key.removeprefix("videos/"))
        if await self._execute(FindUploadStatus(upload_id)) is Status.STARTED:
            return KEPT
        await self.objects.abort(upload.key, upload.store_upload_id)
        await drop_all(self.objects.writer, upload.key)
        return "swept"

    async def _execute(self, command: Command[R]) -> R:
        outcome = await self.bus.execute(command, actor=ACTOR, correlation_id=self.run_id)
        return outcome.answer


def expiry_job(expiry: Expiry, every: float) -> Job:
    """Return the job that looks again and again; whatever goes wrong, there is a next time."""

    async def run() -> None:
        outcome = "done"
        try:
            log.debug("expiry_done", **await expiry.run())
        except LockTaken:
            outcome = "elsewhere"
        except OUTAGES as error:
            outcome = "postponed"
            log.warning("expiry_postponed", error=f"{type(error).__name__}: {error}")
        except Exception:
            outcome = "broke"
            log.exception("expiry_broke")
        EXPIRY_RUNS.labels(outcome).inc()

    return Job("expiry", every, repeat(run))


def jobs(parts: Parts, bus: CommandBus) -> Iterator[Job]:
    """Expire uploads."""
    settings = parts.settings.uploads
    expiry = Expiry(
        bus=bus,
        objects=parts.objects,
        locks=parts.locks,
        catalog=parts.models[Catalog],
        database_url=parts.database_url,
        idle=timedelta(days=settings.idle_days),
        longest=timedelta(days=settings.longest_days),
    )
    yield expiry_job(expiry, settings.expiry_interval_seconds)


async def open_reservations(parts: Parts, stack: AsyncExitStack) -> Reservations | None:
    """Return what limits the uploads of each user; None where nothing is limited."""
    settings = parts.settings
    if not settings.rate_limits.on:
        return None
    # One upload of the largest size fits into any day.
    per_day = max(settings.quotas.bytes_per_day, settings.uploads.max_bytes)
    allowance = Allowance(settings.quotas.open_uploads, per_day)
    found = Reservations(parts.database_url, ENDS, allowance, limits=parts.limits)
    await found.open()
    stack.push_async_callback(found.aclose)
    return found


def lookups(models: ReadModels) -> Readers:
    """Return what answers the lookups of commands about videos."""

    def engagement(
        cursor: Cursor[TupleRow], lookups: Sequence[EngagementOf]
    ) -> list[EngagementCounts]:
        videos = [each.video_id for each in lookups]
        comments = models[Comments].counts_of(cursor, videos)
        views = views_of(cursor, videos)
        return [EngagementCounts(comments.get(each, 0), views.get(each, 0)) for each in videos]

    return {EngagementOf: engagement}

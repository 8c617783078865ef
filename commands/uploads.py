"""Uploads: started, sent in parts, and ended once, whoever races and whatever is killed.

The lock only saves wasted work. What ends an upload is one event, and the version of its stream
admits one: whoever comes late, with a lock or without, finds the end that was recorded first.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID, uuid4

import structlog
from fastapi import APIRouter, Request, Response

from commands.endpoint import TOKEN_FIRST, Execute, KeptAnswer, Reply, executor
from commands.upload_queries import (
    FindCompletion,
    FindUpload,
    FindUploadStatus,
    UploadFacts,
    completion,
)
from commands.upload_shapes import CompleteUpload as CompleteUploadBody
from commands.upload_shapes import (
    PartNumbers,
    PartUrl,
    PartUrls,
    UploadAborted,
    UploadBegun,
    UploadCompleted,
    UploadedPart,
    UploadStarted,
)
from commands.upload_shapes import StartUpload as StartUploadBody
from domain.errors import Conflict, DomainError, Invalid
from domain.model import Origin
from domain.upload import Status, Upload, object_key, part_layout
from engine.command_bus import Aggregates, Command
from engine.log import topics_of
from infra.http.problems import problems
from infra.metrics import counter, histogram
from infra.objects.fragments import drop_all
from infra.objects.port import (
    NoSuchUpload,
    ObjectStore,
    ObjectStoreError,
    Part,
    PartMismatch,
    PartRef,
    StoredObject,
)
from infra.redlock import Lease, LocksUnavailable, LockTaken

log = structlog.get_logger(__name__)

R = TypeVar("R")

FIRST_URLS = 100
ENDED: frozenset[Status | None] = frozenset({Status.ABORTED, Status.EXPIRED, Status.REMOVED})
ENDS = [
    topic
    for event in (Upload.Completed, Upload.Aborted, Upload.Expired)
    for topic in topics_of(event)
]
"""What the events are called that end an upload."""
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
UPLOADS_SUPERSEDED = counter(
    "backlot_uploads_superseded",
    "Completions that came after the upload had been ended otherwise; their object was dropped.",
)


@dataclass(frozen=True)
class UploadCommand(Command[R]):
    """A command about one upload, whose id is its video's too."""

    upload_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.upload_id,)

    def upload(self, aggregates: Aggregates) -> Upload:
        """Return the upload; blank when it never began."""
        return aggregates.get(Upload, self.upload_id)

    def owned(self, aggregates: Aggregates, origin: Origin) -> Upload:
        """Return the upload to its owner; refuse anybody else."""
        upload = self.upload(aggregates)
        upload.require_own_upload(origin.actor)
        return upload


@dataclass(frozen=True)
class StartUpload(UploadCommand[UploadBegun]):
    """Begin an upload whose place in the object store is prepared; `answer` tells the client."""

    details: StartUploadBody
    store_upload_id: str
    answer: UploadBegun

    def decide(self, aggregates: Aggregates, origin: Origin) -> UploadBegun:
        upload = self.upload(aggregates)
        upload.start(
            origin,
            **self.details.model_dump(exclude={"comment_policy"}),
            part_size_bytes=self.answer.part_size_bytes,
            object_key=object_key(self.upload_id),
            store_upload_id=self.store_upload_id,
        )
        upload.change_comment_policy(self.details.comment_policy, origin)
        return self.answer


@dataclass(frozen=True)
class CompleteUpload(UploadCommand[UploadCompleted]):
    """Record that the object stands; what was completed before keeps its first answer."""

    stored: StoredObject

    def decide(self, aggregates: Aggregates, origin: Origin) -> UploadCompleted:
        upload = self.owned(aggregates, origin)
        upload.complete(self.stored.size, self.stored.etag, origin)
        return completion(upload)


@dataclass(frozen=True)
class AbortUpload(UploadCommand[UploadAborted]):
    """Give the upload up."""

    def decide(self, aggregates: Aggregates, origin: Origin) -> UploadAborted:
        self.owned(aggregates, origin).abort(origin)
        return UploadAborted(status="aborted")


@dataclass(frozen=True)
class ExpireUpload(UploadCommand[bool]):
    """The system ends an upload that nobody goes on with; answers whether it was under way."""

    def decide(self, aggregates: Aggregates, origin: Origin) -> bool:
        upload = self.upload(aggregates)
        was_under_way = upload.status is Status.STARTED
        upload.expire(origin)
        return was_under_way


@dataclass(frozen=True)
class FinishUpload(UploadCommand[bool]):
    """The system records a completion that came as far as the store; answers whether it had to."""

    stored: StoredObject

    def decide(self, aggregates: Aggregates, origin: Origin) -> bool:
        upload = self.upload(aggregates)
        was_under_way = upload.status is Status.STARTED
        if was_under_way:
            upload.complete(self.stored.size, self.stored.etag, origin)
        return was_under_way


@dataclass(frozen=True)
class RecordSpeech(UploadCommand[None]):
    """Record what a model heard, so that replays need none; of a video that is gone, nothing."""

    spoken_language: str | None
    transcript: str
    duration_seconds: float | None
    model: str

    def decide(self, aggregates: Aggregates, origin: Origin) -> None:
        self.upload(aggregates).transcribe(
            self.spoken_language, self.transcript, self.duration_seconds, self.model, origin
        )


router = APIRouter(prefix="/uploads", tags=["uploads"], dependencies=TOKEN_FIRST)


@router.post(
    "",
    status_code=201,
    response_model=UploadStarted,
    responses=problems(400, 401, 409, 413, 422, 503),
    summary="Start an upload",
)
async def start_upload(body: StartUploadBody, request: Request) -> Response:
    execute = await executor(request)
    begun = await execute.kept(UploadBegun) or await begin_upload(body, execute)
    facts = await execute.value(FindUpload(begun.facts.upload_id))
    return begun.told(UploadStarted(**begun.facts.model_dump(), parts=_first_urls(facts, execute)))


async def begin_upload(body: StartUploadBody, execute: Execute) -> KeptAnswer[UploadBegun]:
    """Begin an upload within what its owner may have; raise QuotaExceeded, and Invalid."""
    services = execute.services
    if body.size_bytes > services.max_upload_bytes:
        raise Invalid(f"`sizeBytes`: at most {services.max_upload_bytes} bytes.", field="sizeBytes")
    upload_id, reservations = uuid4(), services.reservations
    async with AsyncExitStack() as stack:
        if reservations is not None:
            held = reservations.hold(upload_id, execute.actor, body.size_bytes)
            await stack.enter_async_context(held)
        command = await _prepared(upload_id, body, execute)
        begun = await execute.keep(command, UploadBegun, status=201)
    if reservations is not None and begun.facts.upload_id != upload_id:
        # A repeat that came at the same time was first.
        await reservations.release(upload_id)
    return begun


async def _prepared(upload_id: UUID, body: StartUploadBody, execute: Execute) -> StartUpload:
    """Return the command that begins an upload; the object store is ready for it."""
    services = execute.services
    part_bytes, count = part_layout(body.size_bytes, services.part_size_bytes)
    answer = UploadBegun(
        upload_id=upload_id,
        video_id=upload_id,
        status="started",
        part_size_bytes=part_bytes,
        part_count=count,
    )
    store_upload_id = await services.objects.begin(object_key(upload_id))
    return StartUpload(upload_id, body, store_upload_id, answer)


def _first_urls(facts: UploadFacts, execute: Execute) -> list[PartUrl]:
    """Return the first URLs of an upload; none of one that has ended, whose parts are gone."""
    if facts.status is not Status.STARTED:
        return []
    return _part_urls(facts, range(1, min(len(facts.part_sizes), FIRST_URLS) + 1), execute)


@router.post(
    "/{upload_id}/part-urls",
    response_model=PartUrls,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
    summary="More part URLs",
)
async def get_part_urls(upload_id: UUID, body: PartNumbers, request: Request) -> Response:
    execute = await executor(request)
    facts = await execute.value(FindUpload(upload_id))
    _require_under_way(facts)
    urls = PartUrls(parts=_part_urls(facts, body.numbers, execute))
    asked = await execute.keep(Reply(body), PartNumbers)
    return asked.told(urls)


def _part_urls(facts: UploadFacts, numbers: Iterable[int], execute: Execute) -> list[PartUrl]:
    """Return signed URLs of these parts, in the order asked. Raise Invalid for any other part."""
    store, count, urls = execute.services.objects, len(facts.part_sizes), []
    for number in dict.fromkeys(numbers):
        if number > count:
            raise Invalid(f"`numbers`: this upload has the parts 1 to {count}.", field="numbers")
        part = (facts.object_key, facts.store_upload_id, number, facts.part_sizes[number - 1])
        signed = store.part_url(*part, execute.base_url)
        urls.append(PartUrl(number=number, url=signed.url, expires_at=signed.expires_at))
    return urls


def _require_under_way(facts: UploadFacts) -> None:
    """Raise Conflict with the state unless parts may still be sent."""
    if facts.status is not Status.STARTED:
        raise Conflict(f"The upload is {facts.status}.", uploadStatus=facts.status)


@router.post(
    "/{upload_id}/complete",
    response_model=UploadCompleted,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503, types={422: "parts-mismatch"}),
    summary="Complete the upload",
)
async def complete_upload(
    upload_id: UUID, request: Request, body: CompleteUploadBody | None = None
) -> Response:
    """Without a body, of all parts that have arrived."""
    execute = await executor(request)
    return await execute.recall() or await complete(upload_id, body.parts if body else [], execute)


async def complete(upload_id: UUID, named: Sequence[UploadedPart], execute: Execute) -> Response:
    """Make the video of the parts that are named, or of all; return the answer to that.

    Also where somebody else has completed the upload. Raise what `alone` raises, Conflict after
    another end, PartMismatch, NoSuchUpload, and ObjectStoreUnavailable.
    """
    async with alone(execute, upload_id) as held:
        if held.facts.status is Status.COMPLETED:
            return await execute(FindCompletion(upload_id))
        _require_under_way(held.facts)
        try:
            stored = await _assemble(held, named, execute.services.objects)
        except (NoSuchUpload, PartMismatch):
            # Perhaps because it was ended meanwhile: then that end is the answer.
            facts = await execute.value(FindUpload(upload_id))
            if facts.status is Status.COMPLETED:
                return await execute(FindCompletion(upload_id))
            _require_under_way(facts)
            raise
        try:
            return await execute(CompleteUpload(upload_id, stored))
        except DomainError:
            await _drop_unless_wanted(held.facts, execute)
            raise


@router.delete(
    "/{upload_id}",
    response_model=UploadAborted,
    responses=problems(401, 403, 404, 409, 422, 503),
    summary="Abort the upload",
)
async def abort_upload(upload_id: UUID, request: Request) -> Response:
    return await give_up(upload_id, await executor(request))


async def give_up(upload_id: UUID, execute: Execute) -> Response:
    """Abort an upload, and free what the store has of it; raise what `alone` raises, Conflict."""
    # Under the lock too, so that no parts are taken from under a completion.
    async with alone(execute, upload_id) as held:
        answer = await execute(AbortUpload(upload_id))
        await drop(execute.services.objects, held.facts.object_key, held.facts.store_upload_id)
        return answer


async def _assemble(
    held: HeldUpload, named: Sequence[UploadedPart], store: ObjectStore
) -> StoredObject:
    """Join the parts in the store; raise PartMismatch unless exactly the declared file arrived."""
    facts = held.facts
    refs = [PartRef(part.number, part.etag) for part in named]
    try:
        arrived = await store.list_parts(facts.object_key, facts.store_upload_id)
    except NoSuchUpload:
        # Perhaps a completion before this one came as far as the store, and not to its event.
        standing = await store.head(facts.object_key)
        if standing is None:
            raise
        if not refs:
            return standing
    else:
        refs = refs or [PartRef(part.number, part.etag) for part in arrived]
        _check_parts(facts, arrived, {ref.number for ref in refs})
    held.require_lock()
    return await store.complete(facts.object_key, facts.store_upload_id, refs)


def _check_parts(facts: UploadFacts, arrived: Sequence[Part], named: set[int]) -> None:
    sizes = {part.number: part.size for part in arrived}
    expected = dict(enumerate(facts.part_sizes, start=1))
    missing = [number for number in expected if number not in sizes or number not in named]
    wrong = named - expected.keys()
    wrong.update(number for number, size in sizes.items() if expected.get(number, size) != size)
    if missing or wrong:
        raise PartMismatch(missing, sorted(wrong))


async def _drop_unless_wanted(facts: UploadFacts, execute: Execute) -> None:
    """Take back an object that was made of an upload which somebody else had ended."""
    if await execute.value(FindUploadStatus(facts.upload_id)) in ENDED:
        UPLOADS_SUPERSEDED.inc()
        log.warning("finalized_too_late", upload_id=str(facts.upload_id))
        await drop(execute.services.objects, facts.object_key, facts.store_upload_id)


async def drop(store: ObjectStore, key: str, store_upload_id: str) -> None:
    """Free what an ended upload holds; what can't be freed now is only lost room."""
    try:
        await store.abort(key, store_upload_id)
        await drop_all(store.writer, key)
        await store.delete(key)
    except ObjectStoreError as error:
        log.warning("ended_upload_remains", key=key, error=str(error))


def lock_key(upload_id: UUID) -> str:
    """Return the name of the lock whose holder may end the upload."""
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
    """Yield the upload as it stands; while it is under way, nobody else ends it within the block.

    Wait a little for whoever holds it, and then look what became of it. Raise UploadFinalizing
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
    """Let one request of this process at a time compete for the lock; the others wait for it."""
    ending = execute.services.ending
    deadline = time.monotonic() + execute.services.finalize_wait_seconds
    while (rival := ending.get(upload_id)) is not None:
        facts = await execute.value(FindUpload(upload_id))
        if facts.status is not Status.STARTED:
            return HeldUpload(facts, None)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await rival.wait()
        except TimeoutError:
            raise UploadFinalizing from None
    done = ending[upload_id] = asyncio.Event()
    stack.callback(done.set)
    stack.callback(ending.pop, upload_id)
    return await _compete(stack, execute, upload_id, deadline)


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

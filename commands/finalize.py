"""How an upload ends: completed once, given up or expired, whoever races and whatever is killed.

The lock only saves wasted work. What ends an upload is one event, and the version of its stream
admits one: whoever comes late, with a lock or without, finds the end that was recorded first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog
from fastapi import APIRouter, Request, Response

from commands.command import Aggregates, Command
from commands.endpoint import TOKEN_FIRST, Execute, executor
from commands.finalize_lock import HeldUpload, alone
from commands.queries import FindCompletion, FindUpload, FindUploadStatus, UploadFacts, completion
from commands.upload_shapes import CompleteUpload as CompleteUploadBody
from commands.upload_shapes import UploadAborted, UploadCompleted, UploadedPart
from commands.uploads import require_under_way
from domain.errors import DomainError
from domain.model import Origin
from domain.upload import Status, Upload
from infra.metrics import counter
from infra.objects import (
    NoSuchUpload,
    ObjectStore,
    ObjectStoreError,
    Part,
    PartMismatch,
    PartRef,
    StoredObject,
)
from infra.problems import problems

log = structlog.get_logger(__name__)

ENDED: frozenset[Status | None] = frozenset({Status.ABORTED, Status.EXPIRED, Status.REMOVED})

UPLOADS_SUPERSEDED = counter(
    "backlot_uploads_superseded",
    "Completions that came after the upload had been ended otherwise; their object was dropped.",
)


@dataclass(frozen=True)
class CompleteUpload(Command[UploadCompleted]):
    """Record that the object stands; what was completed before keeps its first answer."""

    upload_id: UUID
    stored: StoredObject

    def streams(self) -> Sequence[UUID]:
        return (self.upload_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> UploadCompleted:
        upload = aggregates.get(Upload, self.upload_id)
        upload.require_known()
        upload.require_owner(origin.actor)
        upload.complete(self.stored.size, self.stored.etag, origin)
        return completion(upload)


@dataclass(frozen=True)
class AbortUpload(Command[UploadAborted]):
    """Give the upload up."""

    upload_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.upload_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> UploadAborted:
        upload = aggregates.get(Upload, self.upload_id)
        upload.require_known()
        upload.require_owner(origin.actor)
        upload.abort(origin)
        return UploadAborted(status="aborted")


@dataclass(frozen=True)
class ExpireUpload(Command[bool]):
    """The system ends an upload that nobody goes on with; answers whether it was under way."""

    upload_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.upload_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> bool:
        upload = aggregates.get(Upload, self.upload_id)
        was_under_way = upload.status is Status.STARTED
        upload.expire(origin)
        return was_under_way


@dataclass(frozen=True)
class FinishUpload(Command[bool]):
    """The system records a completion that came as far as the store; answers whether it had to."""

    upload_id: UUID
    stored: StoredObject

    def streams(self) -> Sequence[UUID]:
        return (self.upload_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> bool:
        upload = aggregates.get(Upload, self.upload_id)
        was_under_way = upload.status is Status.STARTED
        if was_under_way:
            upload.complete(self.stored.size, self.stored.etag, origin)
        return was_under_way


router = APIRouter(prefix="/uploads", tags=["uploads"], dependencies=TOKEN_FIRST)


@router.post(
    "/{upload_id}/complete",
    response_model=UploadCompleted,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
    summary="Complete the upload",
)
async def complete_upload(
    upload_id: UUID, request: Request, body: CompleteUploadBody | None = None
) -> Response:
    execute = await executor(request)
    repeated = await execute.recall()
    if repeated is not None:
        return repeated
    async with alone(execute, upload_id) as held:
        if held.facts.status is Status.COMPLETED:
            return await execute(FindCompletion(upload_id))
        require_under_way(held.facts)
        try:
            stored = await _assemble(held, body.parts if body else [], execute.services.objects)
        except (NoSuchUpload, PartMismatch):
            # Perhaps because it was ended meanwhile: then that end is the answer.
            facts = await execute.value(FindUpload(upload_id))
            if facts.status is Status.COMPLETED:
                return await execute(FindCompletion(upload_id))
            require_under_way(facts)
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
    execute = await executor(request)
    # Under the lock too, so that no parts are taken from under a completion.
    async with alone(execute, upload_id) as held:
        answer = await execute(AbortUpload(upload_id))
        await drop(execute.services.objects, held.facts.object_key, held.facts.store_upload_id)
        return answer


async def _assemble(
    held: HeldUpload, named: Sequence[UploadedPart], store: ObjectStore
) -> StoredObject:
    """Join the parts in the store; raises PartMismatch unless exactly the declared file arrived."""
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
    wrong = [n for n in sizes | dict.fromkeys(named) if n in named and n not in expected]
    wrong += [n for n, size in sizes.items() if n in expected and expected[n] != size]
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
        await store.delete(key)
    except ObjectStoreError as error:
        log.warning("ended_upload_remains", key=key, error=str(error))

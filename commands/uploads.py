"""Uploads: start, more part URLs, complete, abort."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import structlog
from fastapi import APIRouter, Request, Response

from commands.command import Aggregates, Command
from commands.endpoint import TOKEN_FIRST, Execute, Reply, executor
from domain.errors import Conflict, Invalid
from domain.model import Origin
from domain.upload import Status, Upload, object_key, part_layout
from infra import contract
from infra.http import problems
from infra.objects import ObjectStoreError, Part, PartMismatch, PartRef, StoredObject

log = structlog.get_logger(__name__)

FIRST_URLS = 100


@dataclass(frozen=True)
class Facts:
    """What an upload is, apart from the live aggregate."""

    upload_id: UUID
    status: Status
    object_key: str
    store_upload_id: str
    size_bytes: int
    part_sizes: Sequence[int]


@dataclass(frozen=True)
class StartUpload(Command[contract.UploadStarted]):
    """Begin an upload whose place in the object store is prepared; `answer` tells the client."""

    upload_id: UUID
    details: contract.StartUpload
    part_size_bytes: int
    object_key: str
    store_upload_id: str
    answer: contract.UploadStarted

    def streams(self) -> Sequence[UUID]:
        return (self.upload_id,)

    def decide(self, aggregates: Aggregates, origin: Origin, found: Any) -> contract.UploadStarted:
        aggregates.get(Upload, self.upload_id).start(
            origin,
            **self.details.model_dump(),
            part_size_bytes=self.part_size_bytes,
            object_key=self.object_key,
            store_upload_id=self.store_upload_id,
        )
        return self.answer


@dataclass(frozen=True)
class LookAtUpload(Command[Facts]):
    """The owner's look at the upload as it stands in the log; records nothing."""

    upload_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.upload_id,)

    def decide(self, aggregates: Aggregates, origin: Origin, found: Any) -> Facts:
        upload = aggregates.get(Upload, self.upload_id)
        upload.require_known()
        upload.require_owner(origin.actor)
        return Facts(
            upload.id,
            upload.status or Status.STARTED,
            upload.object_key,
            upload.store_upload_id,
            upload.size_bytes,
            [upload.part_bytes(number + 1) for number in range(upload.part_count)],
        )


@dataclass(frozen=True)
class CompleteUpload(Command[contract.UploadCompleted]):
    """Record that the object stands; what was completed before keeps its first answer."""

    upload_id: UUID
    size_bytes: int
    etag: str

    def streams(self) -> Sequence[UUID]:
        return (self.upload_id,)

    def decide(
        self, aggregates: Aggregates, origin: Origin, found: Any
    ) -> contract.UploadCompleted:
        upload = aggregates.get(Upload, self.upload_id)
        upload.require_known()
        upload.require_owner(origin.actor)
        upload.complete(self.size_bytes, self.etag, origin)
        return contract.UploadCompleted(
            upload_id=upload.id,
            video_id=upload.id,
            status="completed",
            size_bytes=upload.size_bytes,
            etag=upload.etag,
        )


@dataclass(frozen=True)
class AbortUpload(Command[contract.UploadAborted]):
    """Give the upload up."""

    upload_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.upload_id,)

    def decide(self, aggregates: Aggregates, origin: Origin, found: Any) -> contract.UploadAborted:
        upload = aggregates.get(Upload, self.upload_id)
        upload.require_known()
        upload.require_owner(origin.actor)
        upload.abort(origin)
        return contract.UploadAborted(status="aborted")


router = APIRouter(prefix="/uploads", tags=["uploads"], dependencies=TOKEN_FIRST)


@router.post(
    "",
    status_code=201,
    response_model=contract.UploadStarted,
    responses=problems(400, 401, 409, 413, 422, 503),
    summary="Start an upload",
)
async def start_upload(body: contract.StartUpload, request: Request) -> Response:
    execute = await executor(request)
    repeated = await execute.recall()
    if repeated is not None:
        return repeated
    services = execute.services
    if body.size_bytes > services.max_upload_bytes:
        raise Invalid(f"`sizeBytes`: at most {services.max_upload_bytes} bytes.", field="sizeBytes")
    upload_id = uuid4()
    key = object_key(upload_id)
    part_bytes, count = part_layout(body.size_bytes, services.part_size_bytes)
    store_upload_id = await services.objects.begin(key)
    sizes = [part_bytes] * (count - 1) + [body.size_bytes - part_bytes * (count - 1)]
    facts = Facts(upload_id, Status.STARTED, key, store_upload_id, body.size_bytes, sizes)
    answer = contract.UploadStarted(
        upload_id=upload_id,
        video_id=upload_id,
        status="started",
        part_size_bytes=part_bytes,
        part_count=count,
        parts=part_urls(facts, range(1, min(count, FIRST_URLS) + 1), execute),
    )
    command = StartUpload(upload_id, body, part_bytes, key, store_upload_id, answer)
    return await execute(command, status=201)


@router.post(
    "/{upload_id}/part-urls",
    response_model=contract.PartUrls,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
    summary="More part URLs",
)
async def more_part_urls(upload_id: UUID, body: contract.PartNumbers, request: Request) -> Response:
    execute = await executor(request)
    facts = await execute.value(LookAtUpload(upload_id))
    _require_under_way(facts)
    return await execute(Reply(contract.PartUrls(parts=part_urls(facts, body.numbers, execute))))


@router.post(
    "/{upload_id}/complete",
    response_model=contract.UploadCompleted,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
    summary="Complete the upload",
)
async def complete_upload(
    upload_id: UUID, request: Request, body: contract.CompleteUpload | None = None
) -> Response:
    execute = await executor(request)
    facts = await execute.value(LookAtUpload(upload_id))
    if facts.status is Status.COMPLETED:
        return await execute(CompleteUpload(upload_id, facts.size_bytes, ""))
    _require_under_way(facts)
    stored = await _assemble(facts, body.parts if body else [], execute)
    try:
        return await execute(CompleteUpload(upload_id, stored.size, stored.etag))
    except Conflict:
        # It was aborted while the parts were being joined: the abort wins.
        await _drop(facts, execute)
        raise


@router.delete(
    "/{upload_id}",
    response_model=contract.UploadAborted,
    responses=problems(401, 403, 404, 409, 422, 503),
    summary="Abort the upload",
)
async def abort_upload(upload_id: UUID, request: Request) -> Response:
    execute = await executor(request)
    facts = await execute.value(LookAtUpload(upload_id))
    answer = await execute(AbortUpload(upload_id))
    await _drop(facts, execute)
    return answer


def part_urls(facts: Facts, numbers: Iterable[int], execute: Execute) -> list[contract.PartUrl]:
    """Signed URLs of these parts, in the order asked; raises Invalid for a number out of range."""
    urls = []
    for number in dict.fromkeys(numbers):
        if number > len(facts.part_sizes):
            raise Invalid(
                f"`numbers`: this upload has the parts 1 to {len(facts.part_sizes)}.",
                field="numbers",
            )
        signed = execute.services.objects.part_url(
            facts.object_key,
            facts.store_upload_id,
            number,
            facts.part_sizes[number - 1],
            execute.base_url,
        )
        urls.append(contract.PartUrl(number=number, url=signed.url, expires_at=signed.expires_at))
    return urls


async def _assemble(
    facts: Facts, named: Sequence[contract.UploadedPart], execute: Execute
) -> StoredObject:
    """Join the parts in the store; raises PartMismatch unless exactly the declared file arrived."""
    store = execute.services.objects
    refs = [PartRef(part.number, part.etag) for part in named]
    standing = await store.head(facts.object_key)
    if standing is not None and not refs:
        # A completion before this one came as far as the store, and not to its event.
        return standing
    if standing is None:
        arrived = await store.list_parts(facts.object_key, facts.store_upload_id)
        refs = refs or [PartRef(part.number, part.etag) for part in arrived]
        _check_parts(facts, arrived, {ref.number for ref in refs})
    return await store.complete(facts.object_key, facts.store_upload_id, refs)


def _check_parts(facts: Facts, arrived: Sequence[Part], named: set[int]) -> None:
    sizes = {part.number: part.size for part in arrived}
    expected = dict(enumerate(facts.part_sizes, start=1))
    missing = [number for number in expected if number not in sizes or number not in named]
    wrong = [n for n in sizes | dict.fromkeys(named) if n in named and n not in expected]
    wrong += [n for n, size in sizes.items() if n in expected and expected[n] != size]
    if missing or wrong:
        raise PartMismatch(missing, sorted(wrong))


def _require_under_way(facts: Facts) -> None:
    if facts.status is not Status.STARTED:
        raise Conflict(f"The upload is {facts.status}.", uploadStatus=facts.status)


async def _drop(facts: Facts, execute: Execute) -> None:
    """Free what a given-up upload holds; what can't be freed now is only lost room."""
    store = execute.services.objects
    try:
        await store.abort(facts.object_key, facts.store_upload_id)
        await store.delete(facts.object_key)
    except ObjectStoreError as error:
        log.warning("aborted_bytes_remain", key=facts.object_key, error=str(error))

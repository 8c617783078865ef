"""Uploads on their way: start, more part URLs. How they end: `commands/finalize.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

from fastapi import APIRouter, Request, Response

from commands.endpoint import TOKEN_FIRST, Execute, Reply, Services, executor
from commands.queries import FindUpload, UploadFacts
from commands.upload_shapes import PartNumbers, PartUrl, PartUrls, UploadBegun, UploadStarted
from commands.upload_shapes import StartUpload as StartUploadBody
from domain.errors import Conflict, Invalid
from domain.model import Origin
from domain.upload import Status, Upload, object_key, part_layout
from engine.command_bus import Aggregates, Command
from infra.http.problems import problems

FIRST_URLS = 100


@dataclass(frozen=True)
class StartUpload(Command[UploadBegun]):
    """Begin an upload whose place in the object store is prepared; `answer` tells the client."""

    upload_id: UUID
    details: StartUploadBody
    part_size_bytes: int
    object_key: str
    store_upload_id: str
    answer: UploadBegun

    def streams(self) -> Sequence[UUID]:
        return (self.upload_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> UploadBegun:
        aggregates.get(Upload, self.upload_id).start(
            origin,
            **self.details.model_dump(),
            part_size_bytes=self.part_size_bytes,
            object_key=self.object_key,
            store_upload_id=self.store_upload_id,
        )
        return self.answer


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
    begun = await execute.kept(UploadBegun)
    if begun is None:
        command = await _prepared(body, execute.services)
        begun = await execute.keep(command, UploadBegun, status=201)
    facts = await execute.value(FindUpload(begun.facts.upload_id))
    return begun.told(UploadStarted(**begun.facts.model_dump(), parts=_first_urls(facts, execute)))


async def _prepared(body: StartUploadBody, services: Services) -> StartUpload:
    """The command that begins an upload, for which the object store is ready."""
    if body.size_bytes > services.max_upload_bytes:
        raise Invalid(f"`sizeBytes`: at most {services.max_upload_bytes} bytes.", field="sizeBytes")
    upload_id = uuid4()
    key = object_key(upload_id)
    part_bytes, count = part_layout(body.size_bytes, services.part_size_bytes)
    answer = UploadBegun(
        upload_id=upload_id,
        video_id=upload_id,
        status="started",
        part_size_bytes=part_bytes,
        part_count=count,
    )
    return StartUpload(upload_id, body, part_bytes, key, await services.objects.begin(key), answer)


def _first_urls(facts: UploadFacts, execute: Execute) -> list[PartUrl]:
    """The first URLs of an upload; of one that has ended, whose parts are gone, none."""
    if facts.status is not Status.STARTED:
        return []
    return part_urls(facts, range(1, min(len(facts.part_sizes), FIRST_URLS) + 1), execute)


@router.post(
    "/{upload_id}/part-urls",
    response_model=PartUrls,
    responses=problems(400, 401, 403, 404, 409, 413, 422, 503),
    summary="More part URLs",
)
async def more_part_urls(upload_id: UUID, body: PartNumbers, request: Request) -> Response:
    execute = await executor(request)
    facts = await execute.value(FindUpload(upload_id))
    require_under_way(facts)
    urls = PartUrls(parts=part_urls(facts, body.numbers, execute))
    asked = await execute.keep(Reply(body), PartNumbers)
    return asked.told(urls)


def part_urls(facts: UploadFacts, numbers: Iterable[int], execute: Execute) -> list[PartUrl]:
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
        urls.append(PartUrl(number=number, url=signed.url, expires_at=signed.expires_at))
    return urls


def require_under_way(facts: UploadFacts) -> None:
    """Raise Conflict with the state unless parts may still be sent."""
    if facts.status is not Status.STARTED:
        raise Conflict(f"The upload is {facts.status}.", uploadStatus=facts.status)

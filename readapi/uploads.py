"""How an upload stands, and which of its parts have arrived: what resuming it takes."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Response

from infra.http.app import Caller, wire
from infra.http.problems import Problem, problems
from infra.http.shapes import ArrivedPart, UploadStatus
from infra.objects.port import NoSuchUpload, ObjectStore, Part
from projections.catalog import UploadRow
from readapi.queries import Fresh, Read

router = APIRouter(tags=["uploads"])


@router.get(
    "/uploads/{upload_id}",
    response_model=UploadStatus,
    responses=problems(401, 403, 404, 422, 503),
    summary="An upload and its arrived parts",
)
async def get_upload(upload_id: UUID, queries: Read, caller: Caller, fresh: Fresh) -> Response:
    async with queries.reading(fresh, queries.catalog) as conn:
        found = await queries.catalog.upload(conn, upload_id)
    if found is None:
        raise Problem(404, "not-found", "There is no such upload.")
    if caller.user_id != found.owner and not caller.is_admin:
        raise Problem(403, "forbidden", "This belongs to another user.")
    return wire(_present(found, await _arrived(found, queries.objects)))


async def _arrived(row: UploadRow, store: ObjectStore) -> list[Part]:
    if row.status != "started":
        return []
    try:
        return await store.list_parts(row.object_key, row.store_upload_id)
    except NoSuchUpload:
        # Completed or aborted a moment ago: its event is not projected yet.
        return []


def _present(row: UploadRow, parts: list[Part]) -> UploadStatus:
    """Return a row and the store's parts as the contract wants them."""
    return UploadStatus.model_validate(
        {
            "upload_id": row.upload_id,
            "video_id": row.upload_id,
            "status": row.status,
            "size_bytes": row.size_bytes,
            "part_size_bytes": row.part_size_bytes,
            "part_count": -(-row.size_bytes // row.part_size_bytes),
            "parts": [
                ArrivedPart(number=part.number, etag=part.etag, size_bytes=part.size)
                for part in parts
            ],
        }
    )

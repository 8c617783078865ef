"""The ends of uploads in the words of S3, for clients such as Uppy's `@uppy/aws-s3`.

They send parts by signed URLs as to any bucket, and are sent here for the calls on the upload
itself, which has to end in the log: `/uploads/{upload_id}/s3` in place of `?uploadId=`.
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import Field

from commands.endpoint import TOKEN_FIRST, executor
from commands.upload_shapes import UploadCompleted
from commands.uploads import complete, give_up
from domain.upload import object_key
from infra.http.problems import problems
from infra.http.shapes import Wire
from infra.objects.s3_xml import S3Response

BUCKET = "backlot"

router = APIRouter(prefix="/uploads", tags=["uploads"], dependencies=TOKEN_FIRST)


class CompleteMultipartUploadResult(Wire):
    """What S3 answers to a completion: `Location` is the video."""

    location: Annotated[str, Field(alias="Location")]
    bucket: Annotated[str, Field(alias="Bucket")]
    key: Annotated[str, Field(alias="Key")]
    etag: Annotated[str, Field(alias="ETag")]


@router.post(
    "/{upload_id}/s3",
    response_model=CompleteMultipartUploadResult,
    response_class=S3Response,
    responses=problems(401, 403, 404, 409, 422, 503),
    summary="Complete the upload, as CompleteMultipartUpload of S3",
)
async def complete_as_s3(upload_id: UUID, request: Request) -> Response:
    """The parts that arrived make the film, whatever the body names."""
    execute = await executor(request, b"")
    answer = await complete(upload_id, (), execute)
    found = UploadCompleted.model_validate_json(bytes(answer.body))
    fields = [
        ("Location", f"{execute.base_url}/videos/{upload_id}"),
        ("Bucket", BUCKET),
        ("Key", object_key(upload_id)),
        ("ETag", f'"{found.etag}"'),
    ]
    position = {"Backlot-Position": answer.headers["Backlot-Position"]}
    return S3Response.of(CompleteMultipartUploadResult.__name__, fields, position)


@router.delete(
    "/{upload_id}/s3",
    status_code=204,
    response_class=Response,
    responses=problems(401, 403, 404, 409, 422, 503),
    summary="Abort the upload, as AbortMultipartUpload of S3",
)
async def abort_as_s3(upload_id: UUID, request: Request) -> Response:
    answer = await give_up(upload_id, await executor(request))
    position = {"Backlot-Position": answer.headers["Backlot-Position"]}
    return Response(status_code=204, headers=position)

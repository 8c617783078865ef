"""The wire shapes of uploads.

They have a module of their own because the upload client reads them without the web framework.
"""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from domain.upload import CommentPolicy, Visibility
from infra.http.shapes import RequestBody, Time, Wire

Title = Annotated[str, Field(min_length=1, max_length=200, examples=["A walk in the rain"])]
Description = Annotated[str, Field(max_length=5_000, examples=["Filmed in one take."])]
Category = Annotated[str, Field(min_length=1, max_length=50, examples=["nature"])]
PartNumber = Annotated[int, Field(ge=1, le=10_000, strict=True)]
ETag = Annotated[
    str, Field(min_length=1, max_length=256, examples=['"9bb58f26192e4ba00f01e2e7b136bbd8"'])
]


class StartUpload(RequestBody):
    """What to upload. `size_bytes` is the exact size of the file."""

    title: Title
    filename: Annotated[str, Field(min_length=1, max_length=255, examples=["rain.mp4"])]
    content_type: Annotated[str, Field(max_length=200, examples=["video/mp4"])]
    size_bytes: Annotated[int, Field(ge=1, strict=True, examples=[10_485_760])]
    description: Description | None = None
    category: Category | None = None
    visibility: Visibility = Visibility.PUBLIC
    comment_policy: CommentPolicy = CommentPolicy.OPEN


class PartUrl(Wire):
    """Where to PUT one part, and until when."""

    number: int
    url: str
    expires_at: Time


class UploadBegun(Wire):
    """A begun upload, without what expires."""

    upload_id: UUID
    video_id: UUID
    status: Literal["started"]
    part_size_bytes: int
    part_count: int


class UploadStarted(UploadBegun):
    """A begun upload, with the URLs of its first (up to 100) parts."""

    parts: list[PartUrl]


class PartNumbers(RequestBody):
    """Of which parts the URLs are wanted."""

    numbers: Annotated[list[PartNumber], Field(min_length=1, max_length=100, examples=[[101, 102]])]


class PartUrls(Wire):
    """More part URLs."""

    parts: list[PartUrl]


class UploadedPart(RequestBody):
    """A part as the store acknowledged it."""

    number: PartNumber
    etag: ETag


class CompleteUpload(RequestBody):
    """The parts that make the file; none: all that were uploaded."""

    parts: Annotated[list[UploadedPart], Field(max_length=10_000)] = []  # noqa: RUF012 - pydantic copies it


class UploadCompleted(Wire):
    """The finished object; `etag` is the object store's."""

    upload_id: UUID
    video_id: UUID
    status: Literal["completed"]
    size_bytes: int
    etag: str


class UploadAborted(Wire):
    """The upload was given up."""

    status: Literal["aborted"]

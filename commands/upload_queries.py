"""What routes and tasks ask the log about uploads before they act: queries, which record nothing.

They see every command that was acknowledged before; read models may lag behind it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self, TypeVar
from uuid import UUID

from commands.upload_shapes import UploadCompleted
from domain.errors import NotFound
from domain.model import Origin
from domain.upload import NOBODY, UNKNOWN_VIDEO, Status, Upload, VideoViewer
from engine.command_bus import Aggregates, Query

R = TypeVar("R")


@dataclass(frozen=True)
class UploadFacts:
    """What an upload is, apart from the live aggregate."""

    upload_id: UUID
    status: Status
    object_key: str
    store_upload_id: str
    size_bytes: int
    part_sizes: Sequence[int]

    @classmethod
    def of(cls, upload: Upload) -> Self:
        """Return the facts of an upload that is known."""
        return cls(
            upload.id,
            upload.status or Status.STARTED,
            upload.object_key,
            upload.store_upload_id,
            upload.size_bytes,
            [upload.part_bytes(number + 1) for number in range(upload.part_count)],
        )


@dataclass(frozen=True)
class UploadQuery(Query[R]):
    """A question about one upload, or about the video of the same id."""

    upload_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (self.upload_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> R:
        return self.answer(aggregates.get(Upload, self.upload_id), origin)

    @abstractmethod
    def answer(self, upload: Upload, origin: Origin) -> R:
        """Return the answer to whoever asks; raise DomainError."""


class FindUpload(UploadQuery[UploadFacts]):
    """Return an upload's facts to its owner; refuse anybody else."""

    def answer(self, upload: Upload, origin: Origin) -> UploadFacts:
        return UploadFacts.of(_owned(upload, origin))


@dataclass(frozen=True)
class UploadDetails:
    """An upload with what its owner said of it, and when it began."""

    facts: UploadFacts
    title: str
    filename: str
    content_type: str
    started_at: datetime | None


class FindUploadDetails(UploadQuery[UploadDetails]):
    """Return an upload's facts and details to its owner; refuse anybody else."""

    def answer(self, upload: Upload, origin: Origin) -> UploadDetails:
        found = _owned(upload, origin)
        return UploadDetails(
            UploadFacts.of(found),
            found.title,
            found.filename,
            found.content_type,
            found.started_at,
        )


class FindCompletion(UploadQuery[UploadCompleted]):
    """Return the answer of a completion that is recorded."""

    def answer(self, upload: Upload, origin: Origin) -> UploadCompleted:
        return completion(_owned(upload, origin))


class FindUploadStatus(UploadQuery[Status | None]):
    """Return the status of anybody's upload to the system; None when it never began."""

    def answer(self, upload: Upload, origin: Origin) -> Status | None:
        return upload.status


@dataclass(frozen=True)
class VideoFile:
    """What a player needs to know about a video's file."""

    content_type: str
    filename: str


@dataclass(frozen=True)
class FindVideoFile(UploadQuery[VideoFile]):
    """Return the file of a video that the viewer may see; refuse any other."""

    viewer: VideoViewer = NOBODY

    def answer(self, upload: Upload, origin: Origin) -> VideoFile:
        upload.require_visible(self.viewer)
        return VideoFile(upload.content_type, upload.filename)


@dataclass(frozen=True)
class FindVisible(Query[list[UUID]]):
    """Return those of some videos that the viewer may see, or could; refuse where there is none."""

    videos: Sequence[UUID]
    viewer: VideoViewer

    def streams(self) -> Sequence[UUID]:
        return self.videos

    def decide(self, aggregates: Aggregates, origin: Origin) -> list[UUID]:
        found = [
            video for video in self.videos if aggregates.get(Upload, video).visible_to(self.viewer)
        ]
        if not found:
            raise NotFound(UNKNOWN_VIDEO)
        return found


@dataclass(frozen=True)
class FindUntranscribed(UploadQuery[str | None]):
    """Return the object key of a video that `model` has not transcribed; else None."""

    model: str

    def answer(self, upload: Upload, origin: Origin) -> str | None:
        transcribed = upload.transcribed_by == self.model
        wanted = upload.status is Status.COMPLETED and not transcribed
        return upload.object_key if wanted else None


def completion(upload: Upload) -> UploadCompleted:
    """Return the answer to the completion of an upload."""
    return UploadCompleted(
        upload_id=upload.id,
        video_id=upload.id,
        status="completed",
        size_bytes=upload.size_bytes,
        etag=upload.etag,
    )


def _owned(upload: Upload, origin: Origin) -> Upload:
    upload.require_own_upload(origin.actor)
    return upload

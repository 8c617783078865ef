"""Uploads; a completed upload is the video, under the same id."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple
from uuid import UUID

from domain.errors import Conflict, NotAllowed, NotFound
from domain.media_type import check_film_type
from domain.model import Aggregate, Origin, Personal
from domain.text import check_text

UNKNOWN_VIDEO = "There is no such video."
MAX_PARTS = 10_000
MEBIBYTE = 1024 * 1024
MAX_TRANSCRIPT = 100_000


class Status(StrEnum):
    """Where an upload stands; only a completed one is a video that others see."""

    STARTED = "started"
    COMPLETED = "completed"
    ABORTED = "aborted"
    EXPIRED = "expired"
    REMOVED = "removed"


class CommentPolicy(StrEnum):
    """Who comments on a video: everybody, whoever its owner approves of each time, or nobody."""

    OPEN = "open"
    APPROVAL = "approval"
    CLOSED = "closed"


class Visibility(StrEnum):
    """Who a video is for: everybody, whoever knows its id, or its owner and moderators alone."""

    PUBLIC = "public"
    UNLISTED = "unlisted"
    PRIVATE = "private"


class VideoViewer(NamedTuple):
    """Who wants to see a video; without a `user_id` nobody knows, `sees_all` moderators do."""

    user_id: str | None = None
    sees_all: bool = False


NOBODY = VideoViewer()


def is_visible(visibility: str, owner: str, viewer: VideoViewer) -> bool:
    """Return whether this viewer may see a video; to one who may not, there is no such video."""
    return visibility != Visibility.PRIVATE or viewer.user_id == owner or viewer.sees_all


def is_listed(visibility: str, owner: str, viewer: VideoViewer) -> bool:
    """Return whether a list shows the video to this viewer: what is not public, only to its owner.

    What ranks, recommends or searches shows public videos alone, also to their owners.
    """
    return visibility == Visibility.PUBLIC or viewer.user_id == owner


def object_key(upload_id: UUID) -> str:
    """Return where the upload's object lies in the object store; unique, because the id is."""
    return f"videos/{upload_id}"


def part_layout(size_bytes: int, preferred_part_bytes: int) -> tuple[int, int]:
    """Return the size of every part but the last (bytes) and their number, at most 10,000 (S3).

    The preferred size is raised in whole MiB when the upload would need more parts than that.
    """
    smallest = -(-size_bytes // MAX_PARTS)
    part_bytes = preferred_part_bytes
    if smallest > part_bytes:
        part_bytes = -(-smallest // MEBIBYTE) * MEBIBYTE
    return part_bytes, -(-size_bytes // part_bytes)


def _started_v1_to_v2(payload: dict[str, Any]) -> None:
    """v1 named the size `size` and knew no categories."""
    payload["size_bytes"] = payload.pop("size")
    payload["category"] = None


class Upload(Aggregate):
    """One file on its way into the object store, and the video that it becomes."""

    TOPIC = "upload"

    class Event(Aggregate.Event):
        owner: Annotated[str, Personal("owner")]

    class Started(Event):
        TOPIC = "upload.started.v2"
        UPCASTS = MappingProxyType({"upload.started.v1": _started_v1_to_v2})
        title: Annotated[str, Personal("owner")]
        filename: Annotated[str, Personal("owner")]
        content_type: str
        size_bytes: int
        description: Annotated[str | None, Personal("owner")]
        category: str | None
        part_size_bytes: int
        object_key: str
        store_upload_id: str

        def apply(self, upload: Upload) -> None:
            upload.owner = self.owner
            upload.status = Status.STARTED
            upload.title, upload.description = self.title, self.description
            upload.category, upload.filename = self.category, self.filename
            upload.content_type, upload.size_bytes = self.content_type, self.size_bytes
            upload.part_size_bytes = self.part_size_bytes
            upload.object_key, upload.store_upload_id = self.object_key, self.store_upload_id
            upload.started_at = self.timestamp

    class VisibilityChanged(Event):
        """Of an upload that never had one, everybody may see the video."""

        TOPIC = "upload.visibility_changed.v1"
        visibility: str

        def apply(self, upload: Upload) -> None:
            upload.visibility = Visibility(self.visibility)

    class Completed(Event):
        """Tells the visibility with which the video begins, for those who hear of nothing else."""

        TOPIC = "upload.completed.v1"
        size_bytes: int
        etag: str
        visibility: str = Visibility.PUBLIC.value

        def apply(self, upload: Upload) -> None:
            upload.status = Status.COMPLETED
            upload.etag = self.etag
            upload.completed_at = self.timestamp

    class Aborted(Event):
        TOPIC = "upload.aborted.v1"

        def apply(self, upload: Upload) -> None:
            upload.status = Status.ABORTED

    class Expired(Event):
        TOPIC = "upload.expired.v1"

        def apply(self, upload: Upload) -> None:
            upload.status = Status.EXPIRED

    class DetailsChanged(Event):
        """Carries all three details as they are afterwards."""

        TOPIC = "upload.details_changed.v1"
        title: Annotated[str, Personal("owner")]
        description: Annotated[str | None, Personal("owner")]
        category: str | None

        def apply(self, upload: Upload) -> None:
            upload.title, upload.description = self.title, self.description
            upload.category = self.category

    class SpeechTranscribed(Event):
        """What is said in it: `spoken_language` is an ISO 639-1 code, None where nobody speaks."""

        TOPIC = "upload.speech_transcribed.v1"
        spoken_language: str | None
        transcript: Annotated[str, Personal("owner")]
        duration_seconds: float | None
        model: str

        def apply(self, upload: Upload) -> None:
            upload.spoken_language = self.spoken_language
            upload.duration_seconds = self.duration_seconds
            upload.transcribed_by = self.model

    class CommentPolicyChanged(Event):
        TOPIC = "upload.comment_policy_changed.v1"
        comment_policy: str

        def apply(self, upload: Upload) -> None:
            upload.comment_policy = CommentPolicy(self.comment_policy)

    class Disowned(Event):
        """It belongs to `owner` from now on, with the texts anew: those of before can't be read
        once the former owner is forgotten. What was said in it is not told again."""

        TOPIC = "upload.disowned.v1"
        title: Annotated[str, Personal("owner")]
        filename: Annotated[str, Personal("owner")]
        description: Annotated[str | None, Personal("owner")]

        def apply(self, upload: Upload) -> None:
            upload.owner = self.owner
            upload.title, upload.filename = self.title, self.filename
            upload.description = self.description

    class Removed(Event):
        TOPIC = "upload.removed.v1"

        def apply(self, upload: Upload) -> None:
            upload.status = Status.REMOVED

    def __init__(self) -> None:
        self.status: Status | None = None
        self.visibility = Visibility.PUBLIC
        self.owner = self.title = self.filename = self.content_type = ""
        self.description: str | None = None
        self.category: str | None = None
        self.size_bytes = self.part_size_bytes = 0
        self.object_key = self.store_upload_id = self.etag = ""
        self.started_at: datetime | None = None
        self.completed_at: datetime | None = None
        self.spoken_language: str | None = None
        self.duration_seconds: float | None = None
        self.transcribed_by = ""
        self.comment_policy = CommentPolicy.OPEN

    @property
    def part_count(self) -> int:
        """Return how many parts the declared size makes."""
        return -(-self.size_bytes // self.part_size_bytes)

    def part_bytes(self, number: int) -> int:
        """Return the size in bytes of part `number` (from 1); the last one is what remains."""
        before = (number - 1) * self.part_size_bytes
        return min(self.part_size_bytes, self.size_bytes - before)

    def start(
        self,
        origin: Origin,
        *,
        title: str,
        filename: str,
        content_type: str,
        size_bytes: int,
        description: str | None,
        category: str | None,
        part_size_bytes: int,
        object_key: str,
        store_upload_id: str,
        visibility: Visibility = Visibility.PUBLIC,
    ) -> None:
        """Begin; the actor becomes the owner. Starting what is started records nothing."""
        if self.version > 0:
            return
        check_details(title, description, category)
        check_text(filename, "filename", max_length=255)
        check_film_type(content_type)
        self.record(
            self.Started,
            origin,
            owner=origin.actor,
            title=title,
            filename=filename,
            content_type=content_type,
            size_bytes=size_bytes,
            description=description,
            category=category,
            part_size_bytes=part_size_bytes,
            object_key=object_key,
            store_upload_id=store_upload_id,
        )
        self._show(visibility, origin)

    def complete(self, size_bytes: int, etag: str, origin: Origin) -> None:
        """Record that the object stands in the store; once completed, this records nothing.

        Raise Conflict after another end.
        """
        if self.status is not Status.COMPLETED:
            self._require_started("completed")
            self.record(
                self.Completed,
                origin,
                owner=self.owner,
                size_bytes=size_bytes,
                etag=etag,
                visibility=self.visibility.value,
            )

    def abort(self, origin: Origin) -> None:
        """Give the upload up; once aborted, this records nothing. Raise Conflict after an end."""
        if self.status is not Status.ABORTED:
            self._require_started("aborted")
            self.record(self.Aborted, origin, owner=self.owner)

    def expire(self, origin: Origin) -> None:
        """End an upload that nobody went on with; only a started one can expire."""
        if self.status is Status.STARTED:
            self.record(self.Expired, origin, owner=self.owner)

    def change_details(
        self, origin: Origin, *, title: str, description: str | None, category: str | None
    ) -> None:
        """Set the three details; the present ones again record nothing."""
        self.require_video()
        check_details(title, description, category)
        if (title, description, category) != (self.title, self.description, self.category):
            self.record(
                self.DetailsChanged,
                origin,
                owner=self.owner,
                title=title,
                description=description,
                category=category,
            )

    def change_comment_policy(self, policy: CommentPolicy, origin: Origin) -> None:
        """Set who comments; the present policy again records nothing."""
        self.require_known()
        if policy is not self.comment_policy:
            self.record(self.CommentPolicyChanged, origin, owner=self.owner, comment_policy=policy)

    def change_visibility(self, visibility: Visibility, origin: Origin) -> None:
        """Say who may see the video; the present visibility again records nothing."""
        self.require_video()
        self._show(visibility, origin)

    def _show(self, visibility: Visibility, origin: Origin) -> None:
        if visibility != self.visibility:
            value = visibility.value
            self.record(self.VisibilityChanged, origin, owner=self.owner, visibility=value)

    def transcribe(
        self,
        spoken_language: str | None,
        transcript: str,
        duration_seconds: float | None,
        model: str,
        origin: Origin,
    ) -> None:
        """Record what is said in the video; the same model's second hearing records nothing.

        The transcript is cut at MAX_TRANSCRIPT characters.
        """
        if self.status is Status.COMPLETED and model != self.transcribed_by:
            self.record(
                self.SpeechTranscribed,
                origin,
                owner=self.owner,
                spoken_language=spoken_language,
                transcript=transcript[:MAX_TRANSCRIPT],
                duration_seconds=duration_seconds,
                model=model,
            )

    def remove(self, origin: Origin) -> None:
        """Take the video out of every read."""
        self.require_video()
        self.record(self.Removed, origin, owner=self.owner)

    def erase(self, owner: str, heir: str | None, origin: Origin) -> Status | None:
        """End it for an owner who is forgotten; return what it was, None where there was nothing.

        What is under way is aborted. A video is removed, or belongs to the heir, where there is
        one, others may see it, and its title can still be read.
        """
        found = self.status if self.owner == owner else None
        if found is Status.STARTED:
            self.record(self.Aborted, origin, owner=owner)
        elif found is not Status.COMPLETED:
            return None
        elif heir is None or self.visibility is Visibility.PRIVATE or not self.title:
            self.record(self.Removed, origin, owner=owner)
        else:
            self.record(
                self.Disowned,
                origin,
                owner=heir,
                title=self.title,
                filename=self.filename,
                description=self.description,
            )
        return found

    def require_video(self) -> None:
        """Raise NotFound unless this is a video, whoever may see it."""
        if self.status is not Status.COMPLETED:
            raise NotFound(UNKNOWN_VIDEO)

    def visible_to(self, viewer: VideoViewer) -> bool:
        """Return whether the viewer may see what this is or will be."""
        return is_visible(self.visibility, self.owner, viewer)

    def is_there_for(self, viewer: VideoViewer) -> bool:
        """Return whether this is a video that the viewer may see."""
        return self.status is Status.COMPLETED and self.visible_to(viewer)

    def require_visible(self, viewer: VideoViewer, told: str = UNKNOWN_VIDEO) -> None:
        """Raise NotFound unless this is a video that the viewer may see.

        `told` is what is said of what was asked for, where that is something on the video.
        """
        if not self.is_there_for(viewer):
            raise NotFound(told)

    def require_known(self) -> None:
        """Raise NotFound for an upload that never began or whose video was removed."""
        if self.status is None or self.status is Status.REMOVED:
            raise NotFound("There is no such upload.")

    def require_own_upload(self, actor: str) -> None:
        """Raise NotFound for an upload that the actor can't know of, NotAllowed for another's."""
        self.require_known()
        if not self.visible_to(VideoViewer(actor)):
            raise NotFound("There is no such upload.")
        self.require_owner(actor)

    def require_owner(self, actor: str) -> None:
        """Raise NotAllowed for anybody but the owner."""
        if actor != self.owner:
            raise NotAllowed("This belongs to another user.")

    def _require_started(self, wish: str) -> None:
        self.require_known()
        if self.status is not Status.STARTED:
            raise Conflict(
                f"The upload is {self.status}, so it can't be {wish}.", uploadStatus=self.status
            )


def check_details(title: str, description: str | None, category: str | None) -> None:
    """Raise Invalid beyond 200 characters of title, 5,000 of description, 50 of category."""
    check_text(title, "title", max_length=200)
    if description is not None:
        check_text(description, "description", max_length=5_000, required=False)
    if category is not None:
        check_text(category, "category", max_length=50)

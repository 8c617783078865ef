"""The wire shapes of the HTTP contract; both applications speak them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from domain.comment import TranslationStatus

T = TypeVar("T")

Title = Annotated[str, Field(min_length=1, max_length=200, examples=["A walk in the rain"])]
Description = Annotated[str, Field(max_length=5_000, examples=["Filmed in one take."])]
Category = Annotated[str, Field(min_length=1, max_length=50, examples=["nature"])]
Content = Annotated[str, Field(min_length=1, max_length=10_000, examples=["¡Qué bonito!"])]
PartNumber = Annotated[int, Field(ge=1, le=10_000, strict=True)]
ETag = Annotated[
    str, Field(min_length=1, max_length=256, examples=['"9bb58f26192e4ba00f01e2e7b136bbd8"'])
]
VIDEO_ID = "5f0c2f0a-7f0e-4a3c-9a39-1c6a54f2b7aa"


def _in_utc(time: datetime) -> datetime:
    if time.utcoffset() != timedelta(0):
        raise ValueError("must be in UTC")
    return time


Time = Annotated[datetime, AfterValidator(_in_utc)]
"""A time on the wire: RFC 3339 in UTC, which ends with `Z`. Any other zone is a fault of ours."""


class Wire(BaseModel):
    """A JSON object, camelCase on the wire."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")

    def to_json(self) -> bytes:
        """UTF-8 JSON; fields without a value are left out."""
        return self.__pydantic_serializer__.to_json(self, by_alias=True, exclude_none=True)


class Page(Wire, Generic[T]):
    """A part of a list; `next_cursor` asks for the following one and is missing on the last."""

    items: list[T]
    next_cursor: str | None = None


class StartUpload(Wire):
    """What to upload. `size_bytes` is the exact size of the file."""

    title: Title
    filename: Annotated[str, Field(min_length=1, max_length=255, examples=["rain.mp4"])]
    content_type: Annotated[str, Field(max_length=200, examples=["video/mp4"])]
    size_bytes: Annotated[int, Field(ge=1, strict=True, examples=[10_485_760])]
    description: Description | None = None
    category: Category | None = None


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


class PartNumbers(Wire):
    """Of which parts the URLs are wanted."""

    numbers: Annotated[
        list[PartNumber], Field(min_length=1, max_length=1_000, examples=[[101, 102]])
    ]


class PartUrls(Wire):
    """More part URLs."""

    parts: list[PartUrl]


class UploadedPart(Wire):
    """A part as the store acknowledged it."""

    number: PartNumber
    etag: ETag


class CompleteUpload(Wire):
    """The parts that make the file; none: all that were uploaded."""

    parts: Annotated[list[UploadedPart], Field(max_length=10_000)] = []


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


class ArrivedPart(Wire):
    """A part that the store holds."""

    number: int
    etag: str
    size_bytes: int


class UploadStatus(Wire):
    """How an upload stands, to resume it."""

    upload_id: UUID
    video_id: UUID
    status: Literal["started", "completed", "aborted", "expired"]
    size_bytes: int
    part_size_bytes: int
    part_count: int
    parts: list[ArrivedPart]


class ChangeDetails(Wire):
    """New details; a field that is left out stays, `null` clears description or category."""

    title: Title | None = None
    description: Description | None = None
    category: Category | None = None


class Video(Wire):
    """A video as viewers see it; `has_liked` only where the caller is known."""

    video_id: Annotated[UUID, Field(examples=[VIDEO_ID])]
    title: str
    description: str | None = None
    category: str | None = None
    owner_id: str
    status: str
    duration_seconds: float | None = None
    spoken_language: str | None = None
    created_at: Time
    likes: int
    comments: int
    views: int
    has_liked: bool | None = None


class VideoRemoved(Wire):
    """The video is gone from every read."""

    video_id: UUID
    status: Literal["removed"]


class LikeState(Wire):
    """Whether the caller, where known, likes the video; how many do, their own action included."""

    has_liked: bool | None = None
    likes_count: Annotated[int, Field(examples=[42])]


class WriteComment(Wire):
    """The text of a comment."""

    content: Content


class Comment(Wire):
    """A comment as viewers see it."""

    comment_id: UUID
    video_id: UUID
    user_id: str
    content: str
    language: str | None = None
    confidence: float | None = None
    translated_text: str | None = None
    translation_status: TranslationStatus
    edited: bool
    created_at: Time


class CommentDeleted(Wire):
    """The comment is gone from every read."""

    comment_id: UUID
    status: Literal["deleted"]


class Watching(Wire):
    """The session under which watch time is reported."""

    session_id: UUID


class WatchSession(Watching):
    """Where the video plays, and the session under which watch time is reported."""

    url: str


class WatchTime(Wire):
    """Seconds watched since the last report of this session."""

    session_id: UUID
    seconds: Annotated[
        float, Field(gt=0, le=86_400, strict=True, allow_inf_nan=False, examples=[12.5])
    ]


class Share(Wire):
    """Where the video was shared to."""

    channel: Annotated[str, Field(min_length=1, max_length=50, examples=["mail"])] | None = None


class Accepted(Wire):
    """Durably taken; counted soon."""

    status: Literal["accepted"] = "accepted"


class Figures(Wire):
    """What happened in some time; likes and comments are net of those taken back or deleted."""

    views: int
    unique_viewers: Annotated[
        int | None, Field(description="By whole days and in totals; hours don't have them.")
    ] = None
    likes: int
    comments: int
    shares: int
    watch_minutes: float


class FiguresAt(Figures):
    """The figures of the bucket that begins `at`."""

    at: Time


class VideoStats(Wire):
    """How a video did since `since`; the series has a point for every bucket and adds up."""

    video_id: Annotated[UUID, Field(examples=[VIDEO_ID])]
    time_range: Literal["24h", "7d", "30d", "all"]
    bucket: Literal["hour", "day"]
    since: Time
    totals: Figures
    series: list[FiguresAt]


class TrendingComponents(Wire):
    """Where a score comes from, in points: the sum of all but `age_penalty`, less that."""

    views: float
    likes: float
    comments: float
    watch_minutes: float
    recency_boost: Annotated[float, Field(description="What counts again because it is recent.")]
    age_penalty: Annotated[float, Field(description="What the video's age has taken away.")]


class TrendingVideo(Wire):
    """A video that trends, and why."""

    rank: int
    score: float
    components: TrendingComponents
    video: Video


class TrendingVideos(Wire):
    """The ranking as it was at `generated_at`; the videos are shown as they are now."""

    items: list[TrendingVideo]
    generated_at: Time
    cached: bool


class VideoReference(Wire):
    """A video by its id, and what it is called."""

    video_id: Annotated[UUID, Field(examples=[VIDEO_ID])]
    title: str


class Recommendation(Wire):
    """A video that the user may like, and why; the higher the score the earlier."""

    video: VideoReference
    reason: Annotated[str, Field(examples=["Because you watched “Tides”"])]
    score: float


class RecommendedVideo(Wire):
    """The same with all that is known of the video."""

    video: Video
    reason: str
    score: float


class Recommendations(Wire):
    """The best first. `source` is what ordered them: the first of these that could."""

    source: Literal["llm", "blend", "trending"]
    cached: bool
    items: list[Recommendation]


class RecommendedVideos(Wire):
    """The same with all that is known of the videos."""

    source: Literal["llm", "blend", "trending"]
    cached: bool
    items: list[RecommendedVideo]


class ProblemDetails(BaseModel):
    """RFC 9457: what went wrong and what to do. More members depend on `type`."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    type: Annotated[str, Field(examples=["not-found"])]
    title: Annotated[str, Field(examples=["Not found"])]
    status: Annotated[int, Field(examples=[404])]
    detail: Annotated[str, Field(examples=["There is no such video."])]
    request_id: Annotated[str | None, Field(alias="requestId")] = None


class Readiness(Wire):
    """Whether every part answers, and what each says."""

    ready: bool
    parts: dict[str, Any]

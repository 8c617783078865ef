"""How a video did, and which videos trend."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

from fastapi import APIRouter, Header, Query, Response
from pydantic import Field

from engine.freshness import Freshness
from infra.http.app import TOKEN_OPTIONAL, MaybeCaller, wire
from infra.http.auth import Identity
from infra.http.problems import problems
from infra.http.shapes import VIDEO_ID, Time, Video, Wire
from projections.analytics.queries import AnalyticsUnavailable
from projections.analytics.stats import Bucket, Counts, Range
from projections.analytics.windows import Window
from projections.catalog import VideoRow
from projections.trending.cache import Ranking
from projections.trending.ranking import Ranked
from readapi.catalog import InCategory, present, require_video
from readapi.paging import DEFAULT_LIMIT, Limit
from readapi.queries import Fresh, Queries, Read

TAG = re.compile(r'(?:W/)?("[^"]*")')
IfNoneMatch = Annotated[
    str | None,
    Header(
        alias="If-None-Match",
        description="An `ETag` received before: the answer is 304 while nothing is new.",
    ),
]


def weak_tag(parts: Iterable[Wire]) -> str:
    """The tag of an answer that stands for these parts, whatever else it says."""
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part.to_json() + b"\n")
    return f'W/"{digest.hexdigest()}"'


def known(tag: str, if_none_match: str | None) -> bool:
    """Whether the client has it, by the weak comparison."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    return tag.removeprefix("W/") in TAG.findall(if_none_match)


def tagged(body: Wire, tag: str, if_none_match: str | None) -> Response:
    """The answer, or 304 without a body. It is asked for again each time, and is the caller's."""
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Authorization"}
    if known(tag, if_none_match):
        return Response(status_code=304, headers=headers)
    return wire(body, headers=headers)


NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "As the client knows it"}}

InRange = Annotated[Range, Query(alias="timeRange", description="How far back, until now.")]
InBuckets = Annotated[
    Bucket | None,
    Query(
        description="How long a point of the series is; default: `hour` for 24h, else `day`. "
        "Hours are not given for `all`."
    ),
]
InWindow = Annotated[Window, Query(alias="timeRange", description="What counts: until now.")]

# So many that are gone are left out of a ranking while the analytics don't know that.
MOST_GONE = 200


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


router = APIRouter(tags=["analytics"])


@router.get(
    "/videos/{video_id}/stats",
    response_model=VideoStats,
    responses=problems(404, 422, 503),
    summary="What happened around the video: totals and a series",
)
async def get_stats(
    video_id: UUID,
    queries: Read,
    fresh: Fresh,
    range_: InRange = Range.WEEK,
    bucket: InBuckets = None,
) -> Response:
    bucket = bucket or (Bucket.HOUR if range_ is Range.DAY else Bucket.DAY)
    async with queries.reading(fresh, queries.catalog) as conn:
        video = await require_video(queries, conn, video_id)
    stats = await queries.analytics.stats(
        video_id, range_, bucket, began=video.completed_at, fresh=fresh
    )
    body = VideoStats(
        video_id=video_id,
        time_range=range_.value,
        bucket=bucket.value,
        since=stats.totals.at,
        totals=Figures(**_figures(stats.totals)),
        series=[FiguresAt(at=point.at, **_figures(point)) for point in stats.series],
    )
    return wire(body)


@router.get(
    "/analytics/trending",
    response_model=TrendingVideos,
    responses=problems(401, 422, 503) | NOT_MODIFIED,
    openapi_extra=TOKEN_OPTIONAL,
    summary="Which videos trend, and why",
)
async def list_trending(
    queries: Read,
    fresh: Fresh,
    caller: MaybeCaller,
    window: InWindow = Window.WEEK,
    limit: Limit = DEFAULT_LIMIT,
    category: InCategory = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    listed = Listed(window, limit, category)
    ranking, cached, pairs = await _ranked(queries, listed, fresh, caller)
    items = [_item(place, each, video) for place, (each, video) in enumerate(pairs, start=1)]
    body = TrendingVideos(items=items, generated_at=ranking.at, cached=cached)
    return tagged(body, weak_tag(items), if_none_match)


Shown = tuple[Ranking, bool, list[tuple[Ranked, Video]]]
"""A ranking, whether it was kept, and those of it that are there."""


class Listed(NamedTuple):
    """What was asked for."""

    window: Window
    limit: int
    category: str | None

    def has(self, row: VideoRow | None) -> bool:
        """Whether the video is there, and belongs in it, as it is now."""
        return row is not None and self.category in (None, row.category)


async def _ranked(
    queries: Queries, listed: Listed, fresh: Freshness, caller: Identity | None
) -> Shown:
    """What is shown of the ranking.

    Where it has what the catalog knows to be gone, those behind take its place. Raises
    ReadModelBehind, AnalyticsUnavailable and ReadModelUnavailable.
    """
    gone: set[UUID] = set()
    found: Shown | None = None
    while True:
        try:
            ranking, cached = await queries.analytics.ranking(*listed, fresh=fresh, without=gone)
        except AnalyticsUnavailable:
            if found is None:
                raise
            # With a gap it is better than nothing.
            return found
        async with queries.reading(fresh, *queries.projections) as conn:
            rows = await queries.catalog.videos(conn, [each.video_id for each in ranking.value])
            there = [each for each in ranking.value if listed.has(rows.get(each.video_id))]
            shown = await present(queries, conn, [rows[each.video_id] for each in there], caller)
        found = ranking, cached, list(zip(there, shown, strict=True))
        if len(there) == len(ranking.value) or len(gone) >= MOST_GONE:
            return found
        gone |= {each.video_id for each in ranking.value} - {each.video_id for each in there}


def _figures(counts: Counts) -> dict[str, Any]:
    return {
        "views": counts.views,
        "unique_viewers": counts.unique_viewers,
        "likes": counts.likes,
        "comments": counts.comments,
        "shares": counts.shares,
        "watch_minutes": counts.watch_minutes,
    }


def _item(place: int, ranked: Ranked, video: Video) -> TrendingVideo:
    components = TrendingComponents(
        views=ranked.views,
        likes=ranked.likes,
        comments=ranked.comments,
        watch_minutes=ranked.watch_minutes,
        recency_boost=ranked.recency_boost,
        age_penalty=ranked.age_penalty,
    )
    return TrendingVideo(rank=place, score=ranked.score, components=components, video=video)

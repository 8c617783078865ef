"""How a video did, and which videos trend."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Header, Query, Response
from pydantic import Field

from engine.checkpoints import Freshness
from infra.cache import CachedValue
from infra.http.app import TOKEN_OPTIONAL, wire
from infra.http.auth import MODERATORS, Identity, MaybeCaller, require_known
from infra.http.problems import Problem, problems
from infra.http.shapes import VIDEO_ID, Time, Video, Wire
from projections.analytics.queries import AnalyticsUnavailable, Bucket, Range
from projections.catalog import VideoRow
from projections.trending import Ranked, Ranking, Window
from readapi.catalog import InCategory
from readapi.queries import DEFAULT_LIMIT, Fresh, Limit, Queries, Read, present, require_video

TAG = re.compile(r'(?:W/)?("[^"]*")')
IfNoneMatch = Annotated[
    str | None,
    Header(
        alias="If-None-Match",
        description="An `ETag` received before: the answer is 304 while nothing is new.",
    ),
]


def respond_with_tag(body: Wire, parts: Iterable[Wire], if_none_match: str | None) -> Response:
    """Return the answer, or 304 without a body where the client has one with the same parts.

    The answer is the caller's own, and is asked for again each time.
    """
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part.to_json() + b"\n")
    tag, known = f'"{digest.hexdigest()}"', (if_none_match or "").strip()
    headers = {"ETag": f"W/{tag}", "Cache-Control": "private, no-cache", "Vary": "Authorization"}
    # The weak comparison.
    if known == "*" or tag in TAG.findall(known):
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

SEE_STATS = MODERATORS | {"auditor"}
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
    responses=problems(401, 403, 404, 422, 503),
    openapi_extra=TOKEN_OPTIONAL,
    summary="What happened around the video: totals and a series",
)
async def get_stats(
    video_id: UUID,
    queries: Read,
    fresh: Fresh,
    caller: MaybeCaller,
    range_: InRange = Range.WEEK,
    bucket: InBuckets = None,
) -> Response:
    """To its owner, moderators, auditors and admins, and to everybody with `STATS_PUBLIC=true`."""
    bucket = bucket or (Bucket.HOUR if range_ is Range.DAY else Bucket.DAY)
    async with queries.reading(fresh, queries.catalog) as conn:
        video = await require_video(queries, conn, video_id, caller)
    if not queries.stats_public:
        _require_insight(video, require_known(caller))
    stats = await queries.analytics.stats(
        video_id, range_, bucket, began=video.completed_at, fresh=fresh
    )
    body = VideoStats(
        video_id=video_id,
        time_range=range_.value,
        bucket=bucket.value,
        since=stats.totals.at,
        totals=Figures.model_validate(stats.totals, from_attributes=True),
        series=[FiguresAt.model_validate(point, from_attributes=True) for point in stats.series],
    )
    return wire(body)


def _require_insight(video: VideoRow, caller: Identity) -> None:
    """Raise Problem 403 for whom the stats of the video are not for."""
    if caller.person != video.owner and SEE_STATS.isdisjoint(caller.roles):
        detail = (
            "The stats of a video are its owner's; its totals stand in `GET /videos/{video_id}`. "
            "STATS_PUBLIC=true on the server opens them to everybody."
        )
        raise Problem(403, "forbidden", detail)


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
    ranking, cached, pairs = await _get_ranking(queries, fresh, caller, window, limit, category)
    items = [_item(place, each, video) for place, (each, video) in enumerate(pairs, start=1)]
    body = TrendingVideos(items=items, generated_at=ranking.at, cached=cached)
    return respond_with_tag(body, items, if_none_match)


Shown = tuple[Ranking, bool, list[tuple[Ranked, Video]]]
"""A ranking, whether it was cached, and those of it that are there."""


async def _get_ranking(
    queries: Queries,
    fresh: Freshness,
    caller: Identity | None,
    window: Window,
    limit: int,
    category: str | None,
) -> Shown:
    """Return what is shown of the ranking.

    Where it has what the catalog does not list any more, those behind take its place. Raise
    ReadModelBehind, AnalyticsUnavailable and ReadModelUnavailable.
    """
    if category is not None:
        async with queries.reading(fresh, queries.catalog) as conn:
            if not await queries.catalog.has_category(conn, category):
                # Whoever makes up categories fills no cache and has nothing counted.
                return CachedValue((), datetime.now(UTC), None), False, []
    gone: set[UUID] = set()
    shown: Shown | None = None
    while True:
        try:
            ranking, cached = await queries.analytics.ranking(
                window, limit, category, fresh=fresh, without=gone
            )
        except AnalyticsUnavailable:
            if shown is None:
                raise
            # With a gap it is better than nothing.
            return shown
        async with queries.reading(fresh, *queries.projections) as conn:
            rows = await queries.catalog.videos(conn, [each.video_id for each in ranking.value])
            there = [
                each
                for each in ranking.value
                if (row := rows.get(each.video_id))
                and row.is_public
                and category in (None, row.category)
            ]
            videos = await present(queries, conn, [rows[each.video_id] for each in there], caller)
        shown = ranking, cached, list(zip(there, videos, strict=True))
        if len(there) == len(ranking.value) or len(gone) >= MOST_GONE:
            return shown
        gone |= {each.video_id for each in ranking.value} - {each.video_id for each in there}


def _item(place: int, ranked: Ranked, video: Video) -> TrendingVideo:
    components = TrendingComponents.model_validate(ranked, from_attributes=True)
    return TrendingVideo(rank=place, score=ranked.score, components=components, video=video)

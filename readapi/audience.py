"""Which seconds of a video were watched."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import Field

from infra.http.auth import MaybeCaller
from infra.http.openapi import TOKEN_OPTIONAL
from infra.http.problems import problems
from infra.http.requests import header
from infra.http.responses import NOT_MODIFIED
from infra.http.shapes import VIDEO_ID, Time, Wire
from infra.spreadsheets import as_csv, wants_csv
from projections.analytics.audience import read_audience
from projections.analytics.queries import COUNTS_CONSUMER, VIDEOS_CONSUMER, Bucket, Range
from readapi.pages import IfNoneMatch
from readapi.queries import Asked, Fresh, Read
from readapi.stats import (
    AS_CSV,
    InAccept,
    InDates,
    InRange,
    TimeRange,
    begin_kept,
    is_private,
    require_insight,
    settle,
    told_csv,
    told_stats,
)

router = APIRouter(tags=["analytics"])


class RetentionPoint(Wire):
    """The stretch of a video that begins at a second, and goes on to the next one or to the end.

    `share` is which part of the sessions watched it; more than 1 where some saw it again.
    """

    second: int
    watched_seconds: float
    share: Annotated[float | None, Field(description="Missing where there are no sessions.")] = None


class AudienceRetention(Wire):
    """Which seconds of a video were watched since `since`, in `sessions` that told positions."""

    video_id: Annotated[UUID, Field(examples=[VIDEO_ID])]
    time_range: TimeRange
    since: Time
    until: Time
    tz: str
    duration_seconds: Annotated[
        float | None, Field(description="Of the video, once that is known.")
    ] = None
    bucket_seconds: Annotated[int, Field(description="From a point to the next one.")]
    sessions: int
    points: list[RetentionPoint]


@router.get(
    "/videos/{video_id}/stats/retention",
    response_model=AudienceRetention,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED | AS_CSV,
    openapi_extra=TOKEN_OPTIONAL,
    summary="Which seconds of the video were watched",
)
async def get_audience_retention(
    video_id: UUID,
    request: Request,
    queries: Read,
    fresh: Fresh,
    caller: MaybeCaller,
    dates: InDates,
    range_: InRange = Range.WEEK,
    accept: InAccept = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """To those whom the stats of the video are for. Of reports of watch time with a `position`.

    `all` goes back as far as these are kept.
    """
    known, now = Asked(queries, fresh, caller), datetime.now(UTC)
    video = await require_insight(known, video_id)
    period = dates.period(range_, Bucket.DAY, video.row.completed_at, now)
    await settle(known)
    consumers = (COUNTS_CONSUMER, VIDEOS_CONSUMER)
    async with queries.analytics.reading(fresh, *consumers) as conn, conn.transaction():
        since = await begin_kept(conn, period, dates.range_of(range_), now)
        curve = await read_audience(conn, video_id, since, period.until)
    if wants_csv(header(request.scope, b"accept")):
        table = as_csv(("second", "watchedSeconds", "share"), curve.points)
        return told_csv(request.scope, table, is_private(known))
    body = AudienceRetention(
        video_id=video_id,
        time_range=dates.range_of(range_),
        since=since,
        until=period.until,
        tz=period.zone.key,
        duration_seconds=curve.duration,
        bucket_seconds=curve.step,
        sessions=curve.sessions,
        points=[
            RetentionPoint(second=each.second, watched_seconds=each.watched, share=each.share)
            for each in curve.points
        ],
    )
    return told_stats(request.scope, body.to_json(), private=is_private(known))

"""How a video or an owner did between two times; by which channels a video was shared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import BeforeValidator, Field
from starlette.types import Scope

from infra.http.auth import MODERATORS, MaybeCaller, person_named, require_known
from infra.http.openapi import TOKEN_OPTIONAL
from infra.http.problems import Problem, problems
from infra.http.requests import header
from infra.http.responses import NOT_MODIFIED, conditional
from infra.http.shapes import VIDEO_ID, Time, Wire
from infra.spreadsheets import CSV, as_csv, wants_csv
from projections.analytics.calendar import DAY, HOUR
from projections.analytics.periods import (
    MOST_POINTS,
    Counts,
    Period,
    PeriodStats,
    UnfitPeriod,
    begin_snapshot,
    kept_since,
    last_hours,
    read_channels,
    read_period,
    require_kept,
    videos_of,
    whole_days,
    zone_of,
)
from projections.analytics.queries import (
    COUNTS_CONSUMER,
    LENGTHS,
    VIDEOS_CONSUMER,
    Bucket,
    Range,
)
from readapi.pages import IfNoneMatch
from readapi.queries import Asked, Fresh, Read
from readapi.video_cache import CachedVideo

InRange = Annotated[Range, Query(alias="timeRange", description="How far back, until now.")]
InBuckets = Annotated[
    Bucket | None,
    Query(
        description="How long a point of the series is; default: `hour` for 24h, else `day`. "
        "Hours are not given for `all`."
    ),
]
InAccept = Annotated[
    str | None, Header(description="`text/csv`: the answer is a table for spreadsheets.")
]
"""Documents what `told_stats` reads."""

UserId = Annotated[str, Field(min_length=1, max_length=128)]
SEE_STATS = MODERATORS | {"auditor"}
AS_CSV: dict[int | str, dict[str, Any]] = {200: {"content": {CSV: {"schema": {"type": "string"}}}}}
VARIES = {"Vary": "Accept"}
ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
COLUMNS = (
    "at", "day", "views", "uniqueViewers", "likes", "comments", "shares", "watchMinutes",
)  # fmt: skip
UTC_ZONE = ZoneInfo("UTC")


def _is_date(value: object) -> object:
    """Refuse a number, which pydantic takes for a time."""
    if not (isinstance(value, str) and ISO_DATE.fullmatch(value)):
        raise ValueError("must be a day such as 2026-11-22")
    return value


Day = Annotated[date, BeforeValidator(_is_date)]


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
    """The figures of the bucket that begins `at`; `day` is which day of `tz` that is."""

    at: Time
    day: date | None = None


TimeRange = Literal["24h", "7d", "30d", "all", "custom"]


class VideoStats(Wire):
    """How a video did since `since`; the series has a point for every bucket and adds up.

    Where days or a zone were asked for, `until` and `tz` say which; `custom` are given days.
    """

    video_id: Annotated[UUID, Field(examples=[VIDEO_ID])]
    time_range: TimeRange
    bucket: Literal["hour", "day"]
    since: Time
    until: Time | None = None
    tz: str | None = None
    totals: Figures
    series: list[FiguresAt]


class OwnerStats(Wire):
    """How all `videos` of a user did together, as many as the caller may see."""

    user_id: str
    videos: int
    time_range: TimeRange
    bucket: Literal["hour", "day"]
    since: Time
    until: Time
    tz: str
    totals: Figures
    series: list[FiguresAt]


class ChannelShares(Wire):
    """How many shares named this channel; without one, they named none."""

    channel: str | None = None
    shares: int


class ShareChannels(Wire):
    """By which channels a video was shared, the most used first; `others` named further ones."""

    video_id: Annotated[UUID, Field(examples=[VIDEO_ID])]
    time_range: TimeRange
    since: Time
    until: Time
    tz: str
    shares: int
    channels: list[ChannelShares]
    others: int


@dataclass(frozen=True, slots=True)
class Dates:
    """Which days were asked for, and in which zone; `preset` says that a `timeRange` was, too."""

    first: date | None
    last: date | None
    tz: str | None
    preset: bool

    @property
    def is_asked(self) -> bool:
        return (self.first, self.last, self.tz) != (None, None, None)

    def period(self, range_: Range, bucket: Bucket, began: datetime, now: datetime) -> Period:
        """Return the period that is meant; `began` is when there was something to tell first.

        Raise UnfitPeriod.
        """
        zone, by_days = zone_of(self.tz or "UTC"), bucket is Bucket.DAY
        if self.first is not None:
            if self.preset:
                raise UnfitPeriod("from", "is instead of `timeRange`; send one of them.")
            return whole_days(self.first, self.last, zone, now, by_days=by_days)
        if self.last is not None:
            raise UnfitPeriod("to", "needs `from`.")
        if range_ in LENGTHS:
            return last_hours(LENGTHS[range_] // HOUR, zone, now, by_days=by_days)
        if not by_days:
            raise UnfitPeriod("bucket", "hours are not given for `all`; ask for `bucket=day`.")
        today = now.astimezone(zone).date()
        earliest = max(min(began.astimezone(zone).date(), today), today - (MOST_POINTS - 1) * DAY)
        return whole_days(earliest, None, zone, now, by_days=True)

    def range_of(self, range_: Range) -> TimeRange:
        return "custom" if self.first is not None else range_.value


async def dates(
    request: Request,
    first: Annotated[
        Day | None,
        Query(alias="from", description="The first day, of `tz`; instead of `timeRange`."),
    ] = None,
    last: Annotated[
        Day | None, Query(alias="to", description="The last day; default: today.")
    ] = None,
    tz: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=64,
            description="Days are those of this time zone, by its name in the IANA's database.",
            examples=["Europe/Berlin"],
        ),
    ] = None,
) -> Dates:
    """Return which days a request asks for."""
    return Dates(first, last, tz, "timeRange" in request.query_params)


InDates = Annotated[Dates, Depends(dates)]

router = APIRouter(tags=["analytics"])


async def require_insight(known: Asked, video_id: UUID) -> CachedVideo:
    """Return the video; raise Problem 403 for whom its stats are not for, and 404."""
    queries, fresh, caller = known
    video = await queries.require(fresh, video_id, caller)
    if queries.stats_public:
        return video
    caller = require_known(caller)
    if caller.person != video.row.owner and SEE_STATS.isdisjoint(caller.roles):
        detail = (
            "The stats of a video are its owner's; its totals stand in `GET /videos/{video_id}`. "
            "STATS_PUBLIC=true on the server opens them to everybody."
        )
        raise Problem(403, "forbidden", detail)
    return video


async def video_in_period(
    request: Request,
    known: Asked,
    video_id: UUID,
    range_: Range,
    bucket: Bucket | None,
    dates: Dates,
) -> Response:
    """Answer who wants the stats of a video by the days of a zone, or between two of them."""
    video, now = await require_insight(known, video_id), datetime.now(UTC)
    bucket = bucket or _usual_bucket(range_, dates)
    period = dates.period(range_, bucket, video.row.completed_at, now)
    await settle(known)
    analytics = known.queries.analytics
    async with analytics.reading(known.fresh, COUNTS_CONSUMER) as conn, conn.transaction():
        await begin_snapshot(conn)
        stats = await read_period(conn, [video_id], period, now, viewers=True)
    body = VideoStats(video_id=video_id, **_told(stats, period, dates.range_of(range_), bucket))
    return told_stats(request.scope, body.to_json(), private=is_private(known))


@router.get(
    "/users/{user_id}/stats",
    response_model=OwnerStats,
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED | AS_CSV,
    openapi_extra=TOKEN_OPTIONAL,
    summary="What happened around all videos of a user: totals and a series",
)
async def get_owner_stats(
    user_id: UserId,
    request: Request,
    queries: Read,
    fresh: Fresh,
    caller: MaybeCaller,
    dates: InDates,
    range_: InRange = Range.WEEK,
    bucket: InBuckets = None,
    accept: InAccept = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """To the user, moderators, auditors and admins, and to everybody with `STATS_PUBLIC=true`.

    Only the user is told of videos that are not public. With `Accept: text/csv`, the series as a
    table.
    """
    known, now = Asked(queries, fresh, caller), datetime.now(UTC)
    caller = caller if queries.stats_public else require_known(caller)
    owner = await person_named(request, user_id)
    own = caller is not None and caller.person == owner
    watches = caller is not None and not SEE_STATS.isdisjoint(caller.roles)
    if not (own or watches or queries.stats_public):
        raise Problem(403, "forbidden", "The stats of all videos of a user are that user's.")
    bucket = bucket or _usual_bucket(range_, dates)
    await settle(known)
    consumers = (COUNTS_CONSUMER, VIDEOS_CONSUMER)
    async with queries.analytics.reading(fresh, *consumers) as conn, conn.transaction():
        await begin_snapshot(conn)
        videos = await videos_of(conn, owner, unlisted=own)
        period = dates.period(range_, bucket, min(videos.values(), default=now), now)
        stats = await read_period(conn, list(videos), period, now, viewers=False)
    told = _told(stats, period, dates.range_of(range_), bucket)
    body = OwnerStats(user_id=user_id, videos=len(videos), **told)
    return told_stats(request.scope, body.to_json(), private=is_private(known))


@router.get(
    "/videos/{video_id}/stats/channels",
    response_model=ShareChannels,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED | AS_CSV,
    openapi_extra=TOKEN_OPTIONAL,
    summary="By which channels the video was shared",
)
async def get_share_channels(
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
    """To those whom the stats of the video are for. `all` goes back as far as shares are kept."""
    known, now = Asked(queries, fresh, caller), datetime.now(UTC)
    video = await require_insight(known, video_id)
    period = dates.period(range_, Bucket.DAY, video.row.completed_at, now)
    await settle(known)
    async with queries.analytics.reading(fresh, COUNTS_CONSUMER) as conn, conn.transaction():
        since = await begin_kept(conn, period, dates.range_of(range_), now)
        found, shares = await read_channels(conn, video_id, since, period.until)
    body = ShareChannels(
        video_id=video_id,
        time_range=dates.range_of(range_),
        since=since,
        until=period.until,
        tz=period.zone.key,
        shares=shares,
        channels=[ChannelShares(channel=each.channel, shares=each.shares) for each in found],
        others=shares - sum(each.shares for each in found),
    )
    if not wants_csv(header(request.scope, b"accept")):
        return told_stats(request.scope, body.to_json(), private=is_private(known))
    rows = [(each.channel, each.shares) for each in found]
    return told_csv(request.scope, as_csv(("channel", "shares"), rows), is_private(known))


async def begin_kept(
    conn: AsyncConnection[TupleRow], period: Period, range_: TimeRange, now: datetime
) -> datetime:
    """Begin a snapshot, and return since when a period is told by what is not kept for good.

    Raise UnfitPeriod.
    """
    await begin_snapshot(conn)
    kept = await kept_since(conn, now)
    if range_ == "all":
        return kept
    require_kept(period, kept)
    return period.since


def told_stats(
    scope: Scope, body: bytes, *, private: bool, tagged: bytes | None = None
) -> Response:
    """Return stats as JSON, or their series as CSV to a client that accepts it."""
    if not wants_csv(header(scope, b"accept")):
        return conditional(scope, body, private=private, headers=VARIES, tagged=tagged)
    told = orjson.loads(body)
    by_days = told["bucket"] == "day"
    rows = [
        # Without a zone, days are those of UTC.
        [{"day": point["at"][:10] if by_days else None, **point}.get(name) for name in COLUMNS]
        for point in told["series"]
    ]
    return told_csv(scope, as_csv(COLUMNS, rows), private)


def told_csv(scope: Scope, body: bytes, private: bool) -> Response:
    """Return a table as an answer; 304 to a client that has it."""
    media_type = f"{CSV}; charset=utf-8; header=present"
    return conditional(scope, body, private=private, headers=VARIES, media_type=media_type)


def _usual_bucket(range_: Range, dates: Dates) -> Bucket:
    return Bucket.HOUR if range_ is Range.DAY and dates.first is None else Bucket.DAY


async def settle(known: Asked) -> None:
    """Wait for what the caller has done, where nothing else is asked for."""
    queries, fresh, caller = known
    if caller is not None and not fresh.is_asked:
        await queries.analytics.settle(fresh, queries.tail.own(caller.person))


def is_private(known: Asked) -> bool:
    """Return whether an answer is for its caller alone."""
    return not known.queries.stats_public or known.caller is not None


def _told(
    stats: PeriodStats, period: Period, time_range: TimeRange, bucket: Bucket
) -> dict[str, Any]:
    """Return what is told of a period, whatever it is about."""
    return {
        "time_range": time_range,
        "bucket": bucket.value,
        "since": period.since,
        "until": period.until,
        "tz": period.zone.key,
        "totals": _figures(stats.totals),
        "series": _series(stats, period),
    }


def _figures(counts: Counts) -> Figures:
    return Figures(**_members(counts))


def _series(stats: PeriodStats, period: Period) -> list[FiguresAt]:
    return [
        FiguresAt(**_members(each), at=each.at, day=period.day_of(each.at)) for each in stats.series
    ]


def _members(counts: Counts) -> dict[str, Any]:
    members = counts._asdict()
    del members["at"]
    return members

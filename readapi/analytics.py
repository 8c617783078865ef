"""How a video did, and which videos trend."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated, NamedTuple
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import Field
from pydantic.alias_generators import to_camel
from starlette.types import Scope

from infra.cache import CachedValue
from infra.http.app import hot
from infra.http.auth import MaybeCaller
from infra.http.openapi import TOKEN_OPTIONAL
from infra.http.problems import problems
from infra.http.requests import header, plain_query
from infra.http.responses import NOT_MODIFIED, conditional
from infra.http.shapes import Position, Time, Video, Wire, rfc3339
from infra.spreadsheets import wants_csv
from projections.analytics.calendar import start_of_day, start_of_hour
from projections.analytics.periods import Counts
from projections.analytics.queries import (
    COUNTS_CONSUMER,
    VIDEOS_CONSUMER,
    AnalyticsUnavailable,
    Bucket,
    Range,
    Reached,
    Stats,
)
from projections.catalog import VideoRow
from projections.trending import Ranked, Ranking, Window
from readapi.catalog import InCategory
from readapi.pages import DEFAULT_LIMIT, MOST_LIMIT, IfNoneMatch, Limit
from readapi.queries import Asked, Fresh, Read, asked, person_of
from readapi.stats import (
    AS_CSV,
    InAccept,
    InBuckets,
    InDates,
    InRange,
    VideoStats,
    require_insight,
    told_stats,
    video_in_period,
)

InWindow = Annotated[Window, Query(alias="timeRange", description="What counts: until now.")]

# So many that are gone are left out of a ranking while the analytics don't know that.
MOST_GONE = 200


class TrendingComponents(Wire):
    """Where a score comes from, in points: the sum of all but `age_penalty`, less that."""

    views: float
    likes: float
    comments: float
    watch_minutes: float
    recency_boost: Annotated[float, Field(description="What counts again because it is recent.")]
    age_penalty: Annotated[float, Field(description="What the video's age has taken away.")]


COMPONENTS = tuple(TrendingComponents.model_fields)


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


# What objects take beside their bytes.
STATS_OVERHEAD = 800
NONE_HAPPENED = '{"views":0,"likes":0,"comments":0,"shares":0,"watchMinutes":0.0,"at":"'
NO_VIEWERS = NONE_HAPPENED.replace('"likes"', '"uniqueViewers":0,"likes"')


class EmptyBuckets:
    """What a series says of buckets in which nothing happened: the same of all videos."""

    def __init__(self, step: timedelta, last: datetime) -> None:
        """The buckets are a `step` long, and lie back from the one that begins `last`."""
        self._step, self._last = step, last
        # From the last one back; with and without the number of unique viewers.
        self._viewers: list[bytes] = []
        self._plain: list[bytes] = []

    def points(self, buckets: int, untold: int) -> list[bytes]:
        """Return so many, as JSON; the first `untold` of them tell no viewers."""
        for back in range(len(self._plain), buckets):
            end = f'{self._last - back * self._step:%Y-%m-%dT%H:%M:%SZ}"}}'
            self._viewers.append(f"{NO_VIEWERS}{end}".encode())
            self._plain.append(f"{NONE_HAPPENED}{end}".encode())
        found = self._viewers[: buckets - untold] + self._plain[buckets - untold : buckets]
        found.reverse()
        return found


# Of hours and of days, while the one or the other is over just now.
empty_buckets = lru_cache(8)(EmptyBuckets)


class CachedStats(NamedTuple):
    """The stats of a video as JSON, without the buckets in which nothing happened.

    `points` are those in which something did, with a line feed between two of them; `places` say
    which they are of all `buckets`. `reached` is how far the analytics were.
    """

    head: bytes
    points: bytes
    places: array[int]
    buckets: int
    untold: int
    empty: EmptyBuckets
    reached: Reached
    digest: bytes = b""

    @property
    def size(self) -> int:
        """How many bytes it takes in memory, about."""
        return STATS_OVERHEAD + len(self.head) + len(self.points) + 2 * len(self.places)

    def with_digest(self) -> CachedStats:
        """Return the same with what stands for the whole answer, and is far shorter."""
        return self._replace(digest=blake2b(self.told(), digest_size=16).digest())

    def told(self) -> bytes:
        """Return the whole answer."""
        points = self.empty.points(self.buckets, self.untold)
        for place, point in zip(self.places, self.points.split(b"\n"), strict=False):
            points[place] = point
        return b"%b%b]}" % (self.head, b",".join(points))


router = APIRouter(tags=["analytics"])


async def show_stats(video_id: UUID, request: Request) -> Response | None:
    """Answer who wants the stats of a video."""
    known, given = await asked(request), plain_query(request.scope)
    if known is None or given is None or wants_csv(header(request.scope, b"accept")):
        return None
    try:
        range_ = Range(given.pop("timeRange", Range.WEEK))
        bucket = Bucket(given.pop("bucket")) if "bucket" in given else None
    except ValueError:
        return None
    return None if given else await _get_stats(request.scope, known, video_id, range_, bucket)


@router.get(
    "/videos/{video_id}/stats",
    response_model=VideoStats,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED | AS_CSV,
    openapi_extra=TOKEN_OPTIONAL,
    summary="What happened around the video: totals and a series",
)
@hot(show_stats)
async def get_video_stats(
    video_id: UUID,
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
    """To its owner, moderators, auditors and admins, and to everybody with `STATS_PUBLIC=true`.

    With `Accept: text/csv`, the series as a table.
    """
    known = Asked(queries, fresh, caller)
    if dates.is_asked:
        return await video_in_period(request, known, video_id, range_, bucket, dates)
    return await _get_stats(request.scope, known, video_id, range_, bucket)


async def _get_stats(
    scope: Scope, known: Asked, video_id: UUID, range_: Range, bucket: Bucket | None
) -> Response:
    queries, fresh, caller = known
    bucket = bucket or (Bucket.HOUR if range_ is Range.DAY else Bucket.DAY)
    video = await require_insight(known, video_id)
    # As the hour goes on, what is in it comes as events; with the next one, the range begins later.
    key = video_id, range_, bucket, start_of_hour(datetime.now(UTC))
    found = queries.cache.stats.get(key)
    # What was asked for may be more than the log has.
    known_by_now = queries.tail.position.covers(fresh.position)
    happened = queries.cache.counted_at(video_id) if known_by_now else fresh.position
    if found is None or not found.reached.position.covers(happened):
        found = await _read_stats(known, video.row, range_, bucket, found, happened)
        queries.cache.stats.put(key, found)
    if not found.reached.position.covers(happened):
        fresh.tell(found.reached.position)
    private = not queries.stats_public or caller is not None
    return told_stats(scope, found.told(), private=private, tagged=found.digest)


async def _read_stats(
    known: Asked,
    video: VideoRow,
    range_: Range,
    bucket: Bucket,
    cached: CachedStats | None,
    happened: Position,
) -> CachedStats:
    """Return the stats of a video around which something happened last at that position.

    Those that are cached, too, while nothing more is counted than by then.
    """
    queries, fresh, caller = known
    analytics = queries.analytics
    if fresh.is_asked:
        wanted = replace(fresh, position=_earlier(fresh.position, happened))
        await analytics.wait(wanted, COUNTS_CONSUMER, VIDEOS_CONSUMER)
    elif caller is not None:
        await analytics.settle(fresh, _earlier(queries.tail.own(caller.person), happened))
    if cached is not None and await analytics.reached() == cached.reached:
        return cached
    stats, reached = await analytics.stats(video.video_id, range_, bucket, video.completed_at)
    return stats_as_json(video.video_id, range_, bucket, stats, reached)


def _earlier(one: Position, other: Position) -> Position:
    return Position(*map(min, one, other))


def stats_as_json(
    video_id: UUID, range_: Range, bucket: Bucket, stats: Stats, reached: Reached
) -> CachedStats:
    """Return `VideoStats` as JSON, as the shape makes it, and faster."""
    totals = stats.totals
    head = (
        f'{{"videoId":"{video_id}","timeRange":"{range_}","bucket":"{bucket}",'
        f'"since":"{_at(totals)}","totals":{{{_figures(totals)}}},"series":['
    )
    last = (start_of_hour if bucket is Bucket.HOUR else start_of_day)(stats.now)
    return CachedStats(
        head.encode(),
        "\n".join(f'{{{_figures(each)},"at":"{_at(each)}"}}' for each in stats.counted).encode(),
        array("H", ((each.at - stats.first) // stats.step for each in stats.counted)),
        stats.buckets,
        stats.untold,
        empty_buckets(stats.step, last),
        reached,
    ).with_digest()


def _figures(counts: Counts) -> str:
    """Return the members of `Figures`."""
    _, views, likes, comments, shares, minutes, viewers = counts
    told = "" if viewers is None else f'"uniqueViewers":{viewers},'
    return (
        f'"views":{views},{told}"likes":{likes},"comments":{comments},"shares":{shares},'
        f'"watchMinutes":{minutes!r}'
    )


def _at(counts: Counts) -> str:
    """Return when the bucket begins, without its zone, which is UTC, but for the letter."""
    return counts.at.isoformat()[:19] + "Z"


async def show_trending(request: Request) -> Response | None:
    """Answer who wants to know what trends, in a window and so many at most."""
    known, given = await asked(request), plain_query(request.scope)
    if known is None or given is None:
        return None
    try:
        window = Window(given.pop("timeRange", Window.WEEK))
        limit = int(given.pop("limit", DEFAULT_LIMIT))
    except ValueError:
        return None
    if given or not 1 <= limit <= MOST_LIMIT:
        return None
    return await _list_trending(request.scope, known, window, limit, None)


@router.get(
    "/analytics/trending",
    response_model=TrendingVideos,
    responses=problems(401, 422, 503) | NOT_MODIFIED,
    openapi_extra=TOKEN_OPTIONAL,
    summary="Which videos trend, and why",
)
@hot(show_trending)
async def list_trending(
    request: Request,
    queries: Read,
    fresh: Fresh,
    caller: MaybeCaller,
    window: InWindow = Window.WEEK,
    limit: Limit = DEFAULT_LIMIT,
    category: InCategory = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    known = Asked(queries, fresh, caller)
    return await _list_trending(request.scope, known, window, limit, category)


async def _list_trending(
    scope: Scope, known: Asked, window: Window, limit: int, category: str | None
) -> Response:
    ranking, cached, told = await _get_ranking(known, window, limit, category)
    known.fresh.tell(ranking.includes)
    items = b",".join(
        b'%b,"video":%b}' % (_ranked(place, each)[:-1], video)
        for place, (each, video) in enumerate(zip(ranking.value, told, strict=True), start=1)
    )
    generated = {"generatedAt": rfc3339(ranking.at), "cached": cached}
    body = b'{"items":[%b],%b' % (items, orjson.dumps(generated)[1:])
    return conditional(scope, body, private=known.caller is not None, tagged=items)


class ShownRanking(NamedTuple):
    """A ranking of those that are there, whether it was cached, and these videos as JSON."""

    ranking: Ranking
    cached: bool
    told: Sequence[bytes]


async def _get_ranking(
    known: Asked, window: Window, limit: int, category: str | None
) -> ShownRanking:
    """Return what is shown of the ranking.

    Where it has what the catalog does not list any more, those behind take its place. Raise
    ReadModelBehind, AnalyticsUnavailable and ReadModelUnavailable.
    """
    queries, fresh, caller = known
    await queries.confirm(fresh, *queries.projections)
    if category is not None:
        async with queries.reading(fresh, queries.catalog, confirmed=True) as conn:
            if not await queries.catalog.has_category(conn, category):
                # Whoever makes up categories fills no cache and has nothing counted.
                now, known_of = datetime.now(UTC), queries.tail.position
                none: Ranking = CachedValue((), now, None, includes=known_of)
                return ShownRanking(none, False, ())
    gone: set[UUID] = set()
    shown: ShownRanking | None = None
    while True:
        try:
            ranking, cached = await queries.ranking(window, limit, category, fresh, gone)
        except AnalyticsUnavailable:
            if shown is None:
                raise
            # With a gap it is better than nothing.
            return shown
        ranked = [each.video_id for each in ranking.value]
        videos = await queries.shown(fresh, ranked, person_of(caller))
        there = [
            each
            for each in videos.videos
            if each.row.is_public and category in (None, each.row.category)
        ]
        told = [videos.told(each) for each in there]
        if len(there) == len(ranked):
            return ShownRanking(ranking, cached, told)
        ids = {each.row.video_id for each in there}
        listed = tuple(each for each in ranking.value if each.video_id in ids)
        shown = ShownRanking(replace(ranking, value=listed), cached, told)
        if len(gone) >= MOST_GONE:
            return shown
        gone |= set(ranked) - ids


@lru_cache(4096)
def _ranked(place: int, ranked: Ranked) -> bytes:
    """Return a place in the ranking as JSON, without the video."""
    components = {to_camel(name): getattr(ranked, name) for name in COMPONENTS}
    return orjson.dumps({"rank": place, "score": ranked.score, "components": components})

"""What a user may like to watch next, shown as the videos and the user are now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import AfterValidator, Field

from domain.dismissals import Dismissal
from domain.dismissals import stream_id as dismissal_of
from domain.feedback import GivenList, Offer, Signal, Variant, hour_id
from domain.upload import Upload
from domain.video_likes import stream_id as likes_of
from engine.checkpoints import Freshness
from engine.event_store import EVENTS
from engine.log import topics_of
from infra.http.app import wire
from infra.http.auth import Caller, Identity, person_named
from infra.http.problems import Problem, problems
from infra.http.shapes import VIDEO_ID, Video, Wire
from infra.security_log import SecurityEvent, record
from projections.analytics.calendar import start_of_hour
from projections.catalog import Catalog, VideoRow
from projections.dismissals import Dismissals
from projections.feedback.reports import key_of_lists
from projections.recommendations.blend import interleave
from projections.recommendations.model import RankedRecommendations as Made
from projections.recommendations.model import RankedVideo
from projections.recommendations.recommender import MOST
from readapi.queries import Fresh, Queries, Read, present, storable

DEFAULT_LIMIT = 10

OfUser = Annotated[
    str | None,
    Query(
        alias="userId",
        min_length=1,
        max_length=128,
        description="Whose; default: the caller. Somebody else's are for the role `admin`.",
    ),
    AfterValidator(storable),
]
SoMany = Annotated[int, Query(ge=1, le=MOST, description="How many at most.", alias="limit")]
ANSWERS = problems(401, 403, 422, 503)


class VideoReference(Wire):
    """A video by its id, and what it is called."""

    video_id: Annotated[UUID, Field(examples=[VIDEO_ID])]
    title: str


Team = Annotated[
    Variant | None,
    Field(description="Whose place it is, where two settings are compared; scores are its own."),
]


class Recommendation(Wire):
    """A video that the user may like, and why; the higher the score the earlier."""

    video: VideoReference
    reason: Annotated[str, Field(examples=["Because you watched “Tides”"])]
    score: float
    source: Annotated[Signal, Field(description="What mainly brought the video there.")]
    variant: Team = None


class RecommendedVideo(Wire):
    """The same with all that is known of the video."""

    video: Video
    reason: str
    score: float
    source: Signal
    variant: Team = None


ListId = Annotated[
    str | None,
    Field(
        description="Under which is reported what of it the user was shown and chose; only in "
        "the answer to the user."
    ),
]


class Recommendations(Wire):
    """The best first. `source` is what ordered them: the first of these that could."""

    source: Literal["llm", "blend", "trending"]
    cached: bool
    list_id: ListId = None
    items: list[Recommendation]


class RecommendedVideos(Wire):
    """The same with all that is known of the videos."""

    source: Literal["llm", "blend", "trending"]
    cached: bool
    list_id: ListId = None
    items: list[RecommendedVideo]


async def whose(request: Request, caller: Caller, user_id: OfUser = None) -> str:
    """Return the person that is asked about; raise Problem 403 for somebody else.

    What an operator reads of a user is told to the security log.
    """
    person = caller.person if user_id is None else await person_named(request, user_id)
    if person == caller.person:
        return person
    if not caller.is_admin:
        raise Problem(403, "forbidden", "These are somebody else's: ask for your own.")
    told = {"path": "/recommendations", "actor": person}
    record(SecurityEvent.PERSONAL_DATA_READ, caller.person, **told)
    return person


Whose = Annotated[str, Depends(whose)]

router = APIRouter(tags=["recommendations"])


@router.get(
    "/recommendations",
    response_model=Recommendations,
    responses=ANSWERS,
    summary="Which videos a user may like, and why",
)
async def list_recommendations(
    queries: Read, caller: Caller, user_id: Whose, fresh: Fresh, limit: SoMany = DEFAULT_LIMIT
) -> Response:
    made, cached = await _made(queries, user_id, fresh)
    now = datetime.now(UTC)
    async with queries.reading(fresh, queries.catalog) as conn:
        shown = await display(conn, queries.catalog, user_id, made, limit, now)
        list_id = await _list_id(conn, caller, _given(user_id, made, shown, now))
    items = [
        Recommendation(
            video=VideoReference(video_id=row.video_id, title=row.title),
            reason=each.reason,
            score=each.score,
            source=each.source,
            variant=_team(each),
        )
        for each, row in shown
    ]
    source = made.source.value
    return wire(Recommendations(source=source, cached=cached, list_id=list_id, items=items))


# Before `/videos/{video_id}`, which would take the word for an id.
@router.get(
    "/videos/recommendations",
    response_model=RecommendedVideos,
    responses=ANSWERS,
    summary="The same, with all that is known of the videos",
)
async def list_recommended_videos(
    queries: Read, caller: Caller, user_id: Whose, fresh: Fresh, limit: SoMany = DEFAULT_LIMIT
) -> Response:
    made, cached = await _made(queries, user_id, fresh)
    now = datetime.now(UTC)
    async with queries.reading(fresh, *queries.projections) as conn:
        shown = await display(conn, queries.catalog, user_id, made, limit, now)
        videos = await present(queries, conn, [row for _, row in shown], caller)
        list_id = await _list_id(conn, caller, _given(user_id, made, shown, now))
    items = [
        RecommendedVideo(
            video=video,
            reason=each.reason,
            score=each.score,
            source=each.source,
            variant=_team(each),
        )
        for (each, _), video in zip(shown, videos, strict=True)
    ]
    source = made.source.value
    return wire(RecommendedVideos(source=source, cached=cached, list_id=list_id, items=items))


async def _made(queries: Queries, user_id: str, fresh: Freshness) -> tuple[Made, bool]:
    """Return recommendations as fresh as was asked, and whether they were cached.

    Raise ReadModelBehind.
    """
    if fresh.is_asked:
        dismissals = queries.models[Dismissals]
        async with queries.reading(fresh, *queries.projections, dismissals):
            pass
    return await queries.recommendations.get(user_id, fresh)


def _given(
    user_id: str, made: Made, shown: Sequence[tuple[RankedVideo, VideoRow]], at: datetime
) -> GivenList:
    offers = [Offer(each.video_id, each.source, each.variant) for each, _ in shown]
    return GivenList.given(user_id, at, offers, made.experiment)


async def _list_id(
    conn: AsyncConnection[TupleRow], caller: Identity, given: GivenList
) -> str | None:
    """Return the id of a list; None where it is not given to its user."""
    if caller.person != given.user_id:
        return None
    return given.signed(await key_of_lists(conn))


def _team(each: RankedVideo) -> Variant | None:
    return None if each.variant is Variant.DEFAULT else each.variant


# Each by key. A stream of likes is there once there was a like, also where it was taken back; of a
# dismissal the last event says whether it stands.
LEFT_OUT = f"""
SELECT video_id FROM unnest(%(videos)s::uuid[], %(likes)s::uuid[], %(dismissals)s::uuid[])
    AS asked (video_id, likes_id, dismissal_id)
WHERE EXISTS (SELECT FROM {EVENTS} AS e WHERE e.originator_id = likes_id)
   OR EXISTS (SELECT FROM {EVENTS} AS e
              WHERE e.originator_id = video_id AND e.topic = ANY (%(removed)s))
   OR (SELECT convert_from(e.state, 'UTF8')::json->>'visibility' FROM {EVENTS} AS e
       WHERE e.originator_id = video_id AND e.topic = ANY (%(shown)s)
       ORDER BY e.originator_version DESC LIMIT 1) <> 'public'
   OR (SELECT e.topic FROM {EVENTS} AS e WHERE e.originator_id = dismissal_id
       ORDER BY e.originator_version DESC LIMIT 1) = ANY (%(dismissed)s)
   OR EXISTS (SELECT FROM public.backlot_telemetry AS t
              WHERE t.topic = 'video.viewed' AND t.user_id = %(viewer)s
                AND t.video_id = asked.video_id)
""".encode()
REMOVED = topics_of(Upload.Removed)
SHOWN = topics_of(Upload.VisibilityChanged)
DISMISSED = topics_of(Dismissal.Dismissed)

PLAIN = "Picked for you"
"""In the place of a reason that names what has changed since."""


async def display(
    conn: AsyncConnection[TupleRow],
    catalog: Catalog,
    user_id: str,
    made: Made,
    limit: int,
    at: datetime,
) -> list[tuple[RankedVideo, VideoRow]]:
    """Return the first `limit` that can still be recommended: those behind fill the gaps.

    Nothing that was removed or is not public, that is the user's own, or that the user has watched,
    liked or dismissed by now, commands that were just acknowledged included. `conn` leads to the
    catalog and to the event log. Two orders that are compared are interleaved, the same way within
    an hour.
    """
    orders = [each for each in (made.items, made.rival) if each is not None]
    videos = list(dict.fromkeys(each.video_id for order in orders for each in order))
    found = await catalog.videos(conn, [*videos, *made.told])
    rows = {video: row for video, row in found.items() if row.is_public}
    given = {
        "videos": videos,
        "likes": [likes_of(video, user_id) for video in videos],
        "dismissals": [dismissal_of(video, user_id) for video in videos],
        "removed": REMOVED,
        "shown": SHOWN,
        "dismissed": DISMISSED,
        "viewer": user_id,
    }
    out = {video for (video,) in await (await conn.execute(LEFT_OUT, given)).fetchall()}
    out |= {video for video, row in rows.items() if row.owner == user_id}
    there, *rivals = [
        [each for each in order if each.video_id in rows and each.video_id not in out]
        for order in orders
    ]
    if rivals:
        there = interleave(there, rivals[0], hour_id(user_id, start_of_hour(at)))
    changed = {
        video
        for video, told in made.told.items()
        if video not in rows or told != (rows[video].title, rows[video].category)
    }
    # A language model has read the texts of the whole profile.
    profile_changed = not changed.issubset(videos)

    def now(each: RankedVideo) -> RankedVideo:
        """Return the recommendation without a reason that may repeat an old title or category."""
        stale = each.by_model and profile_changed
        if stale or each.video_id in changed or each.because in changed:
            return replace(each, reason=PLAIN)
        return each

    return [(now(each), rows[each.video_id]) for each in there[:limit]]

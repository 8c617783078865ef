"""What a user may like to watch next."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Response
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import AfterValidator, Field

from domain.feedback import GivenList, Offer, Signal, Variant
from engine.freshness import Freshness
from infra.http.app import Caller, wire
from infra.http.auth import Identity
from infra.http.problems import Problem, problems
from infra.http.shapes import VIDEO_ID, Video, Wire
from infra.security_log import SecurityEvent, record
from projections.catalog import VideoRow
from projections.dismissals import Dismissals
from projections.feedback.reports import key_of_lists
from projections.recommendations.display import display
from projections.recommendations.model import RankedRecommendations as Made
from projections.recommendations.model import RankedVideo
from projections.recommendations.recommender import MOST
from readapi.catalog import present
from readapi.paging import storable
from readapi.queries import Fresh, Queries, Read

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


async def whose(caller: Caller, user_id: OfUser = None) -> str:
    """Return the user that is asked about; raise Problem 403 for somebody else.

    What an operator reads of a user is told to the security log.
    """
    if user_id is None or user_id == caller.user_id:
        return caller.user_id
    if not caller.is_admin:
        raise Problem(403, "forbidden", "These are somebody else's: ask for your own.")
    told = {"path": "/recommendations", "actor": user_id}
    record(SecurityEvent.PERSONAL_DATA_READ, caller.user_id, **told)
    return user_id


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
    if caller.user_id != given.user_id:
        return None
    return given.signed(await key_of_lists(conn))


def _team(each: RankedVideo) -> Variant | None:
    return None if each.variant is Variant.DEFAULT else each.variant

"""Why rankings are as they are: what trends by other weights, what speaks for recommendations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic.alias_generators import to_camel

from infra.http.auth import Admin, Auditor
from infra.http.problems import problems
from infra.http.responses import NOT_MODIFIED, conditional, conditional_wire
from infra.http.shapes import Time, Video, Wire, rfc3339
from infra.settings.features import MAX_WEIGHT
from projections.recommendations.model import Candidate, RankedVideo
from projections.trending import Formula, Ranked, Window
from readapi.analytics import COMPONENTS, InWindow, TrendingComponents
from readapi.exclusions import reasons_left_out
from readapi.pages import DEFAULT_LIMIT, MOST_LIMIT, IfNoneMatch, Limit
from readapi.queries import Fresh, Read, outage_as_unavailable
from readapi.recommendations import Whose

Weight = Annotated[float | None, Query(ge=0, le=MAX_WEIGHT, allow_inf_nan=False)]


class TrendingWeights(Wire):
    """Points of a view, a like, a comment and a watched minute; how much what is recent weighs.

    `agePenalty` is the share of the points that age takes at most; left out where the views of the
    site itself tell that.
    """

    views: float
    likes: float
    comments: float
    watch_minutes: float
    recency: float
    age_penalty: float | None = None

    @classmethod
    def of(cls, formula: Formula) -> TrendingWeights:
        """Return the weights of a formula."""
        floor = formula.age_floor
        return cls(
            views=formula.view_weight,
            likes=formula.like_weight,
            comments=formula.comment_weight,
            watch_minutes=formula.watch_minute_weight,
            recency=formula.recent_boost,
            age_penalty=None if floor is None else 1 - floor,
        )


class ReweighedVideo(Wire):
    """A video in its place by these weights.

    `currentRank` is its place by the settings, left out where that is behind the first 100.
    """

    rank: int
    current_rank: int | None = None
    score: float
    components: TrendingComponents
    video: Video


class ReweighedTrending(Wire):
    """What would trend by these weights; nothing is changed."""

    weights: TrendingWeights
    items: list[ReweighedVideo]
    generated_at: Time


class ExplainedCandidate(Wire):
    """A video that may be recommended: `sources` are all that speak for it, the strongest first."""

    video_id: UUID
    score: float
    sources: list[str]
    reason: str


class FilteredVideo(Wire):
    """A video that trends or could be recommended, and why this user does not get it."""

    video_id: UUID
    why: Literal["own", "liked", "watched", "dismissed", "removed", "not public"]


class ExplainedRecommendations(Wire):
    """What a user may be recommended, in its order, and what is left out."""

    source: Literal["llm", "blend", "trending"]
    candidates: list[ExplainedCandidate]
    filtered: list[FilteredVideo]


def asked_weights(
    views: Weight = None,
    likes: Weight = None,
    comments: Weight = None,
    watch_minutes: Annotated[Weight, Query(alias="watchMinutes")] = None,
    recency: Annotated[
        float | None,
        Query(ge=1, le=MAX_WEIGHT, allow_inf_nan=False, description="Of what is recent."),
    ] = None,
    age_penalty: Annotated[
        float | None,
        Query(alias="agePenalty", ge=0, le=1, description="What age takes at most, from 0 to 1."),
    ] = None,
) -> Mapping[str, float]:
    """Return which weights of the formula are to be others than those of the settings."""
    given = {
        "view_weight": views,
        "like_weight": likes,
        "comment_weight": comments,
        "watch_minute_weight": watch_minutes,
        "recent_boost": recency,
        "age_floor": None if age_penalty is None else 1 - age_penalty,
    }
    return {name: value for name, value in given.items() if value is not None}


router = APIRouter()


@router.get(
    "/analytics/trending/why",
    response_model=ReweighedTrending,
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    tags=["analytics"],
    summary="What would trend by other weights",
)
async def explain_trending(
    request: Request,
    queries: Read,
    caller: Auditor,
    fresh: Fresh,
    weights: Annotated[Mapping[str, float], Depends(asked_weights)],
    window: InWindow = Window.WEEK,
    limit: Limit = DEFAULT_LIMIT,
    if_none_match: IfNoneMatch = None,
) -> Response:
    await queries.confirm(fresh, *queries.projections)
    formula = replace(queries.analytics.formula, **weights)  # type: ignore[arg-type]
    current, _ = await queries.ranking(window, MOST_LIMIT, None, fresh, ())
    ranked: Sequence[Ranked] = current.value[:limit]
    if formula != queries.analytics.formula:
        # Made for whoever asks: it takes longer the more there is.
        ranked = await queries.analytics.rank_by(formula, window, limit)
    places = {each.video_id: each.rank for each in current.value}
    shown = await queries.shown(fresh, [each.video_id for each in ranked])
    videos = {e.row.video_id: e.told(None) for e in shown.videos if e.row.is_public}
    fresh.tell(current.includes)
    items = [
        {
            **({"currentRank": place} if (place := places.get(each.video_id)) else {}),
            "rank": each.rank,
            "score": each.score,
            "components": {to_camel(name): getattr(each, name) for name in COMPONENTS},
            "video": orjson.Fragment(videos[each.video_id]),
        }
        for each in ranked
        if each.video_id in videos
    ]
    told = {
        "weights": orjson.Fragment(TrendingWeights.of(formula).to_json()),
        "items": items,
        "generatedAt": rfc3339(current.at),
    }
    return conditional(request.scope, orjson.dumps(told), private=True)


@router.get(
    "/recommendations/why",
    response_model=ExplainedRecommendations,
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    tags=["recommendations"],
    summary="What speaks for what a user is recommended, and what is left out",
)
async def explain_recommendations(
    request: Request,
    queries: Read,
    caller: Admin,
    user_id: Whose,
    fresh: Fresh,
    if_none_match: IfNoneMatch = None,
) -> Response:
    await queries.confirm(fresh, *queries.projections)
    made, candidates, trending = await queries.recommendations.explain(user_id, fresh)
    asked = list(dict.fromkeys((*(each.video_id for each in made.items), *trending)))
    with outage_as_unavailable():
        async with queries.pool.connection() as conn:
            out = await reasons_left_out(conn, user_id, asked)
    shown = await queries.shown(fresh, asked, parts=(queries.catalog,))
    rows = {each.row.video_id: each.row for each in shown.videos}
    for video in asked:
        row = rows.get(video)
        if row is not None and row.owner == user_id:
            out[video] = "own"
        elif row is None or not row.is_public:
            out.setdefault(video, "removed" if row is None else "not public")
    speaks = {each.video_id: each for each in candidates}
    body = ExplainedRecommendations.model_validate(
        {
            "source": made.source.value,
            "candidates": [
                ExplainedCandidate(
                    video_id=each.video_id,
                    score=each.score,
                    sources=list(_sources(each, speaks.get(each.video_id))),
                    reason=each.reason,
                )
                for each in made.items
                if each.video_id not in out
            ],
            "filtered": [{"video_id": video, "why": why} for video, why in out.items()],
        }
    )
    return await conditional_wire(request, body)


def _sources(ranked: RankedVideo, candidate: Candidate | None) -> Iterator[str]:
    """Yield what speaks for a video: what brought it there first, then what else there is."""
    yield str(ranked.source)
    if candidate is None:
        return
    shares = {
        "neighbour": candidate.neighbour,
        "category": candidate.same_category,
        "similar": candidate.similar,
        "trending": candidate.trending,
        "popular": candidate.popular,
    }
    for name, share in sorted(shares.items(), key=lambda item: -item[1]):
        if share > 0 and name != ranked.source:
            yield name

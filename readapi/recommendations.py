"""What a user may like to watch next, shown as the videos and the user are now."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Literal, NamedTuple
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AfterValidator, Field

from domain.feedback import GivenList, Offer, Signal, Variant, hour_id
from engine.checkpoints import Freshness
from infra.http.app import hot
from infra.http.auth import Caller, person_named, require_known
from infra.http.problems import Problem, problems
from infra.http.requests import plain_query
from infra.http.responses import NO_HEADERS, JsonResponse, wire
from infra.http.shapes import VIDEO_ID, Video, Wire
from infra.security_log import SecurityEvent, record
from projections.analytics.calendar import start_of_hour
from projections.catalog import VideoRow
from projections.dismissals import Dismissals
from projections.recommendations.blend import interleave
from projections.recommendations.model import RankedRecommendations as Made
from projections.recommendations.model import RankedVideo
from projections.recommendations.recommender import MOST
from readapi.pages import PLAIN_LIMIT, storable
from readapi.queries import Asked, Fresh, Queries, Read, ShownVideos, asked, person_of
from readapi.viewer_cache import Offers

DEFAULT_LIMIT = 10
SPARE = 6
"""So many more than are shown are looked at first, for those that were seen or removed."""

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
    shown = await _shown(Asked(queries, fresh, caller), user_id, limit)
    items = [
        Recommendation(
            video=VideoReference(video_id=each.video_id, title=video.row.title),
            reason=each.reason,
            score=each.score,
            source=each.source,
            variant=_team(each),
        )
        for each, video in zip(shown.offered.items, shown.videos.videos, strict=True)
    ]
    told = {"source": shown.source, "cached": shown.cached, "list_id": shown.list_id}
    # Each answer is a list of its own, which is named when something of it is chosen.
    return wire(Recommendations.model_validate({**told, "items": items}))


async def recommend(request: Request) -> Response | None:
    """Answer who wants recommendations of their own."""
    known, given = await asked(request), plain_query(request.scope)
    if known is None or given is None:
        return None
    limit = given.pop("limit", str(DEFAULT_LIMIT))
    if given or not PLAIN_LIMIT.fullmatch(limit) or int(limit) > MOST:
        return None
    caller = require_known(known.caller)
    return await _list_recommended_videos(known, caller.person, int(limit))


# Before `/videos/{video_id}`, which would take the word for an id.
@router.get(
    "/videos/recommendations",
    response_model=RecommendedVideos,
    responses=ANSWERS,
    summary="The same, with all that is known of the videos",
)
@hot(recommend)
async def list_recommended_videos(
    queries: Read, caller: Caller, user_id: Whose, fresh: Fresh, limit: SoMany = DEFAULT_LIMIT
) -> Response:
    return await _list_recommended_videos(Asked(queries, fresh, caller), user_id, limit)


async def _list_recommended_videos(known: Asked, user_id: str, limit: int) -> Response:
    shown = await _shown(known, user_id, limit)
    items = [
        b'{"video":%b,%b' % (shown.videos.told(video), told)
        for told, video in zip(shown.offered.told, shown.videos.videos, strict=True)
    ]
    rest: dict[str, object] = {"source": shown.source, "cached": shown.cached}
    if shown.list_id is not None:
        rest["listId"] = shown.list_id
    body = b'{"items":[%b],%b' % (b",".join(items), orjson.dumps(rest)[1:])
    return JsonResponse(body, 200, NO_HEADERS)


def _told(each: RankedVideo) -> bytes:
    """Return why a video is recommended as JSON, without the brace before it."""
    told: dict[str, object] = {"reason": each.reason, "score": each.score, "source": each.source}
    if (team := _team(each)) is not None:
        told["variant"] = team
    return orjson.dumps(told)[1:]


class Offered(NamedTuple):
    """The recommendations that can still be told, also as JSON; under which id to their user."""

    items: Sequence[RankedVideo]
    told: Sequence[bytes]
    list_id: str


class ShownRecommendations(NamedTuple):
    """What is told of recommendations, and the videos of them."""

    source: str
    cached: bool
    list_id: str | None
    offered: Offered
    videos: ShownVideos


async def _shown(known: Asked, user_id: str, limit: int) -> ShownRecommendations:
    """Return recommendations as fresh as was asked; raise ReadModelBehind."""
    queries, fresh, caller = known
    person = person_of(caller)
    await queries.confirm(fresh, *queries.projections)
    if fresh.is_asked:
        async with queries.reading(fresh, *queries.projections, queries.models[Dismissals]):
            pass
    offers, cached = await _offers(queries, user_id, fresh)
    changes = queries.cache.changes
    offered = await _offered(known, offers, user_id, limit)
    shown = await queries.shown(fresh, [each.video_id for each in offered.items], person)
    list_id = offered.list_id if person == user_id else None
    if len(shown.videos) < len(offered.items) or queries.cache.changes != changes:
        # One of them may have gone, or been hidden, just now.
        offers.told = None
        return await _shown(known, user_id, limit)
    return ShownRecommendations(offers.found.made.source.value, cached, list_id, offered, shown)


async def _offered(known: Asked, offers: Offers, user_id: str, limit: int) -> Offered:
    """Return what can still be told of what may be recommended."""
    queries, now = known.queries, datetime.now(UTC)
    hour, changes = start_of_hour(now), queries.cache.changes
    # All that decides which of them are told, and how.
    if offers.told is not None and offers.told[0] == (limit, hour, len(offers.out), changes):
        told: Offered = offers.told[1]
        return told
    made = offers.found.made
    part = made.beginning(limit + SPARE)
    items, exact = await _shown_of(part, known, offers, user_id, limit, now)
    if len(items) < limit and part is not made:
        items, exact = await _shown_of(made, known, offers, user_id, limit, now)
    state = limit, hour, len(offers.out), changes
    signed = _given(user_id, made, items, now).signed(await queries.key_of_lists())
    offered = Offered(items, [_told(each) for each in items], signed)
    offers.told = (state, offered) if exact else None
    return offered


async def _shown_of(
    made: Made, known: Asked, offers: Offers, user_id: str, limit: int, now: datetime
) -> tuple[Sequence[RankedVideo], bool]:
    """Return what can be shown of these, and whether that is as of what was confirmed."""
    queries, fresh, _ = known
    videos = dict.fromkeys((*made.told, *(each.video_id for each in made.offered)))
    found = await queries.shown(fresh, list(videos), parts=(queries.catalog,))
    if not found.exact:
        # The log tells who may see them.
        offers.forget_lookups()
    rows = {each.row.video_id: each.row for each in found.videos if each.row.is_public}
    changed = _changed(rows, made)
    while True:
        items = display(rows, changed, offers.out, user_id, made, limit, now)
        asked = [each.video_id for each in items if each.video_id not in offers.looked_up]
        if not asked:
            return items, found.exact
        out = await queries.left_out(user_id, asked)
        offers.looked_up.update(asked)
        offers.out |= out


async def _offers(queries: Queries, user_id: str, fresh: Freshness) -> tuple[Offers, bool]:
    """Return what may be recommended to a user, and whether that was cached."""
    cache, recommendations = queries.cache.offers, queries.recommendations
    if not fresh.is_asked and (kept := cache.get(user_id)) is not None:
        if cache.is_checked(kept):
            return kept, True
        now = time.monotonic()
        # Which are new to the user, read models told that may have been behind.
        may_hold = not kept.found.with_newest
        holds = may_hold and await recommendations.holds(user_id, kept.found)
        if holds and cache.get(user_id) is kept:
            kept.checked = now
            return kept, True
    mark = cache.mark(user_id)
    found = await recommendations.get(user_id, fresh)
    offers = Offers(found)
    cache.put(user_id, offers, mark)
    return offers, found.cached


def _given(user_id: str, made: Made, shown: Sequence[RankedVideo], at: datetime) -> GivenList:
    offers = [Offer(each.video_id, each.source, each.variant) for each in shown]
    return GivenList.given(user_id, at, offers, made.experiment)


def _team(each: RankedVideo) -> Variant | None:
    return None if each.variant is Variant.DEFAULT else each.variant


PLAIN = "Picked for you"
"""In the place of a reason that names what has changed since."""


def _changed(rows: Mapping[UUID, VideoRow], made: Made) -> set[UUID]:
    """Return which of the videos that were told of are otherwise now, or not public."""
    return {
        video
        for video, told in made.told.items()
        if (row := rows.get(video)) is None or told != (row.title, row.category)
    }


def display(
    rows: Mapping[UUID, VideoRow],
    changed: Collection[UUID],
    out: Collection[UUID],
    user_id: str,
    made: Made,
    limit: int,
    at: datetime,
) -> list[RankedVideo]:
    """Return the first `limit` that can still be recommended: those behind fill the gaps.

    Nothing that is not among the `rows`, which are public, that is the user's own, or that is to be
    left `out`. Two orders that are compared are interleaved, the same way within an hour.
    """
    orders = [
        [
            each
            for each in order
            if (row := rows.get(each.video_id))
            and row.owner != user_id
            and not (out and each.video_id in out)
        ]
        for order in made.orders
    ]
    there = orders[0]
    if len(orders) > 1:
        there = interleave(there, orders[1], hour_id(user_id, start_of_hour(at)))
    if not changed:
        return there[:limit]
    # A language model has read the texts of the whole profile.
    profile_changed = not {each.video_id for each in made.offered}.issuperset(changed)

    def now(each: RankedVideo) -> RankedVideo:
        """Return the recommendation without a reason that may repeat an old title or category."""
        stale = each.by_model and profile_changed
        if stale or each.video_id in changed or each.because in changed:
            return replace(each, reason=PLAIN)
        return each

    return [now(each) for each in there[:limit]]

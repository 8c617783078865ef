"""Feedback on recommendations: which of a list a user was shown, and which one they chose."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response
from pydantic import Field

from commands.endpoint import TOKEN_FIRST, Accepted, Execute, Reply, executor
from commands.upload_queries import FindVisible
from domain.feedback import CHOSEN, SHOWN, GivenList
from domain.model import Origin
from engine.command_bus import Aggregates, Query
from engine.lookups import Lookup
from engine.telemetry import TelemetryEvent
from infra.http.problems import problems
from infra.http.shapes import VIDEO_ID, RequestBody, rfc3339

MOST_VIDEOS = 50
LONGEST_ID = 2_000


class Shown(RequestBody):
    """The videos of the list that the user could see."""

    video_ids: Annotated[
        list[UUID], Field(min_length=1, max_length=MOST_VIDEOS, examples=[[VIDEO_ID]])
    ]


class Chosen(RequestBody):
    """The video of the list that the user went for."""

    video_id: Annotated[UUID, Field(examples=[VIDEO_ID])]


@dataclass(frozen=True)
class ListKey(Lookup[bytes]):
    """With what the ids of lists are signed."""

    default = b""


@dataclass(frozen=True)
class FindList(Query[GivenList]):
    """Return the list of an id; refuse one that was not given to this user, or too long ago."""

    list_id: str
    user_id: str

    def streams(self) -> Sequence[UUID]:
        return ()

    def lookups(self) -> Sequence[ListKey]:
        return (ListKey(),)

    def decide(self, aggregates: Aggregates, origin: Origin) -> GivenList:
        found = GivenList.opened(self.list_id, self.user_id, aggregates.look_up(ListKey()))
        found.require_reportable(origin.at)
        return found


ListId = Annotated[
    str, Path(max_length=LONGEST_ID, description="The `listId` of recommendations, as it is.")
]
router = APIRouter(
    prefix="/recommendations/{list_id}", tags=["recommendations"], dependencies=TOKEN_FIRST
)
accepted: dict[str, Any] = {
    "status_code": 202,
    "response_model": Accepted,
    "responses": problems(400, 401, 404, 409, 413, 422, 503),
}


@router.post("/shown", summary="Report which of them the user was shown", **accepted)
async def report_shown(list_id: ListId, body: Shown, request: Request) -> Response:
    return await _accept(await executor(request), list_id, body.video_ids, (SHOWN,))


@router.post("/chosen", summary="Report which one the user chose", **accepted)
async def report_chosen(list_id: ListId, body: Chosen, request: Request) -> Response:
    # Nobody chooses what they were not shown.
    return await _accept(await executor(request), list_id, [body.video_id], (SHOWN, CHOSEN))


async def _accept(
    execute: Execute, list_id: str, videos: Sequence[UUID], topics: Sequence[str]
) -> Response:
    repeated = await execute.recall()
    if repeated is not None:
        return repeated
    given = await execute.value(FindList(list_id, execute.actor))
    # What has become private in the meantime is passed over.
    visible = await execute.value(FindVisible([*dict.fromkeys(videos)], execute.viewer))
    await record(execute, given, visible, topics)
    return await execute(Reply(Accepted()), status=202)


async def record(
    execute: Execute, given: GivenList, videos: Sequence[UUID], topics: Sequence[str]
) -> None:
    """Record that of these videos; what was recorded before counts once. Raise Invalid."""
    now, places = datetime.now(UTC), given.places(videos)
    told = [_event(execute, given, topic, place, now) for topic in topics for place in places]
    await asyncio.gather(*(execute.services.telemetry.record(event) for event in told))


def _event(
    execute: Execute, given: GivenList, topic: str, place: int, now: datetime
) -> TelemetryEvent:
    offer = given.offers[place - 1]
    details = {
        "listId": str(given.id),
        "givenAt": rfc3339(given.hour),
        "place": place,
        "source": offer.source,
        "variant": offer.variant,
    }
    if given.experiment is not None:
        details["experiment"] = given.experiment
    return TelemetryEvent(
        given.report_id(topic, place),
        topic,
        offer.video_id,
        given.user_id,
        now,
        details,
        execute.correlation_id,
    )

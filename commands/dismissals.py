"""Dismissals: say that a video is of no interest, and take that back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import Field

from commands.endpoint import TOKEN_FIRST, Execute, executor
from domain.dismissals import Dismissal, stream_id
from domain.model import Origin
from domain.upload import NOBODY, Upload, VideoViewer
from engine.command_bus import Aggregates, Command
from infra.http.problems import problems
from infra.http.shapes import VIDEO_ID, RequestBody, Wire


class Interest(Wire):
    """Whether the caller has said to be not interested in the video."""

    video_id: Annotated[UUID, Field(examples=[VIDEO_ID])]
    not_interested: bool


class OfNoInterest(RequestBody):
    """The video that the caller is not interested in."""

    video_id: Annotated[UUID, Field(examples=[VIDEO_ID])]


@dataclass(frozen=True)
class ChangeInterest(Command[Interest]):
    """Dismiss a video, or take that back."""

    video_id: UUID
    viewer: str
    not_interested: bool
    seen_by: VideoViewer = NOBODY

    def streams(self) -> Sequence[UUID]:
        return (self.video_id, stream_id(self.video_id, self.viewer))

    def decide(self, aggregates: Aggregates, origin: Origin) -> Interest:
        aggregates.get(Upload, self.video_id).require_visible(self.seen_by)
        dismissal = aggregates.get(Dismissal, stream_id(self.video_id, self.viewer))
        verb = dismissal.dismiss if self.not_interested else dismissal.take_back
        verb(self.video_id, self.viewer, origin)
        return Interest(video_id=self.video_id, not_interested=dismissal.stands)


router = APIRouter(tags=["recommendations"])
answers: dict[str, Any] = {
    "response_model": Interest,
    "responses": problems(401, 404, 409, 422, 503),
}


@router.put("/videos/{video_id}/not-interested", summary="Have it recommended no more", **answers)
async def dismiss_video(video_id: UUID, request: Request) -> Response:
    execute = await executor(request)
    return await execute(_change(execute, video_id, not_interested=True))


@router.delete("/videos/{video_id}/not-interested", summary="Take that back", **answers)
async def take_back_dismissal(video_id: UUID, request: Request) -> Response:
    execute = await executor(request)
    return await execute(_change(execute, video_id, not_interested=False))


@router.post(
    "/recommendations/not-interested",
    status_code=202,
    dependencies=TOKEN_FIRST,
    response_model=Interest,
    responses=problems(400, 401, 404, 409, 413, 422, 503),
    summary="Have a video recommended no more",
)
async def dismiss_recommended_video(body: OfNoInterest, request: Request) -> Response:
    execute = await executor(request)
    return await execute(_change(execute, body.video_id, not_interested=True), status=202)


def _change(execute: Execute, video_id: UUID, *, not_interested: bool) -> ChangeInterest:
    return ChangeInterest(video_id, execute.actor, not_interested, execute.viewer)

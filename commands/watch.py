"""Watching: where a video plays, how long it was watched, and where it was shared to."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import Field

from commands.endpoint import VIEWER_FIRST, Accepted, Execute, Reply, viewer_executor
from commands.feedback import LONGEST_ID, FindList, record
from commands.upload_queries import FindVideoFile
from domain.errors import Invalid
from domain.feedback import CHOSEN, SHOWN, GivenList, ListTooOld, ListUnknown
from domain.text import check_text
from domain.upload import object_key
from engine.telemetry import SHARED, VIEWED, WATCH_TIME, TelemetryEvent
from infra.http.app import hot
from infra.http.problems import problems
from infra.http.requests import has_body
from infra.http.shapes import RequestBody, Wire


class Watching(Wire):
    """The session under which watch time is reported."""

    session_id: UUID


class WatchSession(Watching):
    """Where the video plays, and the session under which watch time is reported."""

    url: str


class WatchTime(RequestBody):
    """Seconds watched since the last report of this session; `position` is where they began."""

    session_id: UUID
    seconds: Annotated[
        float, Field(gt=0, le=86_400, strict=True, allow_inf_nan=False, examples=[12.5])
    ]
    position: (
        Annotated[
            float,
            Field(
                ge=0,
                le=86_400,
                strict=True,
                allow_inf_nan=False,
                examples=[30],
                description="Seconds from the beginning of the video.",
            ),
        ]
        | None
    ) = None


class Share(RequestBody):
    """Where the video was shared to."""

    channel: Annotated[str, Field(min_length=1, max_length=50, examples=["mail"])] | None = None


class WatchFrom(RequestBody):
    """Where the viewer came from: the `listId` of recommendations, if from one of these."""

    list_id: Annotated[str, Field(max_length=LONGEST_ID)] | None = None


router = APIRouter(prefix="/videos/{video_id}", tags=["watching"], dependencies=VIEWER_FIRST)
accepted: dict[str, Any] = {
    "status_code": 202,
    "response_model": Accepted,
    "responses": problems(400, 401, 404, 409, 413, 422, 503),
}


async def watch_at_once(video_id: UUID, request: Request) -> Response | None:
    """Answer who sends no body, as most do."""
    return None if has_body(request.scope) else await _watch(video_id, request, None)


@router.post(
    "/watch",
    response_model=WatchSession,
    responses=problems(400, 401, 404, 409, 413, 422, 503),
    summary="Get a URL that plays, and a session",
)
@hot(watch_at_once)
async def watch_video(video_id: UUID, request: Request, body: WatchFrom | None = None) -> Response:
    return await _watch(video_id, request, body)


async def _watch(video_id: UUID, request: Request, body: WatchFrom | None) -> Response:
    execute = await viewer_executor(request)
    media = await execute.value(FindVideoFile(video_id, execute.viewer))
    given = await _list_with(video_id, body.list_id, execute) if body and body.list_id else None
    watching = await execute.kept(Watching)
    if watching is None:
        # A new session, or the one that the caller is in.
        session = execute.fresh_id("session")
        event = _event(execute, VIEWED, video_id, {"sessionId": str(session)})
        recorded = await execute.services.telemetry.record(event._replace(viewer=execute.actor))
        reply = Reply(Watching(session_id=recorded or session))
        watching = await execute.keep(reply, Watching)
    if given is not None:
        await record(execute, given, [video_id], (SHOWN, CHOSEN))
    signed = execute.services.objects.get_url(
        object_key(video_id), media.content_type, media.filename, execute.base_url
    )
    return watching.told(WatchSession(url=signed.url, session_id=watching.facts.session_id))


@router.post("/watch-time", summary="Report seconds watched", **accepted)
async def report_watch_time(video_id: UUID, body: WatchTime, request: Request) -> Response:
    execute = await viewer_executor(request)
    details: dict[str, Any] = {"sessionId": str(body.session_id), "seconds": body.seconds}
    if body.position is not None:
        details["position"] = body.position
    return await _accept(execute, WATCH_TIME, video_id, details)


@router.post("/share", summary="Report a share", **accepted)
async def share_video(video_id: UUID, request: Request, body: Share | None = None) -> Response:
    execute = await viewer_executor(request)
    channel = body.channel if body else None
    if channel is not None:
        check_text(channel, "channel", max_length=50)
    return await _accept(execute, SHARED, video_id, {"channel": channel} if channel else {})


async def _list_with(video_id: UUID, list_id: str, execute: Execute) -> GivenList | None:
    """Return the list that the video was chosen from; None where that can't be told any more.

    Raise Invalid for a list of somebody else, or without the video.
    """
    try:
        given = await execute.value(FindList(list_id, execute.actor))
    except ListTooOld:
        # Who comes back to a page of yesterday wants to watch.
        return None
    except ListUnknown as error:
        raise Invalid(f"`listId`: {error}") from error
    given.places([video_id])
    return given


async def _accept(
    execute: Execute, topic: str, video_id: UUID, details: Mapping[str, Any]
) -> Response:
    repeated = await execute.recall()
    if repeated is not None:
        return repeated
    await execute.value(FindVideoFile(video_id, execute.viewer))
    await execute.services.telemetry.record(_event(execute, topic, video_id, details))
    return await execute(Reply(Accepted()), status=202)


def _event(
    execute: Execute, topic: str, video_id: UUID, details: Mapping[str, Any]
) -> TelemetryEvent:
    return TelemetryEvent(
        execute.fresh_id(topic),
        topic,
        video_id,
        execute.user_id,
        datetime.now(UTC),
        details,
        execute.correlation_id,
    )

"""Tickets for the live streams of videos, for clients that can't send a token with them.

Nothing is recorded but the answer to an `Idempotency-Key`, and that without the ticket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from fastapi import APIRouter, Request, Response

from commands.endpoint import executor
from domain.model import Origin
from domain.upload import Upload, VideoViewer
from engine.command_bus import Aggregates, Query
from infra.http.problems import problems
from infra.http.shapes import Time, Wire
from infra.http.tickets import issue


class LiveStream(Wire):
    """The stream of a video that somebody may see."""

    video_id: UUID


class LiveTicket(Wire):
    """What stands for a token in the URL of one stream, and until when it may be opened."""

    ticket: str
    expires_at: Time


@dataclass(frozen=True)
class FindLiveStream(Query[LiveStream]):
    """Return a video's stream to whoever sees the video; raise NotFound."""

    video_id: UUID
    viewer: VideoViewer

    def streams(self) -> Sequence[UUID]:
        return (self.video_id,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> LiveStream:
        aggregates.get(Upload, self.video_id).require_visible(self.viewer)
        return LiveStream(video_id=self.video_id)


router = APIRouter(tags=["videos"])


@router.post(
    "/videos/{video_id}/events/ticket",
    response_model=LiveTicket,
    responses=problems(400, 401, 404, 409, 422, 503),
    summary="Get a ticket for an `EventSource`",
)
async def get_live_ticket(video_id: UUID, request: Request) -> Response:
    execute = await executor(request)
    found = await execute.keep(FindLiveStream(video_id, execute.viewer), LiveStream)
    ticket = await issue(request, video_id, execute.identity)
    return found.told(LiveTicket(ticket=ticket.text, expires_at=ticket.expires_at))

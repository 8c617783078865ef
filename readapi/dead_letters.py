"""What waits for a decision: messages that failed, and parked events of all projections."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator

from engine import dead_letters
from engine.dead_letters import DeadLetter
from engine.parked_events import parked_of_all
from infra.errors import fault_of
from infra.http.auth import Admin, Auditor, Identity
from infra.http.problems import problems
from infra.http.responses import NOT_MODIFIED, conditional_wire
from infra.http.shapes import Time, UserId, Wire
from infra.security_log import SecurityEvent, record
from readapi.operations import ParkedEvent, ask
from readapi.pages import (
    IfNoneMatch,
    Page,
    Paged,
    decode_cursor,
    decode_place,
    encode_cursor,
    storable,
)
from readapi.queries import Fresh, Read

LETTERS, PARKED = "letters", "all-parked"


class FailedMessage(Wire):
    """A message that a consumer could not handle, or the relay could not publish.

    `position` is its place in its source. To admins the whole error is told, with the `payload`; to
    auditors only which fault it was, since the rest may quote what somebody wrote. With `redrive`,
    it is about to be given to its consumer again; what the relay could not publish can't be.
    """

    id: int
    kind: Literal["consumer", "relay"]
    subscription: str
    status: Literal["dead", "redrive"]
    source: str
    position: int
    topic: str | None = None
    message_id: UUID | None = None
    key: str | None = None
    error: str
    attempts: int
    failed_at: Time
    decided_by: UserId | None = None
    payload: str | None = None

    @classmethod
    def of(cls, letter: DeadLetter, *, whole: bool) -> FailedMessage:
        """Return a letter as operators see it, or as auditors do."""
        value = letter.value if whole else None
        return cls(
            id=letter.id,
            kind="relay" if letter.kind == "relay" else "consumer",
            subscription=letter.subscription,
            status="redrive" if letter.status == "redrive" else "dead",
            source=letter.source,
            position=letter.position,
            topic=letter.topic,
            message_id=letter.message_id,
            key=letter.key if whole else None,
            error=letter.error if whole else fault_of(letter.error),
            attempts=letter.attempts,
            failed_at=letter.rejected_at,
            decided_by=letter.decided_by,
            payload=None if value is None else value.decode(errors="backslashreplace"),
        )


class WaitingEvent(ParkedEvent):
    """An event that a projection has set aside, and of which projection."""

    projection: str


router = APIRouter(prefix="/admin", tags=["operations"])


@router.get(
    "/dead-letters",
    response_model=Page[FailedMessage],
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="Messages that could not be handled or published, the oldest first",
)
async def list_dead_letters(
    request: Request,
    queries: Read,
    caller: Auditor,
    fresh: Fresh,
    page: Paged,
    subscription: Annotated[
        str | None,
        Query(max_length=200, description="Only of this consumer, or of the relay."),
        AfterValidator(storable),
    ] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    await queries.confirm(fresh)
    after = decode_cursor(LETTERS, page.cursor, 0)
    rows = await ask(
        queries,
        lambda conn: dead_letters.messages(
            conn, subscription=subscription, after=after, limit=page.rows
        ),
    )
    shown, following = page.cut(LETTERS, rows, lambda row: row.id)
    if shown and caller.is_admin:
        _record(request, caller)
    items = [FailedMessage.of(row, whole=caller.is_admin) for row in shown]
    return await conditional_wire(request, Page[FailedMessage](items=items, next_cursor=following))


def _record(request: Request, caller: Identity) -> None:
    """Tell the security log that messages were read, which may hold what somebody wrote."""
    told = {"path": request.url.path, "actor": ""}
    record(SecurityEvent.PERSONAL_DATA_READ, caller.person, **told)


@router.get(
    "/parked",
    response_model=Page[WaitingEvent],
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="Parked events of all projections, by position",
)
async def list_all_parked_events(
    request: Request,
    queries: Read,
    caller: Admin,
    fresh: Fresh,
    page: Paged,
    if_none_match: IfNoneMatch = None,
) -> Response:
    await queries.confirm(fresh)
    names = sorted(each.schema for each in queries.models.all())
    position, place = decode_place(PARKED, page.cursor, 0, 0)
    behind = position, names[min(place, len(names)) - 1] if place else ""
    rows = await ask(
        queries, lambda conn: parked_of_all(conn, names, behind=behind, limit=page.rows)
    )
    shown = rows[: page.limit]
    items = [WaitingEvent.model_validate({**e.as_dict(), "projection": e.schema}) for e in shown]
    following = None
    if len(rows) > page.limit:
        following = encode_cursor(PARKED, shown[-1].position, names.index(shown[-1].schema) + 1)
    return await conditional_wire(request, Page[WaitingEvent](items=items, next_cursor=following))

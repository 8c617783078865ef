"""Who did what: the actions of operators, out of the log.

Found by the kinds of events that operators record, so that a page costs the same however long the
log is. Some kinds are recorded by users, too, such as that an owner removes a video: these are left
out, and so a page may be short, or empty, and still have a next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.comment import Comment
from domain.model import ActorKind, Aggregate, actor_kind
from domain.moderation import ModerationCase
from domain.operation import Operation
from domain.person import Person
from domain.revocations import Revocations
from domain.upload import Upload
from domain.webhooks import Webhooks
from engine.inspection.index import Audit, Search, find
from engine.inspection.streams import Entry, in_entries, type_of
from infra.http.auth import Auditor, ask, persons_of
from infra.http.problems import problems
from infra.http.responses import NOT_MODIFIED, conditional_wire
from infra.http.shapes import Time, Wire
from infra.pseudonyms import Pseudonyms, searched
from infra.security_log import SecurityEvent, record
from projections.operations import Operations
from readapi.audit.routes import Name, Persons
from readapi.pages import IfNoneMatch, Page, Paged, decode_cursor, encode_cursor
from readapi.queries import Fresh, Read

KIND = "operator-actions"
# So many events are looked at for one page.
BATCH, MOST_BATCHES = 200, 5

RECORDED: tuple[type[Aggregate.Event], ...] = (
    Operation.Requested,
    *Revocations.events(),
    *Webhooks.events(),
    ModerationCase.Decided,
    Comment.Removed,
    Comment.Rejected,
    Comment.Restored,
    Comment.Approved,
    Person.ForgetRequested,
    Upload.Removed,
)
TYPES = tuple(type_of(event.TOPIC) for event in RECORDED)
TARGETS = ("subject", "user_id", "person", "jti", "thing_id", "webhook_id", "revocation_id")
"""The fields that say what an action is about, the most telling first; else it is the stream."""
OPERATION = type_of(Operation.Requested.TOPIC)
DONE = "done"


class OperatorAction(Wire):
    """What an operator did: `action` to `target`, and why, where a reason was given.

    What happens later is an operation: `outcome` is `requested` until it has ended, and then done,
    failed, cancelled or refused. Everything else was `done` when it was recorded. Admins are told
    names and reasons, auditors pseudonyms and no reasons.
    """

    position: int
    at: Time | None = None
    actor: str | None = None
    action: str
    target: str
    reason: str | None = None
    outcome: str
    operation_id: UUID | None = None


async def _actor(
    request: Request,
    caller: Auditor,
    persons: Persons,
    actor: Annotated[
        Name | None, Query(description="Who acted: a user id, to auditors a pseudonym.")
    ] = None,
) -> str | None:
    """Return as whom the log has the operator that is asked for; the security log is told."""
    if actor is None:
        return None
    found = await ask(partial(searched, persons, actor, by_name=caller.is_admin))
    told = {"path": request.url.path, "actor": found}
    record(SecurityEvent.PERSONAL_DATA_READ, caller.person, **told)
    return found


router = APIRouter(prefix="/admin/operations", tags=["operations"])


@router.get(
    "",
    response_model=Page[OperatorAction],
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="Who did what: actions of operators, newest first",
)
async def list_operator_actions(
    request: Request,
    queries: Read,
    caller: Auditor,
    fresh: Fresh,
    page: Paged,
    actor: Annotated[str | None, Depends(_actor)] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    before = decode_cursor(KIND, page.cursor)
    names = await persons_of(request) if caller.is_admin else None
    async with queries.reading(fresh) as conn:
        items, following = await find_actions(
            conn, queries.audit, queries.operations, names, actor, before, page.limit
        )
    cursor = None if following is None else encode_cursor(KIND, following)
    return await conditional_wire(request, Page[OperatorAction](items=items, next_cursor=cursor))


async def find_actions(
    conn: AsyncConnection[TupleRow],
    audit: Audit,
    operations: Operations,
    names: Pseudonyms | None,
    actor: str | None,
    before: int,
    limit: int,
) -> tuple[list[OperatorAction], int | None]:
    """Return actions recorded before a position, and where to go on, unless these were all.

    Of one `actor`, as the log has it, or of all. Without `names` nobody is named.
    """
    found: list[Entry] = []
    following: int | None = before
    for _ in range(MOST_BATCHES):
        if following is None or len(found) > limit:
            break
        search = Search(types=TYPES, actor=actor, before=following)
        looked = await find(conn, audit, search, BATCH)
        entries = await in_entries(looked.events, names)
        found += [each for each in entries if _is_operators(each)]
        following = looked.following
    shown = found[:limit]
    if len(found) > limit:
        following = shown[-1].stored.position
    ids = [each.stored.stream_id for each in shown if type_of(each.stored.topic) == OPERATION]
    outcomes = await operations.outcomes(conn, ids) if ids else {}
    return [_told(each, outcomes, names) for each in shown], following


def _is_operators(entry: Entry) -> bool:
    """Return whether an operator recorded it; of what older releases recorded, the name tells."""
    kind = entry.actor_kind or actor_kind(entry.actor or "")
    return kind == ActorKind.OPERATOR


def _told(entry: Entry, outcomes: Mapping[UUID, str], names: Pseudonyms | None) -> OperatorAction:
    stored, payload = entry.stored, entry.payload or {}
    kind = type_of(stored.topic)
    is_operation = kind == OPERATION
    target = next((str(payload[name]) for name in TARGETS if payload.get(name)), None)
    reason = None
    if names is not None:
        # Among the parameters in operations of older releases.
        older = payload.get("parameters") if is_operation else None
        said = payload | (older if isinstance(older, dict) else {})
        reason = said.get("reason") or said.get("stated_reason")
    action = str(payload.get("action", kind)) if is_operation else kind
    if (decision := payload.get("decision")) is not None:
        action = f"{action}.{decision}"
    return OperatorAction(
        position=stored.position,
        at=entry.recorded_at,
        actor=entry.actor,
        action=action,
        target=target or str(stored.stream_id),
        reason=None if reason is None else str(reason),
        outcome=outcomes.get(stored.stream_id, "requested") if is_operation else DONE,
        operation_id=stored.stream_id if is_operation else None,
    )

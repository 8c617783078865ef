"""What came of what operators asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, TypeVar
from uuid import UUID

import psycopg
from fastapi import APIRouter, Path, Request, Response
from psycopg import Connection
from psycopg.rows import TupleRow
from pydantic import Field

from domain.operation import Members
from engine.checkpoints import Freshness
from engine.completeness import completeness
from engine.connections import connect
from engine.parked_events import parked
from infra.http.auth import Admin
from infra.http.problems import Problem, problems
from infra.http.responses import NOT_MODIFIED, conditional_wire
from infra.http.shapes import Time, UserId, Wire
from readapi.pages import IfNoneMatch, Page, Paged, decode_cursor
from readapi.projection_status import ProjectionStatus, statuses
from readapi.queries import Fresh, Queries, Read, ReadModelUnavailable

Status = Literal["requested", "running", "done", "failed", "cancelled", "refused"]


class OperationStatus(Wire):
    """An operation: who asked for what, when, and how it ended.

    `running` while a process carries it out; `requested` before, while its replay is paused, and
    while that waits for a confirmation. `result` depends on the action; `error` or `reason` in it
    says why it failed or was refused.
    """

    operation_id: UUID
    action: str
    subject: str
    parameters: Members
    status: Status
    requested_by: UserId
    requested_at: Time
    correlation_id: str
    result: Members | None = None
    finished_at: Time | None = None


T = TypeVar("T")


class AccountFault(Wire):
    """A block of positions that is not accounted for."""

    block: int
    first_position: int
    last_position: int
    wanted: int
    applied: int
    parked: int
    detail: str


class Account(Wire):
    """What became of the events of the log up to `position`, in numbers.

    `skipped` are of topics that the projection does not want. Nothing is known up to the position
    `unaccounted`, where a release without a ledger applied them.
    """

    projection: str
    schema_name: Annotated[str, Field(alias="schema")]
    position: int
    unaccounted: int
    events: int
    applied: int
    skipped: int
    parked: int
    discarded: int
    complete: bool
    faults: list[AccountFault]
    remedy: str | None = None


class ParkedEvent(Wire):
    """An event that was set aside; who discarded it, or had it parked, when and why.

    `error` is what went wrong when it was last tried.
    """

    position: int
    topic: str | None = None
    stream_id: UUID | None = None
    version: int | None = None
    error: str
    attempts: int
    parked_at: Time
    status: Literal["parked", "discarded"]
    decided_by: UserId | None = None
    decided_at: Time | None = None
    reason: str | None = None


Name = Annotated[str, Path(max_length=63)]

router = APIRouter(tags=["projections"])


@router.get(
    "/projections",
    response_model=Page[ProjectionStatus],
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="All projections",
)
async def list_projections(
    request: Request, queries: Read, caller: Admin, fresh: Fresh, if_none_match: IfNoneMatch = None
) -> Response:
    found = await _statuses(queries, fresh)
    return await conditional_wire(request, Page[ProjectionStatus](items=list(found.values())))


@router.get(
    "/projections/{name}",
    response_model=ProjectionStatus,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED,
    summary="One projection",
)
async def get_projection(
    name: Name,
    request: Request,
    queries: Read,
    caller: Admin,
    fresh: Fresh,
    if_none_match: IfNoneMatch = None,
) -> Response:
    return await conditional_wire(request, known(await _statuses(queries, fresh), name))


async def _statuses(queries: Queries, fresh: Freshness) -> dict[str, ProjectionStatus]:
    async with queries.reading(fresh) as conn:
        return await statuses(conn, queries.models.by_name(), queries.rates)


@router.get(
    "/projections/{name}/completeness",
    response_model=Account,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED,
    summary="Whether every event was applied once, skipped by its topic, or set aside",
)
async def get_completeness(
    name: Name,
    request: Request,
    queries: Read,
    caller: Admin,
    fresh: Fresh,
    if_none_match: IfNoneMatch = None,
) -> Response:
    projection = known(queries.models.by_name(), name)
    await queries.confirm(fresh)
    found = await ask(queries, lambda conn: completeness(conn, projection))
    return await conditional_wire(request, Account.model_validate(found.as_dict()))


@router.get(
    "/projections/{name}/parked",
    response_model=Page[ParkedEvent],
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED,
    summary="Events that could not be applied, by position",
)
async def list_parked_events(
    name: Name,
    request: Request,
    queries: Read,
    caller: Admin,
    page: Paged,
    fresh: Fresh,
    if_none_match: IfNoneMatch = None,
) -> Response:
    schema = known(queries.models.by_name(), name).schema
    await queries.confirm(fresh)
    after = decode_cursor("parked", page.cursor, 0)
    rows = await ask(queries, lambda conn: parked(conn, schema, after=after, limit=page.rows))
    shown, following = page.cut("parked", rows, lambda row: row.position)
    items = [ParkedEvent.model_validate(row.as_dict()) for row in shown]
    return await conditional_wire(request, Page[ParkedEvent](items=items, next_cursor=following))


@router.get(
    "/operations/{operation_id}",
    response_model=OperationStatus,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED,
    summary="What came of an operation",
)
async def get_operation(
    operation_id: UUID,
    request: Request,
    queries: Read,
    caller: Admin,
    fresh: Fresh,
    if_none_match: IfNoneMatch = None,
) -> Response:
    async with queries.reading(fresh, queries.operations) as conn:
        row = await queries.operations.operation(conn, operation_id)
    if row is None:
        raise Problem(404, "not-found", "There is no such operation.")
    body = OperationStatus.model_validate(row, from_attributes=True)
    return await conditional_wire(request, body)


def known(projections: Mapping[str, T], name: str) -> T:
    """Return the projection of this name; raise Problem 404."""
    if name not in projections:
        raise Problem(404, "not-found", "There is no such projection.")
    return projections[name]


async def ask(queries: Queries, question: Callable[[Connection[TupleRow]], T]) -> T:
    """Ask what operators' tools ask, in a thread and on a connection of its own."""

    def answer() -> T:
        with connect(str(queries.pool.conninfo), "query") as conn:
            return question(conn)

    try:
        return await asyncio.to_thread(answer)
    except psycopg.OperationalError as error:
        raise ReadModelUnavailable(str(error)) from error

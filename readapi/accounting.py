"""What became of each event in a projection: proved complete, or set aside and listed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Literal, TypeVar
from uuid import UUID

import psycopg
from fastapi import APIRouter, Path, Response
from psycopg import Connection
from psycopg.rows import TupleRow
from pydantic import Field

from engine.connections import connect
from infra.contract import Time, Wire
from infra.http import Admin, wire
from infra.problems import Problem, problems
from projections.parking.parked import parked
from projections.projection import Projection
from projections.proving.completeness import completeness
from readapi.paging import DEFAULT_LIMIT, Cursor, Limit, Page, cut, decode_cursor
from readapi.queries import Queries, Read, ReadModelUnavailable

T = TypeVar("T")

Name = Annotated[str, Path(max_length=63)]


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
    decided_by: str | None = None
    decided_at: Time | None = None
    reason: str | None = None


router = APIRouter(prefix="/projections/{name}", tags=["projections"])


@router.get(
    "/completeness",
    response_model=Account,
    responses=problems(401, 403, 404, 422, 503),
    summary="Whether every event was applied once, skipped by its topic, or set aside",
)
async def get_completeness(name: Name, queries: Read, caller: Admin) -> Response:
    projection = _require(queries, name)
    found = await _ask(queries, lambda conn: completeness(conn, projection))
    return wire(Account.model_validate(found.as_dict()))


@router.get(
    "/parked",
    response_model=Page[ParkedEvent],
    responses=problems(401, 403, 404, 422, 503),
    summary="Events that could not be applied, by position",
)
async def list_parked(
    name: Name, queries: Read, caller: Admin, cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT
) -> Response:
    schema = _require(queries, name).schema
    after = decode_cursor("parked", cursor) if cursor else 0
    rows = await _ask(queries, lambda conn: parked(conn, schema, after=after, limit=limit + 1))
    shown, following = cut("parked", rows, limit, lambda row: row.position)
    items = [ParkedEvent.model_validate(row.as_dict()) for row in shown]
    return wire(Page[ParkedEvent](items=items, next_cursor=following))


def _require(queries: Queries, name: str) -> Projection:
    for projection in queries.models:
        if projection.name == name:
            return projection
    raise Problem(404, "not-found", "There is no such projection.")


async def _ask(queries: Queries, question: Callable[[Connection[TupleRow]], T]) -> T:
    """Ask what operators' tools ask, in a thread and on a connection of its own."""

    def ask() -> T:
        with connect(str(queries.pool.conninfo), "query") as conn:
            return question(conn)

    try:
        return await asyncio.to_thread(ask)
    except psycopg.OperationalError as error:
        raise ReadModelUnavailable(str(error)) from error

"""What auditors and operators see of the log, over HTTP."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field

from infra.contract import VIDEO_ID
from infra.http import Auditor, wire
from infra.privacy import PayloadMode
from infra.problems import Problem, problems
from projections.audit.search import Search
from projections.log import END_OF_LOG
from projections.waiting import Freshness
from readapi.audit.inspector import Inspector, Moment
from readapi.audit.shapes import (
    AuditEvent,
    AuditEventDetail,
    AuditStats,
    StreamHistory,
    TraceTree,
)
from readapi.paging import Cursor, Page, storable
from readapi.queries import Queries, Read

DEFAULT_LIMIT = 50
Limit = Annotated[int, Query(description="How many items at most.", ge=1, le=200)]
Position = Annotated[int, Path(ge=1, lt=END_OF_LOG, description="From 1.", examples=[1])]
MAX_NAME = 200
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(storable)]

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d")


def _is_written_out(value: object) -> object:
    """A number is a time for pydantic, and a mistake here."""
    if not (isinstance(value, str) and RFC_3339.match(value)):
        raise ValueError("must be a time such as 2026-11-22T09:30:15Z")
    return value


Time = Annotated[AwareDatetime, BeforeValidator(_is_written_out)]

router = APIRouter(prefix="/audit", tags=["audit"])


def payload_mode(
    caller: Auditor,
    payload: Annotated[
        PayloadMode | None,
        Query(description="How payloads are shown; default: `full` for admins, else `masked`."),
    ] = None,
) -> PayloadMode:
    """What is asked for, if the caller's role admits it."""
    if payload is None:
        return PayloadMode.FULL if caller.is_admin else PayloadMode.MASKED
    if payload is PayloadMode.FULL and not caller.is_admin:
        raise Problem(403, "forbidden", "Full payloads need the role `admin`.")
    return payload


Mode = Annotated[PayloadMode, Depends(payload_mode)]


def wanted(
    stream: Annotated[UUID | None, Query(description="Only this stream's.")] = None,
    aggregate: Annotated[Name | None, Query(description="Such as `comment`.")] = None,
    types: Annotated[
        list[Name],
        Query(
            alias="type",
            max_length=50,
            description="A topic with or without its version, or a kind of aggregate; "
            "several: any of them.",
        ),
    ] = [],  # noqa: B006 - FastAPI copies it
    actor: Annotated[Name | None, Query(description="Who acted.")] = None,
    correlation_id: Annotated[
        Name | None, Query(alias="correlationId", description="Of one conversation.")
    ] = None,
    since: Annotated[
        Time | None, Query(alias="from", description="Recorded at or after this time.")
    ] = None,
    until: Annotated[
        Time | None, Query(alias="to", description="Recorded before this time.")
    ] = None,
    after: Annotated[int, Query(ge=0, lt=END_OF_LOG, description="After this position.")] = 0,
    before: Annotated[
        int, Query(ge=1, le=END_OF_LOG, description="Before this position.")
    ] = END_OF_LOG,
    order: Annotated[
        Literal["asc", "desc"], Query(description="By position; `desc` is newest first.")
    ] = "desc",
) -> Search:
    """What the query string asks for: all conditions together."""
    return Search(
        stream=stream,
        aggregate=aggregate,
        types=types,
        actor=actor,
        correlation_id=correlation_id,
        since=since,
        until=until,
        after=after,
        before=before,
        newest_first=order == "desc",
    )


def moment(
    version: Annotated[
        int | None, Query(alias="atVersion", ge=1, lt=END_OF_LOG, description="Up to this version.")
    ] = None,
    time: Annotated[
        Time | None, Query(alias="atTime", description="Up to this time, included.")
    ] = None,
) -> Moment:
    """Up to where a stream is wanted."""
    return Moment(version, time)


@asynccontextmanager
async def inspecting(queries: Queries, mode: PayloadMode) -> AsyncIterator[Inspector]:
    """An inspector on a connection of its own; raises ReadModelUnavailable."""
    async with queries.reading(Freshness()) as conn:
        yield Inspector(conn, queries.audit, mode)


@router.get(
    "/events",
    response_model=Page[AuditEvent],
    responses=problems(401, 403, 422, 503),
    summary="Recorded events, by any of what is known of them",
)
async def list_events(
    queries: Read,
    mode: Mode,
    search: Annotated[Search, Depends(wanted)],
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    async with inspecting(queries, mode) as inspector:
        return wire(await inspector.events(search, limit, cursor))


@router.get(
    "/events/{position}",
    response_model=AuditEventDetail,
    responses=problems(401, 403, 404, 422, 503),
    summary="One event, with its neighbours, its cause and its effects",
)
async def get_event(position: Position, queries: Read, mode: Mode) -> Response:
    async with inspecting(queries, mode) as inspector:
        return wire(await inspector.event(position))


@router.get(
    "/streams/{stream_id}",
    response_model=StreamHistory,
    responses=problems(401, 403, 404, 422, 503),
    summary="A stream event by event, and its aggregate's state at a version or a time",
)
async def get_stream(
    stream_id: Annotated[UUID, Path(examples=[VIDEO_ID])],
    queries: Read,
    mode: Mode,
    at: Annotated[Moment, Depends(moment)],
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    async with inspecting(queries, mode) as inspector:
        return wire(await inspector.stream(stream_id, at, limit, cursor))


@router.get(
    "/trace/{correlation_id}",
    response_model=TraceTree,
    responses=problems(401, 403, 404, 422, 503),
    summary="Everything that a request led to, as a tree of cause and effect",
)
async def get_trace(
    correlation_id: Annotated[
        str, Path(min_length=1, max_length=MAX_NAME), AfterValidator(storable)
    ],
    queries: Read,
    mode: Mode,
) -> Response:
    async with inspecting(queries, mode) as inspector:
        return wire(await inspector.trace(correlation_id))


@router.get(
    "/stats",
    response_model=AuditStats,
    responses=problems(401, 403, 422, 503),
    summary="How many events of which kinds there are, and how large the log is",
)
async def get_stats(queries: Read, caller: Auditor) -> Response:
    async with inspecting(queries, PayloadMode.NONE) as inspector:
        return wire(await inspector.stats())

"""What operators see of the projections."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from psycopg import AsyncConnection

from infra.contract import Page, Wire
from infra.http import Admin, Problem, problems, wire
from projections.overview import Progress, overview
from projections.runner import OUTDATED
from readapi.queries import Freshness, Queries, Read


class ProjectionStatus(Wire):
    """How far a projection has come.

    `status` is running, paused, stopped (by an event that it can't apply, at `errorPosition`) or
    outdated (its rows were made by another version of the code); `active` says whether any
    process runs it now. Lag is in positions of the log, and the age of the oldest one in seconds.
    """

    name: str
    version: int
    status: str
    active: bool
    position: int
    lag_events: int
    lag_seconds: float
    parked: int
    error: str | None = None
    error_position: int | None = None
    updated_at: datetime


router = APIRouter(prefix="/projections", tags=["projections"])


@router.get(
    "",
    response_model=Page[ProjectionStatus],
    responses=problems(401, 403, 422, 503),
    summary="All projections",
)
async def list_projections(queries: Read, caller: Admin) -> Response:
    async with queries.reading(Freshness()) as conn:
        found = await _statuses(queries, conn)
    return wire(Page[ProjectionStatus](items=list(found.values())))


@router.get(
    "/{name}",
    response_model=ProjectionStatus,
    responses=problems(401, 403, 404, 422, 503),
    summary="One projection",
)
async def get_projection(
    name: Annotated[str, Path(max_length=63)], queries: Read, caller: Admin
) -> Response:
    async with queries.reading(Freshness()) as conn:
        found = (await _statuses(queries, conn)).get(name)
    if found is None:
        raise Problem(404, "not-found", "There is no such projection.")
    return wire(found)


async def _statuses(queries: Queries, conn: AsyncConnection[Any]) -> Mapping[str, ProjectionStatus]:
    versions = {projection.name: projection.version for projection in queries.projections}
    return {
        progress.copy.name: _present(progress, versions.get(progress.copy.name))
        for progress in await overview(conn, queries.mapper)
        if progress.copy.schema == progress.copy.name
    }


def _present(progress: Progress, version: int | None) -> ProjectionStatus:
    copy = progress.copy
    outdated = version is not None and version != copy.version
    return ProjectionStatus(
        name=copy.name,
        version=copy.version,
        status="outdated" if outdated else copy.status,
        active=progress.active,
        position=copy.position,
        lag_events=progress.lag_events,
        lag_seconds=progress.lag_seconds,
        parked=copy.parked,
        error=OUTDATED if outdated else copy.error,
        error_position=copy.error_position,
        updated_at=copy.updated_at,
    )

"""What operators see of the projections."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response

from infra.http import Admin, wire
from infra.problems import Problem, problems
from projections.waiting import Freshness
from readapi.paging import Page
from readapi.projection_status import ProjectionStatus, statuses
from readapi.queries import Queries, Read

NO_PROJECTION = "There is no such projection."

Name = Annotated[str, Path(max_length=63)]

router = APIRouter(prefix="/projections", tags=["projections"])


@router.get(
    "",
    response_model=Page[ProjectionStatus],
    responses=problems(401, 403, 422, 503),
    summary="All projections",
)
async def list_projections(queries: Read, caller: Admin) -> Response:
    found = await _statuses(queries)
    return wire(Page[ProjectionStatus](items=list(found.values())))


@router.get(
    "/{name}",
    response_model=ProjectionStatus,
    responses=problems(401, 403, 404, 422, 503),
    summary="One projection",
)
async def get_projection(name: Name, queries: Read, caller: Admin) -> Response:
    found = (await _statuses(queries)).get(name)
    if found is None:
        raise Problem(404, "not-found", NO_PROJECTION)
    return wire(found)


async def _statuses(queries: Queries) -> dict[str, ProjectionStatus]:
    async with queries.reading(Freshness()) as conn:
        return await statuses(conn, queries.models, queries.rates)

"""How far it is with a user whom the program forgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import psycopg
from fastapi import APIRouter, Depends, Path, Request, Response

from engine.connections import in_thread
from engine.erasures import Erasure, find_erasure
from engine.persons import Persons
from infra.http.auth import Admin
from infra.http.problems import Problem, problems
from infra.http.responses import NOT_MODIFIED, conditional_wire
from infra.http.shapes import Time, Wire
from infra.postgres.connection import open_connection
from readapi.pages import IfNoneMatch
from readapi.queries import ReadModelUnavailable


class ForgettingProgress(Wire):
    """How far it is: the step that is done next or under way, and what was removed, by part.

    `failures` counts how often that step has failed, by `error`.
    """

    user_id: str
    status: Literal["forgetting", "forgotten"]
    requested_at: Time
    step: str | None = None
    failures: int | None = None
    error: str | None = None
    counts: dict[str, int]
    forgotten_at: Time | None = None


@dataclass(frozen=True)
class ErasureSearch:
    """Finds how far it is with a user of a database; may block."""

    persons: Persons
    database_url: str

    def find(self, user_id: str) -> Erasure | None:
        """Return it; None where nobody asked to have that user forgotten. Raise psycopg.Error."""
        person = self.persons.look_up(user_id)
        if person is None:
            return None
        with open_connection(self.database_url, "erasure") as conn:
            return find_erasure(conn, person.pseudonym)


def progress_of(user_id: str, found: Erasure) -> ForgettingProgress:
    """Return the same as it is told."""
    done = found.finished_at is not None
    return ForgettingProgress(
        user_id=user_id,
        status="forgotten" if done else "forgetting",
        requested_at=found.fenced_at,
        step=None if done else found.step,
        failures=found.failures or None,
        error=found.error,
        counts=dict(found.counts),
        forgotten_at=found.finished_at,
    )


async def _search(request: Request) -> ErasureSearch:
    search: ErasureSearch = request.app.state.erasures
    return search


router = APIRouter(tags=["privacy"])


@router.get(
    "/users/{user_id}/forgetting",
    response_model=ForgettingProgress,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED,
    summary="How far it is with a user who is forgotten",
)
async def forgetting(
    user_id: Annotated[str, Path(min_length=1, max_length=128, examples=["alice"])],
    request: Request,
    caller: Admin,
    search: Annotated[ErasureSearch, Depends(_search)],
    if_none_match: IfNoneMatch = None,
) -> Response:
    try:
        found = await in_thread(search.find, user_id)
    except psycopg.Error as error:
        raise ReadModelUnavailable(str(error)) from error
    if found is None:
        raise Problem(404, "not-found", "Nobody asked to have this user forgotten.")
    return await conditional_wire(request, progress_of(user_id, found))

"""Who calls: what a token says of its bearer."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response

from infra.http.auth import Caller
from infra.http.problems import problems
from infra.http.responses import NOT_MODIFIED, conditional_wire
from infra.http.shapes import Time, UserId, Wire
from readapi.pages import IfNoneMatch

router = APIRouter(tags=["operations"])


class CallerAccount(Wire):
    """The user that the token stands for, the roles that it gives, and when it ends."""

    user_id: UserId
    roles: list[str]
    expires_at: Time


@router.get(
    "/users/me",
    response_model=CallerAccount,
    responses=problems(401, 503) | NOT_MODIFIED,
    summary="Who calls, and what the token admits",
)
async def get_caller(
    request: Request, caller: Caller, if_none_match: IfNoneMatch = None
) -> Response:
    ends = datetime.fromtimestamp(caller.expires, UTC)
    body = CallerAccount(user_id=caller.person, roles=sorted(caller.roles), expires_at=ends)
    return await conditional_wire(request, body)

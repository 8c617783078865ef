"""Revocations: tokens that count no more, one by one or all of a user, and that taken back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Literal, Self
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from pydantic import AfterValidator, Field, model_validator

from commands.endpoint import executor
from domain.model import Origin
from domain.revocations import MAX_REASON, MAX_TOKEN_ID, STREAM_ID, Revocations
from engine.command_bus import Aggregates, Command
from infra.http.auth import MAX_USER_ID_LENGTH, require_admin, user_id_of
from infra.http.problems import problems
from infra.http.shapes import RequestBody, RevokedToken, Wire


class Revoke(RequestBody):
    """One token by its `jti`, or all tokens issued to a user up to now; and why."""

    jti: Annotated[str, Field(min_length=1, max_length=MAX_TOKEN_ID)] | None = None
    user_id: (
        Annotated[
            str, Field(min_length=1, max_length=MAX_USER_ID_LENGTH), AfterValidator(user_id_of)
        ]
        | None
    ) = None
    reason: Annotated[str, Field(min_length=1, max_length=MAX_REASON, examples=["stolen laptop"])]

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.jti is None) == (self.user_id is None):
            raise ValueError("name one token by `jti`, or a user by `userId`")
        return self


class RevocationWithdrawn(Wire):
    """The tokens count again, as far as they are still valid."""

    revocation_id: UUID
    status: Literal["withdrawn"] = "withdrawn"


@dataclass(frozen=True)
class RevokeTokens(Command[RevokedToken]):
    """Refuse what `revoked` names from now on, a user by the pseudonym.

    No token lives longer than `lifetime`.
    """

    revocation_id: UUID
    revoked: Revoke
    lifetime: timedelta

    def streams(self) -> Sequence[UUID]:
        return (STREAM_ID,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> RevokedToken:
        revocations, asked = aggregates.get(Revocations, STREAM_ID), self.revoked
        how = (asked.reason, self.lifetime, origin)
        if asked.jti is not None:
            made = revocations.revoke_token(self.revocation_id, asked.jti, *how)
        else:
            made = revocations.revoke_user(self.revocation_id, asked.user_id or "", *how)
        return RevokedToken.of(made)


@dataclass(frozen=True)
class WithdrawRevocation(Command[RevocationWithdrawn]):
    """Let the tokens count again."""

    revocation_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (STREAM_ID,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> RevocationWithdrawn:
        aggregates.get(Revocations, STREAM_ID).withdraw(self.revocation_id, origin)
        return RevocationWithdrawn(revocation_id=self.revocation_id)


router = APIRouter(
    prefix="/admin/revocations", tags=["revocations"], dependencies=[Depends(require_admin)]
)


@router.post(
    "",
    status_code=201,
    response_model=RevokedToken,
    responses=problems(400, 401, 403, 409, 413, 422, 503),
    summary="Revoke a token, or all tokens of a user",
)
async def revoke_tokens(body: Revoke, request: Request) -> Response:
    execute = await executor(request)
    if body.user_id is not None:
        body = body.model_copy(update={"user_id": await execute.admit(body.user_id)})
    lifetime = request.app.state.authenticator.max_lifetime
    command = RevokeTokens(execute.fresh_id("revocation"), body, lifetime)
    return await execute(command, status=201)


@router.delete(
    "/{revocation_id}",
    response_model=RevocationWithdrawn,
    responses=problems(401, 403, 404, 409, 422, 503),
    summary="Take a revocation back",
)
async def withdraw_revocation(revocation_id: UUID, request: Request) -> Response:
    execute = await executor(request)
    return await execute(WithdrawRevocation(revocation_id))

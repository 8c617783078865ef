"""Revocations of tokens: one stream for all, which every process that serves requests follows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from domain.errors import Invalid, NotFound
from domain.model import Aggregate, Origin, Personal
from domain.text import check_text, is_name

STREAM_ID = UUID("7d6a1f0c-3b1e-5e0a-9a55-0b8c7a2d41f3")
"""The stream of all revocations."""
MAX_TOKEN_ID = 200
MAX_USER_ID = 128
MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class Revocation:
    """One token by its `jti`, or whatever was issued to a user up to `at`; exactly one is given.

    `number` is its place among all, from 1. No token can be valid after `ends_at` any more, as long
    as the longest lifetime of tokens stays what it was.
    """

    id: UUID
    number: int
    jti: str | None
    user_id: str | None
    reason: str
    revoked_by: str
    at: datetime
    ends_at: datetime


class Revocations(Aggregate):
    """Which tokens count no more. What is older than any token can be is dropped from it."""

    TOPIC = "revocations"

    class Event(Aggregate.Event):
        revocation_id: UUID

    class TokenRevoked(Event):
        """`lifetime_seconds` is how long a token could be valid at most when this was recorded."""

        TOPIC = "revocations.token_revoked.v1"
        jti: str
        reason: Annotated[str, Personal("actor")]
        lifetime_seconds: int

        def apply(self, revocations: Revocations) -> None:
            revocations.add(self, jti=self.jti)

    class UserRevoked(Event):
        """All tokens issued to the user up to this event's time; `lifetime_seconds` as above."""

        TOPIC = "revocations.user_revoked.v1"
        user_id: Annotated[str, Personal("user_id")]
        reason: Annotated[str, Personal("user_id")]
        lifetime_seconds: int

        def apply(self, revocations: Revocations) -> None:
            revocations.add(self, user_id=self.user_id)

    class Withdrawn(Event):
        TOPIC = "revocations.withdrawn.v1"

        def apply(self, revocations: Revocations) -> None:
            revocations.standing.pop(self.revocation_id, None)

    def __init__(self) -> None:
        self.standing: dict[UUID, Revocation] = {}

    def add(
        self,
        event: TokenRevoked | UserRevoked,
        *,
        jti: str | None = None,
        user_id: str | None = None,
    ) -> None:
        """Let what was recorded stand, and drop what had ended by then."""
        at = event.timestamp
        for each in [each.id for each in self.standing.values() if each.ends_at <= at]:
            del self.standing[each]
        self.standing[event.revocation_id] = Revocation(
            id=event.revocation_id,
            number=event.originator_version,
            jti=jti,
            user_id=user_id,
            reason=event.reason,
            revoked_by=event.actor,
            at=at,
            ends_at=at + timedelta(seconds=event.lifetime_seconds),
        )

    def revoke_token(
        self, revocation_id: UUID, jti: str, reason: str, lifetime: timedelta, origin: Origin
    ) -> Revocation:
        """Revoke one token; one that is revoked already records nothing. Raise Invalid."""
        if not is_name(jti, MAX_TOKEN_ID):
            raise Invalid(
                f"`jti` has 1 to {MAX_TOKEN_ID} characters that can be seen.", field="jti"
            )
        found = next((each for each in self.standing.values() if each.jti == jti), None)
        if found is not None:
            return found
        return self._revoke(self.TokenRevoked, revocation_id, reason, lifetime, origin, jti=jti)

    def revoke_user(
        self, revocation_id: UUID, user_id: str, reason: str, lifetime: timedelta, origin: Origin
    ) -> Revocation:
        """Revoke whatever was issued to a user up to now, each time anew. Raise Invalid."""
        if not is_name(user_id, MAX_USER_ID):
            told = f"`userId` has 1 to {MAX_USER_ID} characters that can be seen."
            raise Invalid(told, field="userId")
        fields = {"user_id": user_id}
        return self._revoke(self.UserRevoked, revocation_id, reason, lifetime, origin, **fields)

    def withdraw(self, revocation_id: UUID, origin: Origin) -> None:
        """Let the tokens count again, as far as they are still valid; raise NotFound."""
        if revocation_id not in self.standing:
            raise NotFound("There is no such revocation, or it has ended.")
        self.record(self.Withdrawn, origin, revocation_id=revocation_id)

    def _revoke(
        self,
        event: type[Revocations.Event],
        revocation_id: UUID,
        reason: str,
        lifetime: timedelta,
        origin: Origin,
        **fields: str,
    ) -> Revocation:
        check_text(reason, "reason", max_length=MAX_REASON)
        if revocation_id not in self.standing:
            seconds = int(lifetime.total_seconds())
            said = {"reason": reason, "lifetime_seconds": seconds, **fields}
            self.record(event, origin, revocation_id=revocation_id, **said)
        return self.standing[revocation_id]

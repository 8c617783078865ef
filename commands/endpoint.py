"""From an HTTP request to a command and back: actor, correlation, idempotency, position."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID, uuid4, uuid5

from fastapi import Depends, Request, Response

from commands.batch import Executed, IdempotencyKey
from commands.bus import CommandBus
from commands.command import Aggregates, Command
from domain.errors import DomainError
from domain.model import Origin
from infra.auth import Identity
from infra.contract import Wire
from infra.event_store import Answer
from infra.http import Problem, header, request_id_of, require_identity, wire
from infra.locks import Redlock
from infra.objects import ObjectStore
from infra.position import encode_position
from infra.telemetry import Telemetry

W = TypeVar("W", bound=Wire)
R = TypeVar("R")

MAX_KEY_LENGTH = 255
NAMESPACE = UUID("6f2a1e5c-5d0b-4c0e-9b38-0e6d0a3f7c11")


@dataclass(frozen=True)
class Services:
    """What the routers of the command API stand on; made by the wiring.

    `projections` are the names of the read models. `ending` has the uploads that a request of this
    process is about to complete or abort.
    """

    bus: CommandBus
    objects: ObjectStore
    locks: Redlock
    telemetry: Telemetry
    part_size_bytes: int
    max_upload_bytes: int
    public_url: str | None
    finalize_lock_seconds: float
    finalize_wait_seconds: float
    projections: frozenset[str]
    ending: dict[UUID, asyncio.Event] = field(default_factory=dict)


class NotAnsweredYet(DomainError):
    """No answer is kept under this idempotency key."""


@dataclass(frozen=True)
class Recall(Command[Wire]):
    """Asks only for the answer kept under the key; there are no rules to check."""

    def streams(self) -> tuple[()]:
        return ()

    def decide(self, aggregates: Aggregates, origin: Origin, found: Any) -> Wire:
        raise NotAnsweredYet("No answer is kept under this key.")


@dataclass(frozen=True)
class Reply(Command[W]):
    """An answer that records nothing but itself, under the request's idempotency key."""

    body: W

    def streams(self) -> tuple[()]:
        return ()

    def decide(self, aggregates: Aggregates, origin: Origin, found: Any) -> W:
        return self.body


class Execute:
    """Executes commands for one request, as its caller."""

    def __init__(self, request: Request, identity: Identity) -> None:
        self.identity = identity
        self.services: Services = request.app.state.commands
        self._request = request

    @property
    def actor(self) -> str:
        return self.identity.user_id

    @property
    def correlation_id(self) -> str:
        """What names the conversation that the request belongs to."""
        return request_id_of(self._request.scope)

    @property
    def base_url(self) -> str:
        """Where clients reach this API, without a slash at the end."""
        return self.services.public_url or str(self._request.base_url).rstrip("/")

    def fresh_id(self, purpose: str) -> UUID:
        """An id for what this request makes; with an idempotency key, each repeat gets the same."""
        key = header(self._request.scope, b"idempotency-key")
        if key is None:
            return uuid4()
        return uuid5(NAMESPACE, "\n".join((self.actor, self._request.url.path, key, purpose)))

    async def __call__(self, command: Command[W], status: int = 200) -> Response:
        """The HTTP answer to the command, or the kept one where the request is a repeat."""
        outcome = await self._run(command, await self._key(status))
        if isinstance(outcome, Answer):
            return _repeat(outcome)
        return wire(outcome.answer, status, _position(outcome))

    async def value(self, command: Command[R]) -> R:
        """The command's own answer, for a request that goes on after it."""
        outcome = await self._run(command, None)
        if isinstance(outcome, Answer):
            raise TypeError("Only a request with a key has a kept answer.")
        return outcome.answer

    async def recall(self) -> Response | None:
        """The answer that a repeat of an idempotent request gets before anything is done for it."""
        key = await self._key(200)
        if key is None:
            return None
        try:
            outcome = await self._run(Recall(), key)
        except NotAnsweredYet:
            return None
        return _repeat(outcome) if isinstance(outcome, Answer) else None

    async def _run(self, command: Command[R], key: IdempotencyKey | None) -> Executed[R] | Answer:
        return await self.services.bus.execute(
            command,
            actor=self.actor,
            correlation_id=self.correlation_id,
            key=key,
        )

    async def _key(self, status: int) -> IdempotencyKey | None:
        key = header(self._request.scope, b"idempotency-key")
        if key is None or self._request.method != "POST":
            return None
        if not (1 <= len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
            raise Problem(
                422,
                "invalid",
                f"Idempotency-Key: 1 to {MAX_KEY_LENGTH} printable ASCII characters.",
            )
        path = self._request.url.path.encode()
        digest = hashlib.sha256(path + b"\n" + await self._request.body()).digest()
        return IdempotencyKey(key, digest, lambda body: (status, body.to_json()))


def _position(outcome: Executed[Any] | Answer) -> dict[str, str]:
    return {"Backlot-Position": encode_position(outcome.position, outcome.telemetry)}


def _repeat(answer: Answer) -> Response:
    headers = {**_position(answer), "Idempotency-Replayed": "true"}
    return Response(answer.body, answer.status, headers, "application/json")


# For routes with a body: who has no token is told so before what is wrong with the body.
TOKEN_FIRST = [Depends(require_identity)]


async def executor(request: Request) -> Execute:
    """Executes commands as the caller of this request; 401 without a token.

    Called by the routes themselves: as a FastAPI dependency it would cost a seventh of the request.
    """
    return Execute(request, await require_identity(request))

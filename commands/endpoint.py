"""From an HTTP request to a command and back: actor, quotas, correlation, idempotency, position."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, Literal, TypeVar, cast
from uuid import UUID, uuid4, uuid5

from fastapi import Depends, Request, Response

from domain.errors import DomainError
from domain.model import Origin
from domain.moderation import NO_WORDS, WatchedWords
from domain.upload import VideoViewer
from engine.command_bus import Aggregates, Command, CommandBus, Executed, Query
from engine.event_store import IdempotencyKey, StoredAnswer
from engine.personal_data import Deleted, Left, PersonalKeys, Unsearched
from engine.reservations import Reservations
from engine.telemetry import Telemetry
from engine.viewers import ViewerKeys
from infra.http.auth import (
    CALLER,
    Identity,
    maybe_identity,
    person_admitted,
    persons_named,
    recalled,
    require_identity,
)
from infra.http.outbound_rules import INTERNET, OutboundRules
from infra.http.problems import Problem
from infra.http.rate_limits import DECISIONS, Buckets, Limit, LimitReached
from infra.http.requests import client_address, header, request_id_of
from infra.http.responses import wire
from infra.http.shapes import Wire, encode_position
from infra.objects.port import ObjectStore
from infra.redlock import Redlock
from infra.settings.features import QuotaSettings
from infra.shared_buckets import PREFIX

W = TypeVar("W", bound=Wire)
R = TypeVar("R")

MAX_KEY_LENGTH = 255
NAMESPACE = UUID("6f2a1e5c-5d0b-4c0e-9b38-0e6d0a3f7c11")
MINUTE_SECONDS = 60.0
MOST_REMEMBERED = 50_000

PERSONAL = (
    PersonalKeys(
        name="redis.rate_limits",
        holds="how much somebody has asked for lately, by class of request",
        kept="until the bucket is full again: minutes",
        pattern=f"{PREFIX}*:u:{{subject}}",
        forget=Deleted(),
    ),
    Unsearched(
        name="redis.rate_limits_by_address",
        holds="how much was asked for lately from an address",
        kept="until the bucket is full again: minutes",
        where="Redis",
        keys=(f"{PREFIX}*:a:*", f"{PREFIX}*:n:*"),
        forget=Left("nobody knows whose an address was; gone in minutes"),
    ),
)


class Recent:
    """Ids that were seen within the last minute or two; bounded, and for one event loop."""

    def __init__(self, most: int = MOST_REMEMBERED) -> None:
        self._most = most
        # Numbers: the hash of a UUID is computed in Python.
        self._now: set[int] = set()
        self._before: set[int] = set()
        self._until = 0.0

    def has(self, number: int, now: float) -> bool:
        """Return whether the id was seen; `now` in seconds."""
        if now >= self._until or len(self._now) >= self._most:
            self._before, self._now = self._now, set()
            self._until = now + MINUTE_SECONDS
        return number in self._now or number in self._before

    def add(self, number: int) -> None:
        self._now.add(number)


class Quotas:
    """What one user may do per minute, whatever the rate of requests.

    A video that was liked and liked again counts once in a minute.
    """

    def __init__(self, buckets: Buckets, settings: QuotaSettings) -> None:
        comments, liked = settings.comments_per_minute, settings.liked_videos_per_minute
        self._buckets = buckets
        self._comments = Limit("comments", comments, comments)
        self._liked = Limit("liked-videos", liked, liked)
        self._recent = Recent()

    async def comment(self, user_id: str) -> None:
        """Count a comment; raise LimitReached for one too many."""
        await self._take(f"comments:u:{user_id}", self._comments)

    async def like(self, user_id: str, likes_id: UUID) -> None:
        """Count the like of a viewer and a video, by its stream; raise LimitReached."""
        now = self._buckets.clock()
        if self._recent.has(likes_id.int, now):
            return
        key = f"liked:u:{user_id}"
        if self._buckets.spend(key, self._liked, now) is None:
            await self._take(key, self._liked)
        self._recent.add(likes_id.int)

    async def _take(self, key: str, limit: Limit) -> None:
        answer = await self._buckets.take(key, limit)
        if answer.wait:
            DECISIONS.counts[limit.name, "limited"] += 1
            raise LimitReached(answer)


@dataclass(frozen=True)
class Services:
    """What the routers of the command API stand on; made by the wiring.

    `projections` are the names of the read models. Uploads expire when nothing came for
    `upload_idle`, and after `upload_longest` whatever comes. `ending` has the uploads that a
    request of this process is about to complete or abort, `receiving` how many bodies of each user
    are being taken in for parts. Without `viewers` only users may watch; without `quotas` and
    `reservations` users may do as much as they like. Comments with `watched_words` wait for
    approval. Topics of webhooks are those that are `published`, their URLs those that `outbound`
    admits.
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
    viewers: ViewerKeys | None = None
    quotas: Quotas | None = None
    reservations: Reservations | None = None
    watched_words: WatchedWords = NO_WORDS
    published: frozenset[str] = frozenset()
    outbound: OutboundRules = INTERNET
    upload_idle: timedelta = timedelta(days=7)
    upload_longest: timedelta = timedelta(days=30)
    ending: dict[UUID, asyncio.Event] = field(default_factory=dict)
    receiving: Counter[str] = field(default_factory=Counter)


class Accepted(Wire):
    """Durably taken; counted soon."""

    status: Literal["accepted"] = "accepted"


class NotAnsweredYet(DomainError):
    """No answer is kept under this idempotency key."""


@dataclass(frozen=True)
class Recall(Query[Wire]):
    """Asks only for the answer kept under the key; there are no rules to check."""

    def streams(self) -> tuple[()]:
        return ()

    def decide(self, aggregates: Aggregates, origin: Origin) -> Wire:
        raise NotAnsweredYet("No answer is kept under this key.")


@dataclass(frozen=True)
class Reply(Query[W]):
    """An answer that records nothing but itself, under the request's idempotency key."""

    body: W

    def streams(self) -> tuple[()]:
        return ()

    def decide(self, aggregates: Aggregates, origin: Origin) -> W:
        return self.body


@dataclass(frozen=True, slots=True)
class KeptAnswer(Generic[W]):
    """What is kept of an answer. The rest expires, and is made anew each time it is told."""

    facts: W
    status: int
    headers: Mapping[str, str]

    def told(self, body: Wire) -> Response:
        """Return the answer with all that belongs to it."""
        return wire(body, self.status, self.headers)

    def again(self) -> Response:
        """Return what is kept, which is all of the answer."""
        return self.told(self.facts)


class Execute:
    """Executes commands for one request, as its caller."""

    def __init__(
        self,
        request: Request,
        identity: Identity,
        *,
        asks: bytes | None = None,
        repeatable: bool = True,
    ) -> None:
        """`asks` is what a request wants whose body does not say it.

        One that is not `repeatable` has no idempotency key, whatever it sends.
        """
        self.identity = identity
        self.services: Services = request.app.state.commands
        self._request = request
        self._asks, self._repeatable = asks, repeatable

    def further(self) -> Execute:
        """Return what executes the commands that come after the one whose answer is kept."""
        return Execute(self._request, self.identity, repeatable=False)

    @property
    def actor(self) -> str:
        return self.identity.person

    @property
    def user_id(self) -> str | None:
        """The caller; None of one who has no name."""
        return None if self.identity.anonymous else self.actor

    @property
    def viewer(self) -> VideoViewer:
        """As whom the caller sees videos."""
        return self.identity.viewer

    @property
    def correlation_id(self) -> str:
        """What names the conversation that the request belongs to."""
        return request_id_of(self._request.scope)

    @property
    def base_url(self) -> str:
        """Where clients reach this API, without a slash at the end."""
        return self.services.public_url or str(self._request.base_url).rstrip("/")

    async def admit(self, user_id: str) -> str:
        """Return the pseudonym of a user of whom something is recorded; raise Problem 410."""
        return await person_admitted(self._request, user_id)

    async def find(self, user_ids: Sequence[str]) -> list[str]:
        """Return the pseudonyms of users, UNKNOWN of those whom nobody knows here."""
        return await persons_named(self._request, user_ids) if user_ids else []

    def fresh_id(self, purpose: str) -> UUID:
        """Return an id for what this request makes; repeats under one key get the same."""
        key = header(self._request.scope, b"idempotency-key")
        if key is None:
            return uuid4()
        return uuid5(NAMESPACE, "\n".join((self.actor, self._request.url.path, key, purpose)))

    async def __call__(self, command: Command[W], status: int = 200) -> Response:
        """Return the HTTP answer to the command, or the kept one where the request is a repeat."""
        outcome = await self._run(command, await self._key(status))
        if isinstance(outcome, StoredAnswer):
            return self._repeat(outcome)
        return wire(outcome.answer, status, _position(outcome))

    async def keep(self, command: Command[W], kind: type[W], status: int = 200) -> KeptAnswer[W]:
        """Execute a command whose answer lacks what expires; return what is kept of the answer."""
        outcome = await self._run(command, await self._key(status))
        if isinstance(outcome, StoredAnswer):
            return _kept(outcome, kind)
        return KeptAnswer(outcome.answer, status, _position(outcome))

    async def value(self, command: Command[R]) -> R:
        """Return the command's own answer, for a request that goes on after it."""
        outcome = await self._run(command, None)
        return cast("Executed[R]", outcome).answer

    async def recall(self) -> Response | None:
        """Return the answer to a repeat of an idempotent request before anything is done."""
        answer = await self._recalled()
        return None if answer is None else self._repeat(answer)

    async def kept(self, kind: type[W]) -> KeptAnswer[W] | None:
        """Return what is kept of the answer to a repeat, where only a part of it is kept."""
        answer = await self._recalled()
        return None if answer is None else _kept(answer, kind)

    async def _recalled(self) -> StoredAnswer | None:
        if (key := await self._key(200)) is None:
            return None
        try:
            outcome = await self._run(Recall(), key)
        except NotAnsweredYet:
            return None
        return outcome if isinstance(outcome, StoredAnswer) else None

    def _repeat(self, answer: StoredAnswer) -> Response:
        """Return an answer as it was told before; what is kept of it has pseudonyms."""
        shape = self._request.scope["route"].response_model
        if shape.may_name():
            return _kept(answer, shape).again()
        return Response(answer.body, answer.status, _repeat_headers(answer), "application/json")

    async def _run(
        self, command: Command[R], key: IdempotencyKey | None
    ) -> Executed[R] | StoredAnswer:
        return await self.services.bus.execute_once(
            command,
            key,
            actor=self.actor,
            correlation_id=self.correlation_id,
            kind=self.identity.kind,
        )

    async def _key(self, status: int) -> IdempotencyKey | None:
        if self._request.scope["method"] != "POST":
            return None
        key = header(self._request.scope, b"idempotency-key")
        if key is None or not self._repeatable:
            return None
        if not (1 <= len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
            raise Problem(
                422,
                "invalid",
                f"Idempotency-Key: 1 to {MAX_KEY_LENGTH} printable ASCII characters.",
            )
        path = self._request.url.path.encode()
        asks = await self._request.body() if self._asks is None else self._asks
        digest = hashlib.sha256(path + b"\n" + asks).digest()
        return IdempotencyKey(key, digest, lambda body: (status, body.to_json()))


def _position(outcome: Executed[Any] | StoredAnswer) -> dict[str, str]:
    return {"Backlot-Position": encode_position(outcome.position, outcome.telemetry)}


def _kept(answer: StoredAnswer, kind: type[W]) -> KeptAnswer[W]:
    facts = kind.model_validate_json(answer.body)
    return KeptAnswer(facts, answer.status, _repeat_headers(answer))


def _repeat_headers(answer: StoredAnswer) -> dict[str, str]:
    return {**_position(answer), "Idempotency-Replayed": "true"}


# For routes with a body: who has no token is told so before what is wrong with the body.
TOKEN_FIRST = [Depends(require_identity)]


async def executor(request: Request, asks: bytes | None = None) -> Execute:
    """Return what executes commands as the caller of this request; 401 without a token.

    `asks` is what the request wants where its body does not say it. Called by the routes
    themselves: as a FastAPI dependency it would cost a seventh of the request.
    """
    # Most callers are known already.
    caller = request.scope.get(CALLER) or recalled(request.scope)
    if not isinstance(caller, Identity):
        caller = await require_identity(request)
    return Execute(request, caller, asks=asks)


async def require_viewer(request: Request) -> Identity:
    """Return who watches: a user, or a viewer without a name where those may; else 401."""
    identity = await maybe_identity(request)
    viewers: ViewerKeys | None = request.app.state.commands.viewers
    if identity is not None or viewers is None:
        return identity or await require_identity(request)
    client = header(request.scope, b"user-agent") or ""
    key = await viewers.key(client_address(request.scope), client)
    return Identity(key, frozenset(), anonymous=True)


VIEWER_FIRST = [Depends(require_viewer)]


async def viewer_executor(request: Request) -> Execute:
    """Return the same for the viewer of this request, who may have no name; else 401."""
    return Execute(request, await require_viewer(request))

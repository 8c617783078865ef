"""Webhooks: where published events are sent to, as operators add, change and try it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Path, Request, Response
from pydantic import Field

from commands.endpoint import executor
from domain.errors import Invalid
from domain.model import Origin
from domain.webhooks import (
    MAX_OVERLAP,
    MAX_URL,
    MOST_TOPICS,
    STREAM_ID,
    DisabledBecause,
    Webhook,
    Webhooks,
)
from engine.command_bus import Aggregates, Command
from engine.lookups import Lookup
from infra.http.auth import require_admin
from infra.http.outbound_rules import OutboundRules, UrlRefused
from infra.http.problems import problems
from infra.http.shapes import InvalidPosition, RequestBody, Time, Wire, decode_position

OVERLAP = timedelta(days=1)
"""How long former secrets go on to sign, where nobody says otherwise."""

Url = Annotated[
    str, Field(min_length=1, max_length=MAX_URL, examples=["https://hooks.example.org/backlot"])
]
Topics = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=100, examples=["video.liked"])]],
    Field(min_length=1, max_length=MOST_TOPICS),
]


class AddWebhook(RequestBody):
    """Where to send which topics; `after` is a `Backlot-Position`, none: from now on."""

    url: Url
    topics: Topics
    after: Annotated[str, Field(max_length=1_000)] | None = None


class ChangeWebhook(RequestBody):
    """What is to be otherwise. `enabled: true` also makes whatever waits due at once."""

    url: Url | None = None
    topics: Topics | None = None
    enabled: Annotated[bool, Field(strict=True)] | None = None


class RotateSecret(RequestBody):
    """How long the secrets before go on to sign beside the new one; default: a day."""

    overlap_seconds: Annotated[
        int, Field(ge=0, le=int(MAX_OVERLAP.total_seconds()), strict=True)
    ] = int(OVERLAP.total_seconds())


class WebhookAsked(Wire):
    """A webhook as it was asked for; `GET …/secret` has what its receiver needs."""

    webhook_id: UUID
    url: str
    topics: list[str]
    enabled: bool
    made_at: Time

    @classmethod
    def of(cls, webhook: Webhook) -> WebhookAsked:
        """Return a webhook as its operators see it."""
        return cls(
            webhook_id=webhook.id,
            url=webhook.url,
            topics=sorted(webhook.topics),
            enabled=webhook.disabled is None,
            made_at=webhook.made_at,
        )


class WebhookRemoved(Wire):
    """Nothing is sent there any more."""

    webhook_id: UUID
    status: Literal["removed"] = "removed"


class DeliveryAsked(Wire):
    """It is done soon: see the deliveries of the webhook. `messageId` is that of a test."""

    webhook_id: UUID
    message_id: UUID | None = None
    delivery_id: int | None = None
    status: Literal["requested"] = "requested"


@dataclass(frozen=True)
class AddNewWebhook(Command[WebhookAsked]):
    """Send to a URL; behind `after` (log, telemetry), or from now on."""

    webhook_id: UUID
    secret_id: UUID
    url: str
    topics: frozenset[str]
    after: tuple[int, int] | None = None

    def streams(self) -> Sequence[UUID]:
        return (STREAM_ID,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> WebhookAsked:
        webhooks = aggregates.get(Webhooks, STREAM_ID)
        where = (self.webhook_id, self.url, self.topics, self.secret_id, self.after)
        return WebhookAsked.of(webhooks.add(*where, origin))


@dataclass(frozen=True)
class AlterWebhook(Command[WebhookAsked]):
    """Send elsewhere, other topics, no more, or again."""

    webhook_id: UUID
    url: str | None = None
    topics: frozenset[str] | None = None
    enabled: bool | None = None

    def streams(self) -> Sequence[UUID]:
        return (STREAM_ID,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> WebhookAsked:
        webhooks = aggregates.get(Webhooks, STREAM_ID)
        made = webhooks.change(self.webhook_id, self.url, self.topics, origin)
        if self.enabled is not None:
            if self.enabled:
                made = webhooks.enable(self.webhook_id, origin)
            else:
                made = webhooks.disable(self.webhook_id, DisabledBecause.ASKED, origin)
        return WebhookAsked.of(made)


@dataclass(frozen=True)
class DisableWebhook(Command[WebhookAsked]):
    """Send nothing there any more, for a reason of the program's own."""

    webhook_id: UUID
    reason: DisabledBecause

    def streams(self) -> Sequence[UUID]:
        return (STREAM_ID,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> WebhookAsked:
        webhooks = aggregates.get(Webhooks, STREAM_ID)
        return WebhookAsked.of(webhooks.disable(self.webhook_id, self.reason, origin))


@dataclass(frozen=True)
class RotateWebhookSecret(Command[WebhookAsked]):
    """Sign by a new secret, and for a while by those before."""

    webhook_id: UUID
    secret_id: UUID
    overlap: timedelta = OVERLAP

    def streams(self) -> Sequence[UUID]:
        return (STREAM_ID,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> WebhookAsked:
        webhooks = aggregates.get(Webhooks, STREAM_ID)
        given = (self.webhook_id, self.secret_id, self.overlap)
        return WebhookAsked.of(webhooks.rotate(*given, origin))


@dataclass(frozen=True)
class RemoveWebhook(Command[WebhookRemoved]):
    """Send nothing there any more, and forget its deliveries."""

    webhook_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (STREAM_ID,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> WebhookRemoved:
        aggregates.get(Webhooks, STREAM_ID).remove(self.webhook_id, origin)
        return WebhookRemoved(webhook_id=self.webhook_id)


@dataclass(frozen=True)
class TryWebhook(Command[DeliveryAsked]):
    """Send a message that says nothing."""

    webhook_id: UUID
    message_id: UUID

    def streams(self) -> Sequence[UUID]:
        return (STREAM_ID,)

    def decide(self, aggregates: Aggregates, origin: Origin) -> DeliveryAsked:
        aggregates.get(Webhooks, STREAM_ID).test(self.webhook_id, self.message_id, origin)
        return DeliveryAsked(webhook_id=self.webhook_id, message_id=self.message_id)


@dataclass(frozen=True)
class DeliveryWaits(Lookup[bool | None]):
    """Whether a delivery waits; None where the webhook has no such one."""

    webhook_id: UUID
    delivery_id: int

    default = None


@dataclass(frozen=True)
class DeliveryCommand(Command[DeliveryAsked]):
    """What becomes of one delivery, which depends on whether it waits."""

    webhook_id: UUID
    delivery_id: int

    def streams(self) -> Sequence[UUID]:
        return (STREAM_ID,)

    def lookups(self) -> Sequence[DeliveryWaits]:
        return (DeliveryWaits(self.webhook_id, self.delivery_id),)

    def decide(self, aggregates: Aggregates, origin: Origin) -> DeliveryAsked:
        waits = aggregates.look_up(DeliveryWaits(self.webhook_id, self.delivery_id))
        self.record(aggregates.get(Webhooks, STREAM_ID), waits, origin)
        return DeliveryAsked(webhook_id=self.webhook_id, delivery_id=self.delivery_id)

    @abstractmethod
    def record(self, webhooks: Webhooks, waits: bool | None, origin: Origin) -> None:
        """Record what was asked for; refuse it where it does not fit."""


@dataclass(frozen=True)
class RepeatDelivery(DeliveryCommand):
    """Deliver something once more that was delivered, skipped or lost."""

    def record(self, webhooks: Webhooks, waits: bool | None, origin: Origin) -> None:
        webhooks.repeat(self.webhook_id, self.delivery_id, waits, origin)


@dataclass(frozen=True)
class SkipDelivery(DeliveryCommand):
    """Give up a delivery that waits, so that what waits behind it goes on."""

    def record(self, webhooks: Webhooks, waits: bool | None, origin: Origin) -> None:
        webhooks.skip(self.webhook_id, self.delivery_id, waits, origin)


def checked_url(url: str, rules: OutboundRules) -> str:
    """Return a URL to which webhooks may be sent; raise Invalid."""
    try:
        rules.check_url(url)
    except UrlRefused as error:
        raise Invalid(f"`url` can't be called: {error}.", field="url") from error
    return url


def checked_topics(topics: Collection[str], published: Collection[str]) -> frozenset[str]:
    """Return topics that are published; raise Invalid, which names those that are."""
    if unknown := sorted(set(topics) - set(published)):
        told = f"There is no topic {', '.join(map(repr, unknown))}; there are "
        raise Invalid(f"{told}{', '.join(sorted(published))}.", field="topics")
    return frozenset(topics)


def checked_position(token: str | None) -> tuple[int, int] | None:
    """Return the position in a token; raise Invalid."""
    try:
        if token is None:
            return None
        events, telemetry = decode_position(token)
    except InvalidPosition as error:
        raise Invalid(str(error), field="after") from error
    return events, telemetry


router = APIRouter(
    prefix="/admin/webhooks", tags=["webhooks"], dependencies=[Depends(require_admin)]
)
FAULTS = (400, 401, 403, 404, 409, 413, 422, 503)
DeliveryId = Annotated[int, Path(ge=1, le=2**63 - 1)]


@router.post(
    "",
    status_code=201,
    response_model=WebhookAsked,
    responses=problems(400, 401, 403, 409, 413, 422, 503),
    summary="Send published events to a URL",
)
async def add_webhook(body: AddWebhook, request: Request) -> Response:
    execute = await executor(request)
    command = AddNewWebhook(
        execute.fresh_id("webhook"),
        execute.fresh_id("secret"),
        checked_url(body.url, execute.services.outbound),
        checked_topics(body.topics, execute.services.published),
        checked_position(body.after),
    )
    return await execute(command, status=201)


@router.patch(
    "/{webhook_id}",
    response_model=WebhookAsked,
    responses=problems(*FAULTS),
    summary="Change a webhook, disable it, or enable it",
)
async def change_webhook(webhook_id: UUID, body: ChangeWebhook, request: Request) -> Response:
    execute, topics = await executor(request), None
    if body.url is not None:
        checked_url(body.url, execute.services.outbound)
    if body.topics is not None:
        topics = checked_topics(body.topics, execute.services.published)
    return await execute(AlterWebhook(webhook_id, body.url, topics, body.enabled))


@router.delete(
    "/{webhook_id}",
    response_model=WebhookRemoved,
    responses=problems(401, 403, 404, 409, 422, 503),
    summary="Remove a webhook and its deliveries",
)
async def remove_webhook(webhook_id: UUID, request: Request) -> Response:
    execute = await executor(request)
    return await execute(RemoveWebhook(webhook_id))


@router.post(
    "/{webhook_id}/secret",
    response_model=WebhookAsked,
    responses=problems(*FAULTS),
    summary="Sign by a new secret, beside those before for a while",
)
async def rotate_secret(
    webhook_id: UUID, request: Request, body: Annotated[RotateSecret | None, Body()] = None
) -> Response:
    execute = await executor(request)
    overlap = timedelta(seconds=(body or RotateSecret()).overlap_seconds)
    return await execute(RotateWebhookSecret(webhook_id, execute.fresh_id("secret"), overlap))


@router.post(
    "/{webhook_id}/test",
    status_code=202,
    response_model=DeliveryAsked,
    responses=problems(401, 403, 404, 409, 422, 503),
    summary="Send a message that says nothing",
)
async def try_webhook(webhook_id: UUID, request: Request) -> Response:
    execute = await executor(request)
    return await execute(TryWebhook(webhook_id, execute.fresh_id("message")), status=202)


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/repeat",
    status_code=202,
    response_model=DeliveryAsked,
    responses=problems(401, 403, 404, 409, 422, 503),
    summary="Deliver once more",
)
async def repeat_delivery(webhook_id: UUID, delivery_id: DeliveryId, request: Request) -> Response:
    execute = await executor(request)
    return await execute(RepeatDelivery(webhook_id, delivery_id), status=202)


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/skip",
    status_code=202,
    response_model=DeliveryAsked,
    responses=problems(401, 403, 404, 409, 422, 503),
    summary="Give up a delivery that waits",
)
async def skip_delivery(webhook_id: UUID, delivery_id: DeliveryId, request: Request) -> Response:
    execute = await executor(request)
    return await execute(SkipDelivery(webhook_id, delivery_id), status=202)

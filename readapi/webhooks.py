"""Webhooks as operators see them: where they go, what waits, how deliveries went, what signs."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from threading import Lock
from typing import Annotated, Literal
from uuid import UUID

import psycopg
import structlog
from eventsourcing.persistence import PersistenceError
from fastapi import APIRouter, Query, Request, Response

from domain.webhooks import STREAM_ID, DisabledBecause, Webhook, Webhooks
from engine.connections import in_thread
from engine.event_store import GroupCommitRecorder
from engine.log import MAPPER
from engine.persons import Persons
from infra.http.auth import Admin
from infra.http.problems import problems
from infra.http.responses import NOT_MODIFIED, conditional_wire, wire
from infra.http.shapes import Time, Wire
from infra.key_encryption import KeyEncryptionFailed
from infra.standard_webhooks import derive_secret, show_secret
from projections.webhooks import Delivery, DeliveryBacklog, backlog, backlogs, deliveries
from readapi.pages import IfNoneMatch, Page, Paged, decode_cursor
from readapi.queries import Fresh, Queries, Read, ReadModelUnavailable

log = structlog.get_logger(__name__)

KIND = "delivery"
AWAY = (PersistenceError, psycopg.Error)


class WebhookStatus(Wire):
    """A webhook. `disabledBecause` says why nothing is sent; `waiting` are the deliveries that
    were read for it and not taken yet, the oldest recorded at `oldestAt`, the one that failed most
    often with `attempts`.
    """

    webhook_id: UUID
    url: str
    topics: list[str]
    enabled: bool
    disabled_because: DisabledBecause | None = None
    made_at: Time
    waiting: int = 0
    oldest_at: Time | None = None
    attempts: int = 0

    @classmethod
    def of(cls, webhook: Webhook, backlog: DeliveryBacklog | None) -> WebhookStatus:
        """Return a webhook with what waits for it."""
        waits = {} if backlog is None else asdict(backlog)
        return cls(
            **{
                **waits,
                "webhook_id": webhook.id,
                "url": webhook.url,
                "topics": sorted(webhook.topics),
                "enabled": webhook.disabled is None,
                "disabled_because": webhook.disabled,
                "made_at": webhook.made_at,
            }
        )


class SigningSecret(Wire):
    """A secret as the libraries of receivers take it; it signs until `endsAt`, or is the newest."""

    secret: str
    ends_at: Time | None = None


class SigningSecrets(Wire):
    """What deliveries are signed with now, the newest first."""

    webhook_id: UUID
    secrets: list[SigningSecret]


class WebhookDelivery(Wire):
    """A delivery: what became of it, and the `answer` or the `error` of the latest attempt.

    `waiting` is tried (again) at `dueAt`; `lost` could not be read where it was recorded.
    """

    delivery_id: int
    topic: str
    message_id: UUID | None = None
    recorded_at: Time
    status: Literal["waiting", "delivered", "skipped", "lost"]
    attempts: int
    due_at: Time | None = None
    answer: int | None = None
    error: str | None = None
    tried_at: Time | None = None
    settled_at: Time | None = None

    @classmethod
    def of(cls, row: Delivery) -> WebhookDelivery:
        """Return a delivery as operators see it."""
        due = row.due_at if row.status == "waiting" else None
        return cls.model_validate(asdict(row) | {"due_at": due})


class WebhookSource:
    """What the log says of webhooks, and what their secrets are.

    What was read of the log is kept: each read asks for what is new.
    """

    def __init__(self, recorder: GroupCommitRecorder, persons: Persons) -> None:
        self._recorder = recorder
        self._persons = persons
        self._known = Webhooks.blank(STREAM_ID)
        self._lock = Lock()

    async def read(self) -> Webhooks:
        """Return all webhooks; raise ReadModelUnavailable when the store is away."""
        try:
            return await in_thread(self._read)
        except AWAY as error:
            raise ReadModelUnavailable(str(error)) from error

    async def secrets(self, webhook: Webhook) -> SigningSecrets:
        """Return what a webhook signs with; raise ReadModelUnavailable."""
        try:
            key = await in_thread(self._persons.webhook_key)
        except (*AWAY, KeyEncryptionFailed) as error:
            raise ReadModelUnavailable(str(error)) from error
        return signing_secrets(webhook, key)

    def _read(self) -> Webhooks:
        shown = Webhooks.blank(STREAM_ID)
        with self._lock:
            _catch_up(self._known, self._recorder)
            shown.by_id = dict(self._known.by_id)
        return shown


def load_webhooks(recorder: GroupCommitRecorder) -> Webhooks:
    """Return all webhooks as the log has them; raise PersistenceError."""
    webhooks = Webhooks.blank(STREAM_ID)
    _catch_up(webhooks, recorder)
    return webhooks


def _catch_up(webhooks: Webhooks, recorder: GroupCommitRecorder) -> None:
    rows, *_ = recorder.fetch([(STREAM_ID, webhooks.version)], (), lambda _: None)
    for row in rows:
        MAPPER.decode(*row).mutate(webhooks)


def signing_secrets(webhook: Webhook, key: bytes) -> SigningSecrets:
    """Return what a webhook signs with now."""
    shown = [
        SigningSecret(secret=show_secret(derive_secret(key, each.id)), ends_at=each.ends_at)
        for each in webhook.signing(datetime.now(UTC))
    ]
    return SigningSecrets(webhook_id=webhook.id, secrets=shown)


async def _found(request: Request, queries: Queries, fresh: Fresh) -> Webhooks:
    await queries.confirm(fresh)
    source: WebhookSource = request.app.state.webhooks
    return await source.read()


router = APIRouter(prefix="/admin/webhooks", tags=["webhooks"])


@router.get(
    "",
    response_model=Page[WebhookStatus],
    responses=problems(401, 403, 422, 503) | NOT_MODIFIED,
    summary="All webhooks, with what waits for each",
)
async def list_webhooks(
    request: Request, queries: Read, caller: Admin, fresh: Fresh, if_none_match: IfNoneMatch = None
) -> Response:
    found = (await _found(request, queries, fresh)).by_id
    async with queries.reading(fresh) as conn:
        waits = await backlogs(conn)
    items = [WebhookStatus.of(each, waits.get(each.id)) for each in found.values()]
    return await conditional_wire(request, Page[WebhookStatus](items=items))


@router.get(
    "/{webhook_id}",
    response_model=WebhookStatus,
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED,
    summary="One webhook",
)
async def get_webhook(
    webhook_id: UUID,
    request: Request,
    queries: Read,
    caller: Admin,
    fresh: Fresh,
    if_none_match: IfNoneMatch = None,
) -> Response:
    webhook = (await _found(request, queries, fresh)).get(webhook_id)
    async with queries.reading(fresh) as conn:
        waits = await backlog(conn, webhook_id)
    return await conditional_wire(request, WebhookStatus.of(webhook, waits))


@router.get(
    "/{webhook_id}/secret",
    response_model=SigningSecrets,
    responses=problems(401, 403, 404, 422, 503),
    summary="What deliveries are signed with",
)
async def get_secret(
    webhook_id: UUID, request: Request, queries: Read, caller: Admin, fresh: Fresh
) -> Response:
    webhook = (await _found(request, queries, fresh)).get(webhook_id)
    source: WebhookSource = request.app.state.webhooks
    secrets = await source.secrets(webhook)
    log.info("webhook_secret_shown", webhook=str(webhook_id), actor=caller.person)
    return wire(secrets, headers={"Cache-Control": "no-store"})


@router.get(
    "/{webhook_id}/deliveries",
    response_model=Page[WebhookDelivery],
    responses=problems(401, 403, 404, 422, 503) | NOT_MODIFIED,
    summary="Deliveries, the newest first",
)
async def list_deliveries(
    webhook_id: UUID,
    request: Request,
    queries: Read,
    caller: Admin,
    fresh: Fresh,
    page: Paged,
    status: Annotated[
        Literal["waiting", "delivered", "skipped", "lost"] | None,
        Query(description="Only those of which this became."),
    ] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    (await _found(request, queries, fresh)).get(webhook_id)
    before = decode_cursor(KIND, page.cursor)
    async with queries.reading(fresh) as conn:
        rows = await deliveries(conn, webhook_id, status, before, page.rows)
    shown, following = page.cut(KIND, rows, lambda row: row.delivery_id)
    items = [WebhookDelivery.of(row) for row in shown]
    return await conditional_wire(
        request, Page[WebhookDelivery](items=items, next_cursor=following)
    )

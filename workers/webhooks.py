"""Delivers what is published to webhooks: at least once, in order per key, for days if need be.

One process sends. Behind the positions of each webhook it writes down what is to be delivered, in
the transaction that moves them, and then works that off. Of each key one delivery is under way at a
time: the next one goes once that was taken, so a delivery that fails holds back its key and nothing
else. What waits is bounded; where that is full, the log itself is the queue.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import psycopg
import structlog
from eventsourcing.persistence import PersistenceError
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from commands.webhooks import DeliveryWaits, DisableWebhook
from domain.errors import DomainError
from domain.model import Aggregate, SystemActor
from domain.webhooks import STREAM_ID, DisabledBecause, Webhook, Webhooks
from engine import checkpoints
from engine.checkpoints import Checkpoint, SubscriptionKind, Superseded
from engine.command_bus import CommandBus
from engine.connections import LeaderLock, ThreadedConnection, in_thread
from engine.event_store import EVENTS
from engine.log import HEAD as EVENTS_HEAD
from engine.log import Stored
from engine.lookups import Readers
from engine.persons import Persons
from engine.projection import ReadModels
from engine.schedule import Job, Outage, repeat
from engine.subscription import Handler, NoCheckpoint, Subscription, Wakeups
from engine.telemetry import HEAD as TELEMETRY_HEAD
from infra.cancellation import cancel
from infra.errors import describe
from infra.http.outbound import AddressRefused, NoAnswer, Outbound
from infra.http.outbound_rules import OutboundRules
from infra.metrics import counter, gauge
from infra.postgres.connection import open_connection
from infra.settings.features import WebhookSettings
from infra.standard_webhooks import derive_secret, signed_headers
from projections import webhooks as table
from projections.feeds import Stretch, feeds
from projections.integration_events import Message
from projections.webhooks import Attempt, DeliveryStatus, WaitingDelivery
from workers.parts import Parts
from workers.tasks import Tasks
from workers.webhook_queue import DeliveryQueue, read_message

log = structlog.get_logger(__name__)

NAME = "webhooks"
EVENT_FEED, TELEMETRY_FEED = "events", "telemetry"
FEEDS = (EVENT_FEED, TELEMETRY_FEED)

MOST_WAITING, READ_EVENTS = 2_000, 100
"""So much of one webhook waits in the table and in memory, and is read at once."""
POLL_SECONDS = 1.0
"""Where a notification was lost."""
MEASURE_EVENTS = 100
GATHER_SECONDS = 0.05
"""What comes within this time is read together, where nothing is under way."""
MOVE_SECONDS = 10.0
"""How often positions are written down where nothing was wanted; a crash costs reading again."""
MOST_ASKED_SECONDS = 3_600.0
"""A receiver may ask for a pause of so long."""
SPREAD = 0.1
"""Pauses are longer by up to so much, so that many do not come back together."""
PRUNE_SECONDS, MOST_KEPT = 600.0, 10_000
CONTENT_TYPE = "application/cloudevents+json"
SUCCESS, GONE = range(200, 300), 410

FOLLOW = f"""
SELECT notification_id, originator_id, originator_version, topic, state FROM {EVENTS}
WHERE originator_id = %s AND originator_version > %s ORDER BY originator_version
""".encode()

ATTEMPTS = counter(
    "backlot_webhook_attempts",
    "Attempts to deliver to webhooks, by outcome (delivered, refused, unanswered, forbidden).",
    ("outcome",),
)
LOST = counter(
    "backlot_webhook_lost",
    "Deliveries that were given up because what was recorded can't be read, or is gone.",
)
LAG = gauge(
    "backlot_webhook_lag_events",
    "Positions between the end of what is followed and what was read for a webhook, and what "
    "waits.",
    ("webhook",),
)
LAG_SECONDS = gauge(
    "backlot_webhook_lag_seconds",
    "Age of the oldest message that a webhook has not taken; 0 when it has all.",
    ("webhook",),
)
DISABLED = gauge("backlot_webhooks_disabled", "Webhooks that are disabled, for whatever reason.")
FAILURES = counter(
    "backlot_webhook_failures",
    "Times that the sender of webhooks could not go on, and tried again later (database, other).",
    ("step",),
)


def outbound_rules(settings: WebhookSettings) -> OutboundRules:
    """Return where webhooks may be sent to."""
    return OutboundRules(settings.allow_http, settings.allowed_networks)


class Settled(NamedTuple):
    """What came of an attempt, and why the webhook is to be disabled where it is."""

    webhook_id: UUID
    delivery: WaitingDelivery
    attempt: Attempt | None
    disabled: DisabledBecause | None = None


class WebhookSender(Handler[None]):
    """Follows the webhooks, and sends to each what it wants."""

    def __init__(
        self, settings: WebhookSettings, persons: Persons, bus: CommandBus, wake: asyncio.Event
    ) -> None:
        self._settings = settings
        self._persons = persons
        self._bus = bus
        self._wake = wake
        self._webhooks = Webhooks.blank(STREAM_ID)
        self._queues: dict[UUID, DeliveryQueue] = {}
        self._heads: dict[str, int] = {}
        self._settled: list[Settled] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._outbound: Outbound | None = None
        self._key: bytes | None = None

    async def start(self, conn: ThreadedConnection) -> None:
        settings = self._settings
        self._outbound = Outbound(
            outbound_rules(settings), seconds=settings.timeout_seconds, ca_file=settings.ca_file
        )
        await conn.do(lambda c: checkpoints.begin(c, SubscriptionKind.WEBHOOK, NAME, (NAME,)))
        self._wake.set()

    async def handle(self, conn: ThreadedConnection, batch: None) -> None:
        await conn.do(self._follow)
        await self._write_settled(conn)
        if self._queues and self._key is None:
            self._key = await in_thread(self._persons.webhook_key)
        for queue in self._enabled():
            if await conn.do(self._read, queue):
                self._wake.set()
        # What was decided about a webhook before something was recorded for it counts for that.
        await conn.do(self._take_in)
        for queue in self._enabled():
            await self._send_due(conn, queue)
        self._wake_when_due()
        if not self._tasks:
            await asyncio.sleep(GATHER_SECONDS)

    async def look_aside(self, conn: ThreadedConnection) -> None:
        await conn.do(self._measure)

    async def stop(self) -> None:
        tasks, self._tasks = self._tasks, set()
        await cancel(*tasks)
        outbound, self._outbound = self._outbound, None
        if outbound is not None:
            await outbound.aclose()
        for webhook_id in self._queues:
            _forget_lag(webhook_id)
        DISABLED.set(0)
        self._webhooks, self._queues, self._settled = Webhooks.blank(STREAM_ID), {}, []

    def failed(self, error: Exception) -> None:
        """Count and log what stopped the sender."""
        if isinstance(error, psycopg.Error | PersistenceError | Superseded):
            FAILURES.labels("database").inc()
            log.warning("webhooks_interrupted", error=describe(error))
        else:
            FAILURES.labels("other").inc()
            log.error("webhooks_broke", exc_info=error)

    def _enabled(self) -> list[DeliveryQueue]:
        return [each for each in self._queues.values() if each.webhook.disabled is None]

    # What operators want.

    def _follow(self, conn: Connection[TupleRow]) -> None:
        """Take in what was recorded about webhooks, and do what of that was not done yet."""
        self._heads = {
            feed: _number(conn, query)
            for feed, query in ((EVENT_FEED, EVENTS_HEAD), (TELEMETRY_FEED, TELEMETRY_HEAD))
        }
        self._take_in(conn)

    def _take_in(self, conn: Connection[TupleRow]) -> None:
        version = self._webhooks.version
        rows = conn.execute(FOLLOW, (STREAM_ID, version), prepare=True).fetchall()
        if not rows:
            return
        recorded = [Stored(*row).decode() for row in rows]
        with conn.transaction(), conn.cursor() as cursor:
            before = checkpoints.positions(conn, SubscriptionKind.WEBHOOK, NAME)[NAME, 0]
            for position, event in recorded:
                event.mutate(self._webhooks)
                if event.originator_version > before:
                    self._carry_out(conn, position, event)
            if self._webhooks.version > before:
                done = Checkpoint(SubscriptionKind.WEBHOOK, NAME, source=NAME)
                done.move(cursor, before, self._webhooks.version)
        self._queue_anew(conn)

    def _carry_out(self, conn: Connection[TupleRow], position: int, event: Aggregate.Event) -> None:
        match event:
            case Webhooks.Added(webhook_id=id_, after=after):
                at = after or (position, self._heads[TELEMETRY_FEED])
                _set_places(conn, id_, dict(zip(FEEDS, at, strict=True)))
            case Webhooks.Changed(webhook_id=id_) | Webhooks.Enabled(webhook_id=id_):
                table.make_due(conn, id_)
            case Webhooks.Removed(webhook_id=id_):
                table.remove(conn, id_)
            case Webhooks.TestRequested(webhook_id=id_, message_id=message_id, timestamp=at):
                table.plan_test(conn, id_, message_id, at)
            case Webhooks.DeliveryRepeated(webhook_id=id_, delivery_id=delivery_id):
                table.repeat(conn, id_, delivery_id)
            case Webhooks.DeliverySkipped(webhook_id=id_, delivery_id=delivery_id):
                table.skip(conn, id_, delivery_id)

    def _queue_anew(self, conn: Connection[TupleRow]) -> None:
        """Have a queue for each webhook, of what waits now; what is under way stays so."""
        before, self._queues = self._queues, {}
        for id_, webhook in self._webhooks.by_id.items():
            found = checkpoints.positions(conn, SubscriptionKind.WEBHOOK, str(id_))
            places = {feed: found.get((feed, 0), 0) for feed in FEEDS}
            running = before[id_].running if id_ in before else {}
            self._queues[id_] = DeliveryQueue(webhook, places, running)
            self._queues[id_].add(table.waiting(conn, id_))
        for id_ in before.keys() - self._queues.keys():
            _forget_lag(id_)
        DISABLED.set(sum(each.disabled is not None for each in self._webhooks.by_id.values()))

    # What was recorded for each webhook.

    def _read(self, conn: Connection[TupleRow], queue: DeliveryQueue) -> bool:
        """Write down the next that the webhook is to get; return whether more can be read."""
        id_, before = queue.webhook.id, queue.stored
        room = queue.count + 2 * READ_EVENTS <= MOST_WAITING
        if not room or all(queue.places[feed] >= self._heads[feed] for feed in FEEDS):
            return False
        places, found = {**queue.places, **self._heads}, dict[str, Stretch]()
        for feed in feeds(queue.webhook.topics, batch_events=READ_EVENTS):
            stretch = feed.read(conn, queue.places[feed.name])
            found[feed.name], places[feed.name] = stretch, stretch.until
        wanted = any(each.messages or each.unreadable for each in found.values())
        if wanted or time.monotonic() - queue.moved > MOVE_SECONDS:
            with conn.transaction(), conn.cursor() as cursor:
                for name, place in places.items():
                    at = Checkpoint(SubscriptionKind.WEBHOOK, str(id_), source=name)
                    at.move(cursor, before.get(name, 0), place)
                for name, stretch in found.items():
                    table.plan(conn, id_, name, stretch.messages)
                    table.lose(conn, id_, name, stretch)
                    _tell_lost(id_, [each.error for each in stretch.unreadable])
            queue.stored, queue.moved = dict(places), time.monotonic()
            queue.add(table.waiting(conn, id_, queue.last))
        queue.places = places
        return any(places[name] < self._heads[name] for name in FEEDS)

    # One attempt after the other.

    async def _send_due(self, conn: ThreadedConnection, queue: DeliveryQueue) -> None:
        """Begin what is due, so many at once."""
        while len(queue.running) < self._settings.at_once:
            taken = queue.take(datetime.now(UTC))
            if taken is None:
                return
            message, why = await conn.do(read_message, queue.webhook.id, taken)
            if message is None:
                _tell_lost(queue.webhook.id, [why])
                gone = _attempt(taken, DeliveryStatus.LOST, taken.attempts, error=why)
                self._settled.append(Settled(queue.webhook.id, taken, gone))
                self._wake.set()
            else:
                task = asyncio.create_task(self._attempt(queue.webhook, taken, message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _attempt(self, webhook: Webhook, taken: WaitingDelivery, message: Message) -> None:
        try:
            settled = await self._sent(webhook, taken, message)
        except Exception as error:
            log.exception("webhook_attempt_broke", webhook=str(webhook.id))
            settled = self._missed(webhook, taken, "unanswered", error=describe(error))
        self._settled.append(settled)
        self._wake.set()

    async def _sent(self, webhook: Webhook, taken: WaitingDelivery, message: Message) -> Settled:
        """Send a message, and return what came of it."""
        if self._outbound is None or self._key is None:
            return Settled(webhook.id, taken, None)
        now, body = datetime.now(UTC), message.cloud_event()
        secrets = [derive_secret(self._key, each.id) for each in webhook.signing(now)]
        headers = {
            "content-type": CONTENT_TYPE,
            "user-agent": "Backlot",
            **signed_headers(secrets, str(message.id), int(now.timestamp()), body),
        }
        try:
            answer = await self._outbound.post(webhook.url, headers, body)
        except AddressRefused as error:
            return self._missed(webhook, taken, "forbidden", error=str(error))
        except NoAnswer as error:
            return self._missed(webhook, taken, "unanswered", error=str(error))
        if answer.status in SUCCESS:
            ATTEMPTS.labels("delivered").inc()
            done = _attempt(
                taken, DeliveryStatus.DELIVERED, taken.attempts + 1, answer=answer.status
            )
            return Settled(webhook.id, taken, done)
        return self._missed(webhook, taken, "refused", answer.status, answer.retry_after)

    def _missed(
        self,
        webhook: Webhook,
        taken: WaitingDelivery,
        outcome: str,
        answer: int | None = None,
        asked_seconds: float | None = None,
        error: str | None = None,
    ) -> Settled:
        """Return when it is tried again, and why the webhook is to be disabled if it is."""
        ATTEMPTS.labels(outcome).inc()
        attempts, pauses = taken.attempts + 1, self._settings.retry_seconds
        told = {"webhook": str(webhook.id), "delivery": taken.delivery_id, "attempts": attempts}
        log.warning("webhook_not_delivered", outcome=outcome, answer=answer, error=error, **told)
        disabled = DisabledBecause.FAILING if attempts > len(pauses) else None
        if answer == GONE:
            disabled = DisabledBecause.GONE
        pause = pauses[min(attempts, len(pauses)) - 1] * (1 + random.uniform(0, SPREAD))  # noqa: S311 - keeps no secret
        pause = max(pause, min(asked_seconds or 0.0, MOST_ASKED_SECONDS))
        due_at = datetime.now(UTC) + timedelta(seconds=pause)
        attempt = Attempt(
            taken.delivery_id, DeliveryStatus.WAITING, attempts, due_at, answer, error
        )
        return Settled(webhook.id, taken, attempt, disabled)

    async def _write_settled(self, conn: ThreadedConnection) -> None:
        """Write down what came of attempts, in their order; then disable whom they say."""
        settled, self._settled = self._settled, []
        if not settled:
            return
        attempts = [each.attempt for each in settled if each.attempt is not None]
        await conn.do(table.settle, attempts)
        for each in settled:
            if (queue := self._queues.get(each.webhook_id)) is not None:
                queue.settle(each.delivery, each.attempt)
        for id_, reason in {s.webhook_id: s.disabled for s in settled if s.disabled}.items():
            await self._disable(id_, reason)
            # Before its event is read: nothing more goes there.
            if (queue := self._queues.get(id_)) is not None:
                queue.webhook = replace(queue.webhook, disabled=reason)

    async def _disable(self, webhook_id: UUID, reason: DisabledBecause) -> None:
        told = {"webhook": str(webhook_id), "reason": str(reason)}
        log.error("webhook_disabled", remedy=f"backlot webhooks enable {webhook_id}", **told)
        command, asked = DisableWebhook(webhook_id, reason), f"webhook-{webhook_id}"
        try:
            await self._bus.execute(command, actor=SystemActor.SYSTEM, correlation_id=asked)
        except DomainError as error:
            log.info("webhook_gone_meanwhile", error=str(error), **told)

    def _wake_when_due(self) -> None:
        """Be called again when the next delivery is due, if that is before the next look."""
        free = [
            queue.next_due()
            for queue in self._queues.values()
            if queue.webhook.disabled is None and len(queue.running) < self._settings.at_once
        ]
        if due := [each for each in free if each is not None]:
            left = (min(due) - datetime.now(UTC)).total_seconds()
            if left < POLL_SECONDS:
                asyncio.get_running_loop().call_later(max(left, 0), self._wake.set)

    def _measure(self, conn: Connection[TupleRow]) -> None:
        now = datetime.now(UTC)
        for id_, queue in self._queues.items():
            topics, behind, oldest = queue.webhook.topics, queue.count, queue.oldest()
            for feed in feeds(topics, batch_events=MEASURE_EVENTS):
                place = queue.places[feed.name]
                behind += max(0, self._heads[feed.name] - place)
                if oldest is None and place < self._heads[feed.name]:
                    messages = feed.read(conn, place).messages
                    oldest = messages[0].at if messages else None
            LAG.labels(str(id_)).set(behind)
            seconds = 0.0 if oldest is None else (now - oldest).total_seconds()
            LAG_SECONDS.labels(str(id_)).set(max(0.0, seconds))


def _number(conn: Connection[TupleRow], query: bytes) -> int:
    row = conn.execute(query, prepare=True).fetchone()
    return int(row[0]) if row else 0


def _set_places(conn: Connection[TupleRow], webhook_id: UUID, places: Mapping[str, int]) -> None:
    at = {(feed, 0): place for feed, place in places.items()}
    checkpoints.set_positions(conn, SubscriptionKind.WEBHOOK, str(webhook_id), at)


def _forget_lag(webhook_id: UUID) -> None:
    for each in (LAG, LAG_SECONDS):
        with suppress(KeyError):
            each.remove(str(webhook_id))


def _attempt(
    taken: WaitingDelivery,
    status: DeliveryStatus,
    attempts: int,
    *,
    answer: int | None = None,
    error: str | None = None,
) -> Attempt:
    return Attempt(taken.delivery_id, status, attempts, taken.due_at, answer, error)


def _tell_lost(webhook_id: UUID, errors: Iterable[str]) -> None:
    for error in errors:
        LOST.inc()
        log.error("webhook_delivery_lost", webhook=str(webhook_id), error=error)


def subscribe_webhooks(
    database_url: str,
    settings: WebhookSettings,
    persons: Persons,
    bus: CommandBus,
    wake: asyncio.Event,
) -> Subscription[None]:
    """Return the subscription that sends to all webhooks; `wake` is set at each notification."""
    sender = WebhookSender(settings, persons, bus, wake)
    return Subscription(
        database_url,
        NAME,
        source=Wakeups(wake),
        checkpoint=NoCheckpoint(),
        handler=sender,
        on_error=sender.failed,
        leader=LeaderLock.of_job(NAME),
        poll_seconds=POLL_SECONDS,
    )


def lookups(models: ReadModels) -> Readers:
    """Tell commands which deliveries wait."""

    def waits(cursor: Cursor[TupleRow], asked: Sequence[DeliveryWaits]) -> list[bool | None]:
        return table.waits(cursor, [(each.webhook_id, each.delivery_id) for each in asked])

    return {DeliveryWaits: waits}


def subscriptions(parts: Parts, bus: CommandBus, tasks: Tasks) -> Iterator[Subscription[None]]:
    """Send to webhooks, unless this installation is not to."""
    settings = parts.settings.webhooks
    if settings.on:
        wake = parts.notifications.subscribe()
        yield subscribe_webhooks(parts.database_url, settings, parts.persons, bus, wake)


def jobs(parts: Parts, bus: CommandBus) -> Iterator[Job]:
    """Delete old deliveries, every ten minutes."""
    keep = timedelta(days=parts.settings.webhooks.keep_days)

    async def run() -> None:
        if gone := await in_thread(_prune, parts.database_url, datetime.now(UTC) - keep):
            log.info("webhook_deliveries_pruned", deliveries=gone)

    outage = Outage("webhook_pruning_postponed", (psycopg.Error,))
    yield Job("webhook pruning", PRUNE_SECONDS, repeat(run), outage)


def _prune(database_url: str, before: datetime) -> int:
    with open_connection(database_url, "webhook pruning") as conn:
        return table.prune(conn, before, MOST_KEPT)

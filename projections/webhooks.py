"""The deliveries of webhooks: what waits, what was delivered, and how the attempts went.

One process at a time changes them; whoever reads sees what is committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, Connection, Cursor
from psycopg.rows import TupleRow, class_row

from engine.checkpoints import SubscriptionKind
from engine.installation import MigrationSet
from engine.personal_data import Left, Unsearched
from infra.postgres.connection import fetch_as
from projections.feeds import Stretch
from projections.integration_events import Message

TABLES = MigrationSet("webhooks", Path(__file__).with_name("webhook_migrations"), "webhooks")

TEST, TEST_TOPIC = "test", "webhook.test"
"""Where messages are from that an operator asks for to try a webhook, and what they are called."""
KEY_BYTES = 16

PERSONAL = (
    Unsearched(
        name="webhooks",
        holds="published messages that were delivered to webhooks; none of them is kept here",
        kept="as long as whoever receives them keeps them",
        where="outside of the program",
        forget=Left("receivers are told by `user.forgotten`, and remove what they have"),
    ),
)

PLAN = b"""
INSERT INTO webhooks.deliveries (webhook_id, feed, position, topic, message_id, key, recorded_at)
SELECT %s, * FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::uuid[], %s::bytea[],
                         %s::timestamptz[])
"""
LOSE = b"""
INSERT INTO webhooks.deliveries
    (webhook_id, feed, position, topic, key, recorded_at, status, error, settled_at)
SELECT %s, * FROM unnest(%s::text[], %s::bigint[], %s::text[]) AS m (feed, position, topic),
    LATERAL (SELECT ''::bytea, now(), 'lost', %s::text, now()) AS rest
"""
REPEAT = b"""
INSERT INTO webhooks.deliveries (webhook_id, feed, position, topic, message_id, key, recorded_at)
SELECT webhook_id, feed, position, topic, message_id, key, recorded_at FROM webhooks.deliveries
WHERE webhook_id = %s AND delivery_id = %s AND status <> 'waiting'
"""
SKIP = b"""
UPDATE webhooks.deliveries SET status = 'skipped', settled_at = now()
WHERE webhook_id = %s AND delivery_id = %s AND status = 'waiting'
"""
DUE_NOW = b"""
UPDATE webhooks.deliveries SET attempts = 0, due_at = now()
WHERE webhook_id = %s AND status = 'waiting'
"""
REMOVE = b"DELETE FROM webhooks.deliveries WHERE webhook_id = %s"
FORGET = b"DELETE FROM backlot_checkpoints WHERE kind = %s AND subscription = %s"
WAITING = b"""
SELECT delivery_id, feed, position, topic, message_id, key, recorded_at, attempts, due_at
FROM webhooks.deliveries WHERE webhook_id = %s AND status = 'waiting' AND delivery_id > %s
ORDER BY delivery_id
"""
# What was skipped meanwhile stays so.
SETTLE = b"""
UPDATE webhooks.deliveries AS d
SET status = a.status, attempts = a.attempts, due_at = a.due_at, answer = a.answer,
    error = a.error, tried_at = now(),
    settled_at = CASE WHEN a.status <> 'waiting' THEN now() END
FROM unnest(%b::bigint[], %b::text[], %b::int[], %b::timestamptz[], %b::int[], %b::text[])
    AS a (delivery_id, status, attempts, due_at, answer, error)
WHERE d.delivery_id = a.delivery_id AND d.status = 'waiting'
"""
PRUNE = b"""
DELETE FROM webhooks.deliveries WHERE status <> 'waiting' AND (settled_at < %s OR delivery_id IN (
    SELECT delivery_id FROM (
        SELECT delivery_id,
               row_number() OVER (PARTITION BY webhook_id ORDER BY delivery_id DESC) AS newest
        FROM webhooks.deliveries WHERE status <> 'waiting') AS settled
    WHERE newest > %s))
"""
WAITS = b"""
SELECT (SELECT status = 'waiting' FROM webhooks.deliveries
        WHERE webhook_id = asked.webhook_id AND delivery_id = asked.delivery_id)
FROM unnest(%s::uuid[], %s::bigint[]) WITH ORDINALITY AS asked (webhook_id, delivery_id, number)
ORDER BY number
"""
BACKLOGS = """
SELECT webhook_id, count(*) AS waiting, min(recorded_at) AS oldest_at, max(attempts) AS attempts
FROM webhooks.deliveries WHERE status = 'waiting' {}GROUP BY webhook_id
"""
ALL_BACKLOGS = BACKLOGS.format("").encode()
BACKLOG = BACKLOGS.format("AND webhook_id = %s ").encode()
LIST = b"""
SELECT delivery_id, topic, message_id, recorded_at, status, attempts, due_at, answer, error,
       tried_at, settled_at
FROM webhooks.deliveries
WHERE webhook_id = %(webhook)s AND delivery_id < %(before)s
      AND (%(status)s::text IS NULL OR status = %(status)s)
ORDER BY delivery_id DESC LIMIT %(limit)s
"""


class DeliveryStatus(StrEnum):
    """What became of a delivery; `lost` is what could not be read where it was recorded."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    SKIPPED = "skipped"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class WaitingDelivery:
    """A delivery that waits; `key` is the digest of what orders, `attempts` those that failed."""

    delivery_id: int
    feed: str
    position: int
    topic: str
    message_id: UUID
    key: bytes
    recorded_at: datetime
    attempts: int
    due_at: datetime


class Attempt(NamedTuple):
    """What came of an attempt, and when the next one is due where the delivery waits on."""

    delivery_id: int
    status: DeliveryStatus
    attempts: int
    due_at: datetime
    answer: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery as operators see it."""

    delivery_id: int
    topic: str
    message_id: UUID | None
    recorded_at: datetime
    status: str
    attempts: int
    due_at: datetime
    answer: int | None
    error: str | None
    tried_at: datetime | None
    settled_at: datetime | None


@dataclass(frozen=True, slots=True)
class DeliveryBacklog:
    """What waits for a webhook, since when, and how often the worst of that was tried."""

    webhook_id: UUID
    waiting: int
    oldest_at: datetime
    attempts: int


def digest_of(key: str) -> bytes:
    """Return what stands for the key of a message, which may be a person's."""
    return blake2b(key.encode(), digest_size=KEY_BYTES).digest()


def plan(conn: Connection[Any], webhook_id: UUID, feed: str, messages: Sequence[Message]) -> None:
    """Have messages delivered, in their order within each key."""
    rows = [
        (feed, each.position, each.topic, each.id, digest_of(each.key), each.at)
        for each in messages
    ]
    if rows:
        conn.execute(PLAN, (webhook_id, *map(list, zip(*rows, strict=True))))


def plan_test(conn: Connection[Any], webhook_id: UUID, message_id: UUID, at: datetime) -> None:
    """Have a message delivered that says nothing, whatever else waits."""
    row = (TEST, 0, TEST_TOPIC, message_id, digest_of(f"{TEST} {message_id}"), at)
    conn.execute(PLAN, (webhook_id, *([each] for each in row)))


def lose(conn: Connection[Any], webhook_id: UUID, feed: str, stretch: Stretch) -> None:
    """Write down what can't be read, and so is not delivered."""
    for each in stretch.unreadable:
        conn.execute(LOSE, (webhook_id, [feed], [each.position], [each.topic], each.error))


def repeat(conn: Connection[Any], webhook_id: UUID, delivery_id: int) -> None:
    """Have what was settled delivered once more; what waits is due anyway."""
    conn.execute(REPEAT, (webhook_id, delivery_id))


def skip(conn: Connection[Any], webhook_id: UUID, delivery_id: int) -> None:
    """Give up what waits."""
    conn.execute(SKIP, (webhook_id, delivery_id))


def make_due(conn: Connection[Any], webhook_id: UUID) -> None:
    """Have all that waits tried at once, as if for the first time."""
    conn.execute(DUE_NOW, (webhook_id,))


def remove(conn: Connection[Any], webhook_id: UUID) -> None:
    """Forget all deliveries of a webhook, and how far it was."""
    conn.execute(REMOVE, (webhook_id,))
    conn.execute(FORGET, (SubscriptionKind.WEBHOOK, str(webhook_id)))


def waiting(conn: Connection[Any], webhook_id: UUID, after: int = 0) -> list[WaitingDelivery]:
    """Return what waits for a webhook, behind a delivery."""
    with conn.cursor(row_factory=class_row(WaitingDelivery)) as cursor:
        return cursor.execute(WAITING, (webhook_id, after), prepare=True).fetchall()


def waits(cursor: Cursor[TupleRow], asked: Sequence[tuple[UUID, int]]) -> list[bool | None]:
    """Return whether each delivery of a webhook waits; None where there is no such one."""
    columns = [list(each) for each in zip(*asked, strict=True)]
    return [found for (found,) in cursor.execute(WAITS, columns, prepare=True).fetchall()]


def settle(conn: Connection[Any], attempts: Iterable[Attempt]) -> None:
    """Write down what came of attempts, in one statement."""
    columns = [list(each) for each in zip(*attempts, strict=True)]
    if columns:
        conn.execute(SETTLE, columns, prepare=True)


def prune(conn: Connection[Any], before: datetime, most: int) -> int:
    """Delete what was settled before a time, and of each webhook all but the newest so many.

    Return how many deliveries are gone.
    """
    return conn.execute(PRUNE, (before, most)).rowcount


async def backlogs(conn: AsyncConnection[TupleRow]) -> dict[UUID, DeliveryBacklog]:
    """Return what waits, by webhook; nothing for those for which nothing does."""
    return {each.webhook_id: each for each in await fetch_as(conn, DeliveryBacklog, ALL_BACKLOGS)}


async def backlog(conn: AsyncConnection[TupleRow], webhook_id: UUID) -> DeliveryBacklog | None:
    """Return what waits for a webhook; None where nothing does."""
    found = await fetch_as(conn, DeliveryBacklog, BACKLOG, (webhook_id,))
    return found[0] if found else None


async def deliveries(
    conn: AsyncConnection[TupleRow], webhook_id: UUID, status: str | None, before: int, limit: int
) -> list[Delivery]:
    """Return deliveries of a webhook, the newest first."""
    given = {"webhook": webhook_id, "status": status, "before": before, "limit": limit}
    return await fetch_as(conn, Delivery, LIST, given)

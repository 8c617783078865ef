"""How publishing and consuming stand, for operators: read from the tables of both."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.rows import class_row

from engine.event_store import EVENTS
from infra.http.shapes import rfc3339
from projections.integration_events import TELEMETRY, TOPICS, dead_letters

# A consumer's lag is known here where it follows the log; with Kafka its metric tells.
RELAY = f"""
WITH heads AS (
    SELECT 'events' AS source, coalesce(max(notification_id), 0) AS head FROM {EVENTS}
    UNION ALL SELECT 'telemetry', coalesce(max(seq), 0) FROM public.backlot_telemetry)
SELECT h.source, r.position, h.head, r.updated_at
FROM heads h LEFT JOIN backlot_checkpoints r ON r.kind = 'relay' AND r.source = h.source
ORDER BY h.source
""".encode()
CONSUMERS = b"""
SELECT subscription AS consumer, source, partition, position, updated_at,
       (SELECT count(*) FROM backlot_dead_letters d
        WHERE d.kind = c.kind AND d.subscription = c.subscription) AS dead
FROM backlot_checkpoints c WHERE kind = 'consumer' ORDER BY subscription, source, partition
"""
UNDELIVERED = b"""
SELECT source, position, topic, error AS reason, message_id::text, key, rejected_at AS noticed_at
FROM backlot_dead_letters WHERE kind = 'relay' ORDER BY source, position LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class RelayProgress:
    """How far a source is published; no position where no relay has ever run."""

    source: str
    position: int | None
    head: int
    updated_at: datetime | None

    @property
    def lag(self) -> int:
        return self.head - (self.position or 0)

    def as_dict(self) -> dict[str, Any]:
        updated = None if self.updated_at is None else rfc3339(self.updated_at)
        return {
            "source": self.source,
            "position": self.position,
            "head": self.head,
            "lagEvents": self.lag,
            "updatedAt": updated,
        }


@dataclass(frozen=True, slots=True)
class ConsumerPlace:
    """How far a consumer is in a partition of a source, and how many of its messages are dead."""

    consumer: str
    source: str
    partition: int
    position: int
    updated_at: datetime
    dead: int

    def as_dict(self) -> dict[str, Any]:
        told = {**asdict(self), "updatedAt": rfc3339(self.updated_at)}
        del told["updated_at"]
        return told


@dataclass(frozen=True, slots=True)
class SetAside:
    """Something recorded that the relay could not publish."""

    source: str
    position: int
    topic: str
    reason: str
    message_id: str | None
    key: str | None
    noticed_at: datetime

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "position": self.position,
            "topic": self.topic,
            "reason": self.reason,
            "messageId": self.message_id,
            "key": self.key,
            "noticedAt": rfc3339(self.noticed_at),
        }


def topics() -> list[dict[str, str]]:
    """Every published topic, what it is made from and where its dead letters go."""
    return [
        {
            "topic": topic,
            "source": "telemetry" if topic in TELEMETRY else "events",
            "deadLetters": dead_letters(topic),
        }
        for topic in TOPICS
    ]


def relayed(conn: Connection[Any]) -> list[RelayProgress]:
    """How far each source is published."""
    with conn.cursor(row_factory=class_row(RelayProgress)) as cursor:
        return cursor.execute(RELAY).fetchall()


def consumer_places(conn: Connection[Any]) -> list[ConsumerPlace]:
    """How far each consumer is."""
    with conn.cursor(row_factory=class_row(ConsumerPlace)) as cursor:
        return cursor.execute(CONSUMERS).fetchall()


def undelivered(conn: Connection[Any], limit: int) -> list[SetAside]:
    """What could not be published."""
    with conn.cursor(row_factory=class_row(SetAside)) as cursor:
        return cursor.execute(UNDELIVERED, (limit,)).fetchall()

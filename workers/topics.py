"""How publishing and consuming stand, for operators: read from the tables of both."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, TypeVar

from psycopg import Connection
from psycopg.rows import class_row
from pydantic.alias_generators import to_camel

from engine.event_store import EVENTS
from infra.http.shapes import rfc3339
from projections.integration_events import TELEMETRY, TOPICS, dead_letters

R = TypeVar("R")

# A consumer's lag is known here where it follows the log; with Kafka its metric tells.
RELAY = f"""
WITH heads AS (
    SELECT 'events' AS source, coalesce(max(notification_id), 0) AS head FROM {EVENTS}
    UNION ALL SELECT 'telemetry', coalesce(max(seq), 0) FROM public.backlot_telemetry)
SELECT h.source, r.position, h.head, h.head - coalesce(r.position, 0) AS lag_events, r.updated_at
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


@dataclass(frozen=True)
class ReportRow:
    """A row of a report."""

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON has it: names in camelCase, times as RFC 3339."""
        return {
            to_camel(name): rfc3339(value) if isinstance(value, datetime) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class RelayProgress(ReportRow):
    """How far a source is published; no position where no relay has ever run."""

    source: str
    position: int | None
    head: int
    lag_events: int
    updated_at: datetime | None


@dataclass(frozen=True)
class ConsumerPlace(ReportRow):
    """How far a consumer is in a partition of a source, and how many of its messages are dead."""

    consumer: str
    source: str
    partition: int
    position: int
    dead: int
    updated_at: datetime


@dataclass(frozen=True)
class UndeliveredMessage(ReportRow):
    """Something recorded that the relay could not publish."""

    source: str
    position: int
    topic: str
    reason: str
    message_id: str | None
    key: str | None
    noticed_at: datetime


def topics() -> list[dict[str, str]]:
    """Return every published topic, what it is made from and where its dead letters go."""
    return [
        {
            "topic": topic,
            "source": "telemetry" if topic in TELEMETRY else "events",
            "deadLetters": dead_letters(topic),
        }
        for topic in TOPICS
    ]


def relayed(conn: Connection[Any]) -> list[RelayProgress]:
    """Return how far each source is published."""
    return _rows(conn, RelayProgress, RELAY)


def consumer_places(conn: Connection[Any]) -> list[ConsumerPlace]:
    """Return how far each consumer is."""
    return _rows(conn, ConsumerPlace, CONSUMERS)


def undelivered(conn: Connection[Any], limit: int) -> list[UndeliveredMessage]:
    """Return what could not be published."""
    return _rows(conn, UndeliveredMessage, UNDELIVERED, limit)


def _rows(conn: Connection[Any], kind: type[R], query: bytes, *given: int) -> list[R]:
    with conn.cursor(row_factory=class_row(kind)) as cursor:
        return cursor.execute(query, given).fetchall()

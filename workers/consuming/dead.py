"""Dead messages as operators see them, have them handled after all, or give them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row

from infra.errors import fault_of
from infra.utc import rfc3339

COLUMNS = (
    "id, consumer, topic, source, partition, position, message_id, key, value, headers, reason, "
    "attempts, status, died_at"
)
PLACE = ("id", "consumer", "topic", "source", "partition", "position", "messageId")
LIST = f"""
SELECT {COLUMNS} FROM backlot_dead_messages
WHERE id > %(after)s AND consumer = coalesce(%(consumer)s, consumer)
  AND topic = coalesce(%(topic)s, topic)
ORDER BY id LIMIT %(limit)s
""".encode()
SHOW = f"SELECT {COLUMNS} FROM backlot_dead_messages WHERE id = %s".encode()
NAMES = b"""
SELECT array_agg(consumer), array_agg(topic) FILTER (WHERE topic IS NOT NULL)
FROM (SELECT consumer, topic FROM backlot_dead_messages
      UNION SELECT consumer, NULL FROM backlot_consumer_places) AS found
"""
OF_TOPIC = b"""
SELECT id, reason FROM backlot_dead_messages WHERE consumer = %s AND topic = %s ORDER BY id
"""
CHOSEN = """
WHERE consumer = coalesce(%(consumer)s, consumer) AND topic = coalesce(%(topic)s, topic)
  AND id = ANY (coalesce(%(ids)s::bigint[], ARRAY[id]))
"""
REDRIVE = f"UPDATE backlot_dead_messages SET status = 'redrive' {CHOSEN}".encode()
DISCARD = f"DELETE FROM backlot_dead_messages {CHOSEN} RETURNING {COLUMNS}".encode()


@dataclass(frozen=True, slots=True)
class Buried:
    """A dead message; `status` is `dead`, or `redrive` from when that was asked until it ends.

    `source`, `partition` and `position` say where it lies: in the log, the telemetry or a topic.
    """

    id: int
    consumer: str
    topic: str
    source: str
    partition: int
    position: int
    message_id: UUID | None
    key: str | None
    value: bytes | None
    headers: Mapping[str, str]
    reason: str
    attempts: int
    status: str
    died_at: datetime

    def place(self) -> dict[str, Any]:
        """Which message it was, and where it lies: what is kept of one that was given up."""
        told = self.as_dict()
        return {name: told[name] for name in PLACE}

    def as_dict(self) -> dict[str, Any]:
        """For JSON; a value that is no UTF-8 has its other bytes escaped."""
        value = None if self.value is None else self.value.decode(errors="backslashreplace")
        return {
            "id": self.id,
            "consumer": self.consumer,
            "topic": self.topic,
            "source": self.source,
            "partition": self.partition,
            "position": self.position,
            "messageId": None if self.message_id is None else str(self.message_id),
            "key": self.key,
            "reason": self.reason,
            "attempts": self.attempts,
            "status": self.status,
            "diedAt": rfc3339(self.died_at),
            "headers": dict(self.headers),
            "value": value,
        }


def consumers_and_topics(conn: Connection[Any]) -> tuple[frozenset[str], frozenset[str]]:
    """The consumers that have ever run, and the topics of their dead messages."""
    ((consumers, topics),) = conn.execute(NAMES).fetchall()
    return frozenset(consumers or ()), frozenset(topics or ())


def buried(
    conn: Connection[Any],
    *,
    consumer: str | None = None,
    topic: str | None = None,
    after: int = 0,
    limit: int = 100,
) -> list[Buried]:
    """Dead messages, the oldest first, behind an id."""
    values = {"consumer": consumer, "topic": topic, "after": after, "limit": limit}
    with conn.cursor(row_factory=class_row(Buried)) as cursor:
        return cursor.execute(LIST, values).fetchall()


def show(conn: Connection[Any], id_: int) -> Buried | None:
    """One of them; None when there is no such."""
    with conn.cursor(row_factory=class_row(Buried)) as cursor:
        return cursor.execute(SHOW, (id_,)).fetchone()


def alike(conn: Connection[Any], id_: int) -> list[int]:
    """The dead messages of the consumer, topic and error of one, which is among them.

    None when there is no such message.
    """
    like = show(conn, id_)
    if like is None:
        return []
    found = conn.execute(OF_TOPIC, (like.consumer, like.topic)).fetchall()
    return [id_ for id_, reason in found if fault_of(reason) == fault_of(like.reason)]


def redrive(
    conn: Connection[Any],
    *,
    ids: Sequence[int] | None = None,
    consumer: str | None = None,
    topic: str | None = None,
) -> int:
    """Have them given to their consumers again, within a second or two; returns how many.

    What is handled then is no longer listed; what is not, is dead again.
    """
    return conn.execute(REDRIVE, _chosen(ids, consumer, topic)).rowcount


def discard(
    conn: Connection[Any],
    *,
    ids: Sequence[int] | None = None,
    consumer: str | None = None,
    topic: str | None = None,
) -> list[Buried]:
    """Give them up for good; returns what they were, by their ids.

    In Kafka the copy in `<topic>.dlq` stays until the retention of that topic.
    """
    with conn.cursor(row_factory=class_row(Buried)) as cursor:
        found = cursor.execute(DISCARD, _chosen(ids, consumer, topic)).fetchall()
    return sorted(found, key=lambda each: each.id)


def _chosen(ids: Sequence[int] | None, consumer: str | None, topic: str | None) -> dict[str, Any]:
    return {"ids": None if ids is None else list(ids), "consumer": consumer, "topic": topic}

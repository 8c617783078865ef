"""Dead letters: what subscriptions could not apply, handle or publish, until an operator decides.

One table holds the parked events of projections, the dead messages of consumers and the messages
that the relay could not publish: with what went wrong, how often it was tried, and who decided what
about it, when and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import Connection, Cursor
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from domain.model import FORGOTTEN
from engine.checkpoints import SubscriptionKind
from engine.event_store import EVENTS
from engine.personal_data import Pace, PersonalTable, Rewritten, given
from infra.errors import fault_of
from infra.http.shapes import rfc3339

COLUMNS = (
    "id, kind, subscription, source, partition, position, topic, message_id, key, value, headers, "
    "error, attempts, status, rejected_at, decided_by, decided_at, reason"
)
REJECT = b"""
INSERT INTO backlot_dead_letters AS d
    (kind, subscription, source, partition, position, topic, message_id, key, value, headers,
     error, status)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 'dead')
ON CONFLICT (kind, subscription, source, partition, position) DO UPDATE
SET error = excluded.error, attempts = d.attempts + 1, status = 'dead', rejected_at = now(),
    message_id = coalesce(excluded.message_id, d.message_id)
"""
LIST = f"""
SELECT {COLUMNS} FROM backlot_dead_letters
WHERE kind = %(kind)s AND id > %(after)s
  AND subscription = coalesce(%(subscription)s, subscription)
  AND (%(topic)s::text IS NULL OR topic = %(topic)s)
ORDER BY id LIMIT %(limit)s
""".encode()
# What consumers could not handle, and what the relay could not publish.
OF_MESSAGES = f"""
SELECT {COLUMNS} FROM backlot_dead_letters
WHERE kind IN ('consumer', 'relay') AND id > %(after)s
  AND subscription = coalesce(%(subscription)s, subscription)
ORDER BY id LIMIT %(limit)s
""".encode()
SHOW = f"SELECT {COLUMNS} FROM backlot_dead_letters WHERE kind = %s AND id = %s".encode()
ALIKE = b"""
SELECT id, error FROM backlot_dead_letters
WHERE kind = %s AND subscription = %s AND topic = %s ORDER BY id
"""
CHOSEN = """
WHERE kind = %(kind)s AND subscription = coalesce(%(subscription)s, subscription)
  AND topic = coalesce(%(topic)s, topic) AND id = ANY (coalesce(%(ids)s::bigint[], ARRAY[id]))
"""
REDRIVE = f"""
UPDATE backlot_dead_letters
SET status = 'redrive', decided_by = %(actor)s, decided_at = now() {CHOSEN}
""".encode()
GIVE_UP = f"DELETE FROM backlot_dead_letters {CHOSEN} RETURNING {COLUMNS}".encode()
WANTED = f"""
SELECT {COLUMNS} FROM backlot_dead_letters
WHERE kind = %s AND subscription = %s AND status = 'redrive' ORDER BY id LIMIT %s
""".encode()
COUNT = b"""
SELECT count(*) FROM backlot_dead_letters
WHERE kind = %s AND subscription = %s AND status = ANY (%s)
"""
REVIVED = b"""
DELETE FROM backlot_dead_letters
WHERE kind = %s AND subscription = %s AND source = %s AND partition = %s AND position = %s
"""
NAMES = b"""
SELECT array_agg(subscription), array_agg(topic) FILTER (WHERE topic IS NOT NULL)
FROM (SELECT subscription, topic FROM backlot_dead_letters WHERE kind = %(kind)s
      UNION SELECT subscription, NULL FROM backlot_checkpoints WHERE kind = %(kind)s) AS found
"""

# What operators decided about the event in the live copy holds for the copies built beside it.
PARK = b"""
INSERT INTO backlot_dead_letters AS d
    (kind, subscription, position, error, status, decided_by, decided_at, reason)
SELECT c.kind, c.subscription, %(position)s, %(error)s, coalesce(live.status, 'parked'),
       live.decided_by, live.decided_at, live.reason
FROM backlot_checkpoints c LEFT JOIN backlot_dead_letters live
     ON live.kind = c.kind AND live.subscription = c.projection
        AND live.subscription <> c.subscription AND live.position = %(position)s
WHERE c.kind = 'projection' AND c.subscription = %(schema)s
ON CONFLICT (kind, subscription, source, partition, position) DO UPDATE
SET error = excluded.error, attempts = d.attempts + 1, rejected_at = now(),
    status = excluded.status
"""
SAY_WHY = b"""
UPDATE backlot_dead_letters SET decided_by = %s, decided_at = now(), reason = %s
WHERE kind = 'projection' AND subscription = %s AND position = %s
"""
DECIDED = b"""
SELECT FROM backlot_dead_letters
WHERE kind = 'projection' AND subscription = %s AND position = %s AND decided_by IS NOT NULL
"""
FIND_ORDER = b"""
SELECT given_by, reason FROM projections.park_orders
WHERE projection = %s AND topic = %s AND fault = %s AND until >= %s
"""

# What was set aside is accounted for as long as its copy stands, so an event's row stays.
EXPIRE = b"""
DELETE FROM backlot_dead_letters WHERE id IN (
    SELECT id FROM backlot_dead_letters
    WHERE kind IN ('consumer', 'relay') AND status = 'dead' AND rejected_at < %(before)s
    ORDER BY id LIMIT %(batch)s FOR UPDATE SKIP LOCKED)
RETURNING subscription
"""
OLD_ERRORS = b"""
SELECT id, error FROM backlot_dead_letters
WHERE kind = 'projection' AND rejected_at < %s
"""
SHORTEN = b"UPDATE backlot_dead_letters SET error = %s WHERE id = %s AND error = %s"
BATCH_LETTERS = 1_000

SHOWN: LiteralString = (
    "id, kind, subscription, source, partition, position, topic, message_id, key, "
    "encode(value, 'escape') AS value, error, rejected_at"
)
NAMED: LiteralString = (
    "position(%(needle)s::bytea IN value) > 0 OR decided_by = %(subject)s "
    "OR position(convert_from(%(needle)s::bytea, 'UTF8') IN error) > 0 "
    "OR key = %(subject)s OR position(convert_from(%(needle)s::bytea, 'UTF8') IN headers::text) > 0"
)
# A message may hold a text without its author, whose event says who that is; where a message comes
# from Kafka, a header says which event it tells of.
OF_PERSON = f"""
OR EXISTS (
    SELECT FROM {EVENTS} AS e
    WHERE e.notification_id = CASE WHEN kind = 'projection' OR source = 'events' THEN position
                                   WHEN headers->>'position' ~ '^[0-9]{{1,18}}$'
                                   THEN (headers->>'position')::bigint END
      AND position(%(needle)s::bytea IN e.state) > 0)
"""
# A database of the analytics alone has no log, and before its first start no letters.
HAS_TABLES = f"""
SELECT to_regclass('backlot_dead_letters') IS NOT NULL, to_regclass('{EVENTS}') IS NOT NULL
""".encode()
# Of a parked event the row stays, with the kind of its error; who has decided was nobody.
FORGET_PARKED = f"""
UPDATE backlot_dead_letters
SET error = split_part(error, ':', 1),
    decided_by = CASE WHEN decided_by = %(subject)s THEN '{FORGOTTEN}' ELSE decided_by END,
    reason = CASE WHEN decided_by = %(subject)s THEN NULL ELSE reason END
WHERE kind = 'projection' AND error <> split_part(error, ':', 1) AND ({{named}})
   OR decided_by = %(subject)s
"""
FORGET_MESSAGES = """
DELETE FROM backlot_dead_letters
WHERE id IN (SELECT id FROM backlot_dead_letters WHERE kind <> 'projection' AND ({named}))
"""


def forget_letters(conn: Connection[Any], subject: str, pace: Pace) -> int:
    """Leave nothing of a person in what was rejected, and return how many letters had something.

    Messages go: what they tell is forgotten. Raise psycopg.Error.
    """
    ((has_letters, has_log),) = conn.execute(HAS_TABLES).fetchall()
    if not has_letters:
        return 0
    named = NAMED + OF_PERSON * has_log
    with pace(), conn.transaction():
        return sum(
            conn.execute(statement.format(named=named).encode(), given(subject)).rowcount
            for statement in (FORGET_MESSAGES, FORGET_PARKED)
        )


KEPT = "so many days where it is a message; of a parked event, so long with the whole error"
PERSONAL = tuple(
    PersonalTable(
        name=f"{prefix}dead_letters",
        holds="messages that could not be handled, events that could not be applied; who decided",
        kept=KEPT,
        setting="DEAD_LETTER_RETENTION_DAYS",
        table="public.backlot_dead_letters",
        where=NAMED,
        shown=SHOWN,
        analytics=analytics,
        forget=Rewritten(
            forget_letters, "messages are deleted, and of parked events all but the kind of error"
        ),
    )
    for prefix, analytics in (("", False), ("analytics.", True))
)


class LetterStatus(StrEnum):
    """Whether a letter waits for a decision, is to be tried again, or was left out for good.

    An event that waits is `parked`, a message that waits is `dead`.
    """

    PARKED = "parked"
    DEAD = "dead"
    REDRIVE = "redrive"
    DISCARDED = "discarded"


MESSAGES = (LetterStatus.DEAD, LetterStatus.REDRIVE)


@dataclass(frozen=True, slots=True)
class RejectedMessage:
    """A message that could not be handled or published, and why; where it lies in its source."""

    source: str
    partition: int
    position: int
    topic: str
    error: str
    message_id: UUID | None = None
    key: str | None = None
    value: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A row of the table. `source`, `partition` and `position` say where the message lies."""

    id: int
    kind: str
    subscription: str
    source: str
    partition: int
    position: int
    topic: str | None
    message_id: UUID | None
    key: str | None
    value: bytes | None
    headers: Mapping[str, str]
    error: str
    attempts: int
    status: str
    rejected_at: datetime
    decided_by: str | None
    decided_at: datetime | None
    reason: str | None

    def place(self) -> dict[str, Any]:
        """Return which message it was, and where it lies: what is recorded when it is given up."""
        return {
            "id": self.id,
            "consumer": self.subscription,
            "topic": self.topic,
            "source": self.source,
            "partition": self.partition,
            "position": self.position,
            "messageId": None if self.message_id is None else str(self.message_id),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON; a value that is no UTF-8 has its other bytes escaped."""
        value = None if self.value is None else self.value.decode(errors="backslashreplace")
        return {
            **self.place(),
            "key": self.key,
            "reason": self.error,
            "attempts": self.attempts,
            "status": self.status,
            "diedAt": rfc3339(self.rejected_at),
            "headers": dict(self.headers),
            "value": value,
        }


class ParkingOrder(NamedTuple):
    """An order to park whatever fails as one event did: who gave it, and why."""

    given_by: str
    reason: str


def reject(
    conn: Connection[Any],
    kind: SubscriptionKind,
    subscription: str,
    rejected: Iterable[RejectedMessage],
) -> None:
    """Store messages that could not be handled or published; one that comes again counts up."""
    for each in rejected:
        place = (kind, subscription, each.source, each.partition, each.position, each.topic)
        key = None if each.key is None else _storable(each.key)
        headers = {_storable(name): _storable(text) for name, text in each.headers.items()}
        held = (each.message_id, key, each.value, Jsonb(headers), _storable(each.error))
        conn.execute(REJECT, (*place, *held))


def _storable(text: str) -> str:
    """Return the text without what PostgreSQL can't store: a message may come from anybody."""
    return text.replace("\x00", "\\x00")


def letters(
    conn: Connection[Any],
    kind: SubscriptionKind,
    *,
    subscription: str | None = None,
    topic: str | None = None,
    after: int = 0,
    limit: int = 100,
) -> list[DeadLetter]:
    """Return dead letters, the oldest first, behind an id."""
    values = _chosen(kind, None, subscription, topic) | {"after": after, "limit": limit}
    with conn.cursor(row_factory=class_row(DeadLetter)) as cursor:
        return cursor.execute(LIST, values).fetchall()


def messages(
    conn: Connection[Any], *, subscription: str | None = None, after: int = 0, limit: int = 100
) -> list[DeadLetter]:
    """Return what consumers could not handle and the relay could not publish, as `letters` does."""
    values = {"subscription": subscription, "after": after, "limit": limit}
    with conn.cursor(row_factory=class_row(DeadLetter)) as cursor:
        return cursor.execute(OF_MESSAGES, values).fetchall()


def show(conn: Connection[Any], kind: SubscriptionKind, id_: int) -> DeadLetter | None:
    """Return one dead letter; None when there is no such."""
    with conn.cursor(row_factory=class_row(DeadLetter)) as cursor:
        return cursor.execute(SHOW, (kind, id_)).fetchone()


def alike(conn: Connection[Any], kind: SubscriptionKind, id_: int) -> list[int]:
    """Return the ids of the letters of the subscription, topic and error of one, itself included.

    Empty when there is no such letter.
    """
    like = show(conn, kind, id_)
    if like is None:
        return []
    found = conn.execute(ALIKE, (kind, like.subscription, like.topic)).fetchall()
    return [id_ for id_, error in found if fault_of(error) == fault_of(like.error)]


def redrive(
    conn: Connection[Any],
    kind: SubscriptionKind,
    *,
    actor: str,
    ids: Sequence[int] | None = None,
    subscription: str | None = None,
    topic: str | None = None,
) -> int:
    """Have messages given to their consumers again, within a second or two; return how many.

    What is handled then is no longer listed; what is not, is dead again.
    """
    values = _chosen(kind, ids, subscription, topic) | {"actor": actor}
    return conn.execute(REDRIVE, values).rowcount


def give_up(
    conn: Connection[Any],
    kind: SubscriptionKind,
    *,
    ids: Sequence[int] | None = None,
    subscription: str | None = None,
    topic: str | None = None,
) -> list[DeadLetter]:
    """Delete messages for good; return what they were, by their ids.

    In Kafka the copy in `<topic>.dlq` stays until the retention of that topic.
    """
    with conn.cursor(row_factory=class_row(DeadLetter)) as cursor:
        found = cursor.execute(GIVE_UP, _chosen(kind, ids, subscription, topic)).fetchall()
    return sorted(found, key=lambda each: each.id)


def _chosen(
    kind: SubscriptionKind, ids: Sequence[int] | None, subscription: str | None, topic: str | None
) -> dict[str, Any]:
    chosen = None if ids is None else list(ids)
    return {"kind": kind, "ids": chosen, "subscription": subscription, "topic": topic}


def wanted(
    conn: Connection[Any], kind: SubscriptionKind, subscription: str, limit: int
) -> list[DeadLetter]:
    """Return the messages that an operator wants to have handled after all, the oldest first."""
    with conn.cursor(row_factory=class_row(DeadLetter)) as cursor:
        return cursor.execute(WANTED, (kind, subscription, limit)).fetchall()


def revive(
    conn: Connection[Any],
    kind: SubscriptionKind,
    subscription: str,
    source: str,
    partition: int,
    position: int,
) -> None:
    """Forget a message that was dead and has been handled."""
    conn.execute(REVIVED, (kind, subscription, source, partition, position))


def count(
    conn: Connection[Any],
    kind: SubscriptionKind,
    subscription: str,
    statuses: Iterable[LetterStatus],
) -> int:
    """Return how many letters of a subscription have one of these statuses."""
    ((found,),) = conn.execute(COUNT, (kind, subscription, list(statuses))).fetchall()
    return int(found)


def names(conn: Connection[Any], kind: SubscriptionKind) -> tuple[frozenset[str], frozenset[str]]:
    """Return the subscriptions that have ever run, and the topics of their dead letters."""
    ((subscriptions, topics),) = conn.execute(NAMES, {"kind": kind}).fetchall()
    return frozenset(subscriptions or ()), frozenset(topics or ())


def park(cursor: Cursor[Any], schema: str, position: int, error: str) -> None:
    """Set an event aside that a copy could not apply, with what went wrong."""
    cursor.execute(PARK, {"position": position, "error": error, "schema": schema})


def say_why(cursor: Cursor[Any], schema: str, position: int, actor: str, reason: str) -> None:
    """Record who wanted an event to be set aside, and why."""
    cursor.execute(SAY_WHY, (actor, reason, schema, position))


def is_decided(cursor: Cursor[Any], name: str, position: int) -> bool:
    """Return whether an operator has set the event aside in the copy of that name."""
    return cursor.execute(DECIDED, (name, position)).rowcount == 1


def parking_order(
    cursor: Cursor[Any], projection: str, topic: str, position: int, error: str
) -> ParkingOrder | None:
    """Return the order to park events of this topic that fail with this error, if there is one."""
    row = cursor.execute(FIND_ORDER, (projection, topic, fault_of(error), position)).fetchone()
    return None if row is None else ParkingOrder(*row)


def expire(conn: Connection[Any], before: datetime) -> Counter[str]:
    """Give up messages that are dead since then; return how many, by their subscriptions.

    What an operator wants to have handled after all stays. `conn` is in autocommit mode.
    """
    expired: Counter[str] = Counter()
    went = BATCH_LETTERS
    while went == BATCH_LETTERS:
        rows = conn.execute(EXPIRE, {"before": before, "batch": BATCH_LETTERS}).fetchall()
        expired.update(subscription for (subscription,) in rows)
        went = len(rows)
    return expired


def shorten_errors(conn: Connection[Any], before: datetime) -> int:
    """Leave of the errors of events set aside before that which fault it was; return how many.

    The rest may quote what somebody wrote.
    """
    old = conn.execute(OLD_ERRORS, (before,)).fetchall()
    long = [(fault_of(error), id_, error) for id_, error in old if fault_of(error) != error]
    for values in long:
        conn.execute(SHORTEN, values)
    return len(long)

"""What operators see of the projections, read from the database: true for every process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow, class_row

from engine.event_store import EVENTS
from engine.log import READ_ONE, Stored, recorded_at
from infra.advisory_locks import LockClass, copy_lock

ACTIVE = b"""
SELECT objid::bigint FROM pg_locks
WHERE locktype = 'advisory' AND classid = %s AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
COPIES = f"""
SELECT c.subscription AS schema, c.projection AS name, c.version, c.position, c.status, c.error,
       c.error_position, c.updated_at,
       (SELECT coalesce(max(notification_id), 0) FROM {EVENTS}) AS head,
       (SELECT count(*) FROM backlot_dead_letters d
        WHERE d.kind = c.kind AND d.subscription = c.subscription AND d.status = 'parked'
       ) AS parked,
       ARRAY({ACTIVE.decode()}) AS locks
FROM backlot_checkpoints c WHERE c.kind = 'projection'
""".encode()
ONE_COPY = COPIES + b"AND c.subscription = %s"
LOOK_SECONDS = 1.0
TELEMETRY = "telemetry"
HEADS = f"""
SELECT 'events', coalesce(max(notification_id), 0) FROM {EVENTS}
UNION ALL SELECT '{TELEMETRY}', coalesce(max(seq), 0) FROM public.backlot_telemetry
""".encode()
FOLLOWERS = b"""
SELECT CASE kind WHEN 'webhook' THEN 'webhook ' ELSE '' END || subscription AS name,
       replace(source, 'kafka:', ''), min(position), min(updated_at)
FROM backlot_checkpoints WHERE kind IN ('consumer', 'relay', 'webhook')
GROUP BY kind, subscription, replace(source, 'kafka:', '') ORDER BY 1, 2
"""
HAPPENED = b"""
SELECT happened_at FROM public.backlot_telemetry WHERE seq > %s ORDER BY seq LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of a projection as the database knows it; the live one's schema is its name.

    `locks` are the keys of all locks on copies that any process holds.
    """

    schema: str
    name: str
    version: int
    position: int
    status: str
    error: str | None
    error_position: int | None
    updated_at: datetime
    head: int
    parked: int
    locks: Sequence[int] = ()

    @property
    def active(self) -> bool:
        """Whether any process runs it."""
        return copy_lock(self.schema).key in self.locks

    @property
    def lag_events(self) -> int:
        """How many positions of the log it has still to take in."""
        return self.head - self.position


class Rates:
    """How fast copies move: positions per second between two looks of this process.

    The looks lie at least a second apart; before the second one, nothing is known.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looks: dict[str, tuple[float, int]] = {}
        self._rates: dict[str, float] = {}

    def of(self, copy: Copy) -> float | None:
        """Return the copy's rate, this being a look at it; None at the first one."""
        now = self._clock()
        at, position = self._looks.setdefault(copy.schema, (now, copy.position))
        if now - at >= LOOK_SECONDS:
            # Another copy that took the name may be anywhere; live ones don't go back.
            self._rates[copy.schema] = max(0.0, (copy.position - position) / (now - at))
            self._looks[copy.schema] = now, copy.position
        return self._rates.get(copy.schema)


def look_at(conn: Connection[TupleRow], schema: str) -> Copy | None:
    """Return one copy as it stands now; None where there is no such copy."""
    with conn.cursor(row_factory=class_row(Copy)) as cursor:
        return cursor.execute(ONE_COPY, (LockClass.PROJECTION, schema)).fetchone()


async def overview(conn: AsyncConnection[TupleRow]) -> list[Copy]:
    """Return all copies of all projections, by schema."""
    async with conn.cursor(row_factory=class_row(Copy)) as cursor:
        await cursor.execute(COPIES + b"ORDER BY schema", (LockClass.PROJECTION,))
        return await cursor.fetchall()


class AtPosition(Protocol):
    """Whatever follows the log: how far it is, of how much, and since when."""

    @property
    def position(self) -> int: ...

    @property
    def head(self) -> int: ...

    @property
    def updated_at(self) -> datetime: ...


async def lag_seconds(conn: AsyncConnection[TupleRow], follower: AtPosition) -> float:
    """Return the age of the oldest event that was not applied.

    Where that event can't be read, since when the follower stands.
    """
    if follower.position >= follower.head:
        return 0.0
    row = await (await conn.execute(READ_ONE, (follower.position + 1,))).fetchone()
    since = recorded_at(Stored(*row)) if row else None
    return max(0.0, (datetime.now(UTC) - (since or follower.updated_at)).total_seconds())


@dataclass(frozen=True, slots=True)
class SubscriptionProgress:
    """How far a subscription is in the log or in the telemetry (`source`), whose end is `head`."""

    name: str
    source: str
    position: int
    updated_at: datetime
    head: int

    @property
    def lag_events(self) -> int:
        """How much it has still to take in."""
        return max(0, self.head - self.position)


async def heads(conn: AsyncConnection[TupleRow]) -> dict[str, int]:
    """Return the ends of the log and of the telemetry; `conn` leads to the log."""
    return dict(await (await conn.execute(HEADS)).fetchall())


async def followers(
    conn: AsyncConnection[TupleRow], ends: Mapping[str, int]
) -> list[SubscriptionProgress]:
    """Return the consumers, the relay and the webhooks of a database, by name.

    With Kafka, by the positions that consumers keep beside their offsets; one that has none is
    left out: how far behind it is, only its own metric tells.
    """
    rows = await (await conn.execute(FOLLOWERS)).fetchall()
    return [
        SubscriptionProgress(name, source, position, updated_at, ends[source])
        for name, source, position, updated_at in rows
        if source in ends
    ]


async def follower_lag(conn: AsyncConnection[TupleRow], follower: SubscriptionProgress) -> float:
    """Return the age in seconds of the oldest that it has not taken in; `conn` leads to the log."""
    if follower.source != TELEMETRY:
        return await lag_seconds(conn, follower)
    if follower.lag_events == 0:
        return 0.0
    row = await (await conn.execute(HAPPENED, (follower.position,))).fetchone()
    return max(0.0, (datetime.now(UTC) - row[0]).total_seconds()) if row else 0.0

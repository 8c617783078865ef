"""Reservations: what a user may have begun at a time, and within a day, across all processes.

A reservation is made before its stream begins, under a lock of its owner: so no race makes room for
one more. It counts until the log has an end of the stream, and for a day after it was made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from eventsourcing.persistence import PersistenceError
from psycopg import AsyncConnection, Connection

from domain.errors import DomainError
from engine.event_store import EVENTS
from engine.personal_data import Deleted, PersonalTable
from infra.advisory_locks import reservation_lock
from infra.postgres.connection import SHORT_WORK, Limits, make_pool

DAY = timedelta(days=1)
# A command is decided long before; what has no event by then was given up.
GRACE = timedelta(minutes=10)
CONNECTIONS = 2

LOCK = b"SELECT pg_advisory_xact_lock(%s, %s)"
ENDED = f"""
EXISTS (SELECT FROM {EVENTS} e WHERE e.originator_id = r.stream_id AND e.topic = ANY (%(ends)s))
"""
BEGUN = f"EXISTS (SELECT FROM {EVENTS} e WHERE e.originator_id = r.stream_id)"
OVER = f"""
((reserved_at <= %(now)s - %(day)s AND {ENDED})
 OR (reserved_at <= %(now)s - %(grace)s AND NOT {BEGUN}))
"""
PRUNE = f"DELETE FROM public.backlot_reservations r WHERE owner = %(owner)s AND {OVER}".encode()
PRUNE_ALL = f"""
DELETE FROM public.backlot_reservations WHERE stream_id IN (
    SELECT stream_id FROM public.backlot_reservations r WHERE {OVER} LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED)
""".encode()
BATCH_RESERVATIONS = 1_000
TALLY = f"""
SELECT count(*) FILTER (WHERE NOT {ENDED}), coalesce(sum(amount), 0)::bigint, min(reserved_at)
FROM public.backlot_reservations r WHERE owner = %(owner)s
""".encode()
RESERVE = b"""
INSERT INTO public.backlot_reservations (stream_id, owner, amount, reserved_at)
VALUES (%(stream)s, %(owner)s, %(amount)s, %(now)s)
"""
RELEASE = b"DELETE FROM public.backlot_reservations WHERE stream_id = %s"

PERSONAL = (
    PersonalTable(
        name="reservations",
        holds="uploads begun, with the bytes that they may take",
        kept="until a day after the upload has ended, and no upload lasts longer than so many days",
        setting="UPLOAD_LONGEST_DAYS",
        table="public.backlot_reservations",
        columns=("owner",),
        forget=Deleted(),
    ),
)


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many streams one owner may have open, and how much they may reserve within a day."""

    open: int
    per_day: int


class QuotaExceeded(DomainError):
    """The owner has as much as one may; `seconds` say when to ask again."""

    def __init__(self, quota: str, most: int, seconds: int, detail: str) -> None:
        super().__init__(detail)
        self.quota, self.most, self.seconds = quota, most, seconds


class Reservations:
    """The reservations of streams of one kind; to be used from one event loop."""

    def __init__(
        self,
        database_url: str,
        ends: Sequence[str],
        allowance: Allowance,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        limits: Limits = SHORT_WORK,
    ) -> None:
        """`ends` are the topics of the events that end a stream."""
        self._ends = list(ends)
        self._allowance = allowance
        self._clock = clock
        self._pool = make_pool(database_url, max_size=CONNECTIONS, limits=limits)

    async def open(self) -> None:
        """Connect; to be called in the event loop."""
        await self._pool.open()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.close()

    @asynccontextmanager
    async def hold(self, stream_id: UUID, owner: str, amount: int) -> AsyncIterator[None]:
        """Reserve `amount` for a stream that begins in the block.

        A block that fails gives the reservation back; where nobody knows whether the stream
        began, the log decides later. Raise QuotaExceeded, and psycopg.Error.
        """
        async with self._pool.connection() as conn, conn.transaction():
            await conn.execute(LOCK, reservation_lock(owner))
            await self._reserve(conn, stream_id, owner, amount)
        try:
            yield
        except (PersistenceError, asyncio.CancelledError):
            raise
        except Exception:
            await self.release(stream_id)
            raise

    async def release(self, stream_id: UUID) -> None:
        """Give back what was reserved for a stream that did not begin."""
        async with self._pool.connection() as conn:
            await conn.execute(RELEASE, (stream_id,))

    async def _reserve(
        self, conn: AsyncConnection[Any], stream_id: UUID, owner: str, amount: int
    ) -> None:
        now = self._clock()
        given = {
            "owner": owner,
            "now": now,
            "day": DAY,
            "grace": GRACE,
            "ends": self._ends,
            "stream": stream_id,
            "amount": amount,
        }
        await conn.execute(PRUNE, given)
        cursor = await conn.execute(TALLY, given)
        ((opened, reserved, earliest),) = await cursor.fetchall()
        self._check(opened, reserved + amount, (earliest or now) + DAY - now)
        await conn.execute(RESERVE, given)

    def _check(self, opened: int, reserved: int, until_less: timedelta) -> None:
        most = self._allowance
        if opened >= most.open:
            detail = f"You have {opened} uploads under way, which is the most; end some first."
            raise QuotaExceeded("open-uploads", most.open, 60, detail)
        if reserved > most.per_day:
            seconds = min(max(60, int(until_less.total_seconds())), int(DAY.total_seconds()))
            detail = f"Uploads under way and of the last 24 hours may have {most.per_day} bytes."
            raise QuotaExceeded("upload-bytes", most.per_day, seconds, detail)


def forget_reservations(conn: Connection[Any], ends: Sequence[str], now: datetime) -> int:
    """Delete the reservations that count no more, whoever made them; return how many.

    `ends` are the topics of the events that end a stream; `conn` is in autocommit mode.
    """
    given = {
        "now": now,
        "day": DAY,
        "grace": GRACE,
        "ends": list(ends),
        "batch": BATCH_RESERVATIONS,
    }
    forgotten, went = 0, BATCH_RESERVATIONS
    while went == BATCH_RESERVATIONS:
        went = conn.execute(PRUNE_ALL, given).rowcount
        forgotten += went
    return forgotten

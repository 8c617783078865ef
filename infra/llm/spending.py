"""What calls of language models took, hour by hour: for all processes together, and over restarts.

Each process counts in memory and adds to the table every few seconds, and when it ends; one that is
killed loses those few seconds. The metrics count the same from each start on.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from threading import Lock
from typing import Any, NamedTuple

import psycopg
import structlog
from psycopg import AsyncConnection, Connection

from infra.cancellation import to_the_end
from infra.postgres.connection import explained, open_connection

log = structlog.get_logger(__name__)

WRITE_SECONDS = 5.0
KEPT = timedelta(days=400)

ADD = b"""
INSERT INTO public.backlot_llm_calls AS c
    (hour, purpose, model, calls, failed, input_tokens, output_tokens, cost_usd)
SELECT * FROM unnest(%s::timestamptz[], %s::text[], %s::text[], %s::bigint[], %s::bigint[],
                     %s::bigint[], %s::bigint[], %s::float8[])
ORDER BY 1, 2, 3
ON CONFLICT (hour, purpose, model) DO UPDATE
SET calls = c.calls + excluded.calls, failed = c.failed + excluded.failed,
    input_tokens = c.input_tokens + excluded.input_tokens,
    output_tokens = c.output_tokens + excluded.output_tokens,
    cost_usd = CASE WHEN excluded.cost_usd IS NULL THEN c.cost_usd
                    ELSE coalesce(c.cost_usd, 0) + excluded.cost_usd END
"""
FORGET = b"DELETE FROM public.backlot_llm_calls WHERE hour < %s"
SUMS = b"""
SELECT purpose, (hour AT TIME ZONE 'UTC')::date, sum(calls)::bigint, sum(failed)::bigint,
       sum(input_tokens)::bigint, sum(output_tokens)::bigint, sum(cost_usd)
FROM public.backlot_llm_calls WHERE hour >= %s GROUP BY 1, 2 ORDER BY 1, 2
"""


@dataclass(slots=True)
class Spent:
    """What calls took; `cost_usd` is None where no model of them has a known price."""

    calls: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None

    def add(self, other: Spent) -> None:
        """Add what other calls took."""
        self.calls += other.calls
        self.failed += other.failed
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        if other.cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + other.cost_usd


class HourOfCalls(NamedTuple):
    """Calls of one hour, for one purpose, of one model."""

    hour: datetime
    purpose: str
    model: str


class SpendingLedger:
    """What this process has counted and not written down yet; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.counted: dict[HourOfCalls, Spent] = {}

    def add(self, purpose: str, model: str, spent: Spent) -> None:
        """Count what a call took that has just ended."""
        hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        with self._lock:
            self.counted.setdefault(HourOfCalls(hour, purpose, model), Spent()).add(spent)

    def write(self, conn: Connection[Any]) -> int:
        """Add what was counted to the table; return how many rows. Raise psycopg.Error."""
        with self._lock:
            taken, self.counted = self.counted, {}
        rows = [
            (*place, s.calls, s.failed, s.input_tokens, s.output_tokens, s.cost_usd)
            for place, s in taken.items()
        ]
        try:
            if rows:
                with conn.transaction():
                    conn.execute(ADD, [list(column) for column in zip(*rows, strict=True)])
                    conn.execute(FORGET, (datetime.now(UTC) - KEPT,))
        except psycopg.Error:
            with self._lock:
                for place, spent in taken.items():
                    self.counted.setdefault(place, Spent()).add(spent)
            raise
        return len(rows)


LEDGER = SpendingLedger()


async def write_down(database_url: str, ledger: SpendingLedger = LEDGER) -> None:
    """Write down what was counted until this is cancelled, and then what is left.

    While the database is away it waits in memory.
    """

    def write() -> None:
        if not ledger.counted:
            return
        try:
            with open_connection(database_url, "spending") as conn:
                ledger.write(conn)
        except psycopg.Error as error:
            log.warning("spending_not_written", error=explained(error))

    try:
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            await to_the_end(asyncio.to_thread(write))
    finally:
        await to_the_end(asyncio.to_thread(write))


async def read_spending(
    conn: AsyncConnection[Any], since: datetime
) -> dict[tuple[str, date], Spent]:
    """Return what calls of the hours since then took, by purpose and day (UTC)."""
    rows = await (await conn.execute(SUMS, (since,))).fetchall()
    return {(purpose, day): Spent(*sums) for purpose, day, *sums in rows}

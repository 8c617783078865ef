"""Follows the log as it grows: each event that matches once, in order, soon after its commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from engine.notifications import woken
from infra.event_store import EVENTS
from projections.audit.index import Audit
from projections.audit.search import Search, find
from projections.log import Stored

# What a lost notification costs.
POLL_SECONDS = 1.0
PAGE = 500
HEAD = f"SELECT coalesce(max(notification_id), 0) FROM {EVENTS}".encode()


async def head_of(conn: AsyncConnection[TupleRow]) -> int:
    """The last position of the log; everything up to it is there, and stays as it is."""
    row = await (await conn.execute(HEAD)).fetchone()
    return int(row[0]) if row else 0


async def arriving(
    conn: AsyncConnection[TupleRow],
    audit: Audit,
    search: Search,
    after: int,
    wake: asyncio.Event,
) -> AsyncIterator[Stored]:
    """The events after a position that match, as they come; it has no end.

    `wake` is set when something was recorded.
    """
    wanted = replace(search, newest_first=False)
    while True:
        head = await head_of(conn)
        while after < head:
            page = await find(conn, audit, replace(wanted, after=after, before=head + 1), PAGE)
            for stored in page.events:
                yield stored
            after = page.following or head
        await woken(wake, POLL_SECONDS)

"""Which videos may be listed: of which edition that is, and what the catalog knows beyond it."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg.errors import UndefinedTable
from psycopg.rows import TupleRow

from domain.upload import Upload
from infra.codec import topics_of
from infra.event_store import EVENTS
from projections.catalog import Catalog

LISTING = b"""
SELECT edition, (
    SELECT position FROM backlot_checkpoints
    WHERE kind = 'consumer' AND subscription = 'analytics_videos' AND source = 'events')
FROM analytics.listing
"""
# Bounded: where the analytics are further behind, a ranking can't wait for them.
CHANGED = f"""
SELECT coalesce(max(position), 0) FROM (
    SELECT notification_id AS position, topic FROM {EVENTS}
    WHERE notification_id > least(
        %s, (SELECT position FROM backlot_checkpoints
             WHERE kind = 'projection' AND subscription = %s))
    ORDER BY notification_id LIMIT 10000) AS newest
WHERE topic = ANY (%s)
""".encode()
# An upload that was just completed has nothing to be ranked by.
CHANGES = [*topics_of(Upload.DetailsChanged), *topics_of(Upload.Removed)]


@dataclass(frozen=True, slots=True)
class Listing:
    """Another edition begins whenever a video may be listed otherwise than before.

    The event log is in it up to `position`; None where no consumer has ever said.
    """

    edition: int
    position: int | None


async def listing(conn: AsyncConnection[TupleRow]) -> Listing | None:
    """The listing now, from the analytics; None where no consumer has ever begun."""
    try:
        cursor = await conn.execute(LISTING)
    except UndefinedTable:
        return None
    row = await cursor.fetchone()
    return None if row is None else Listing(*row)


async def changed_after(conn: AsyncConnection[TupleRow], position: int) -> int:
    """The position of the last change that the listing, or the catalog, does not know; else 0.

    `conn` leads to the event log.
    """
    cursor = await conn.execute(CHANGED, (position, Catalog.name, CHANGES))
    ((changed,),) = await cursor.fetchall()
    return int(changed)

"""Which videos trend: a ranking from settled sums, whose cost does not grow with the events."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.errors import UndefinedTable
from psycopg.rows import TupleRow

from domain.upload import Upload
from engine.event_store import EVENTS
from engine.log import topics_of
from infra.postgres.connection import fetch_as
from projections.analytics.windows import Window, edges_of
from projections.catalog import Catalog
from projections.trending.formula import RANKED, SCORED, Formula, narrowed
from projections.trending.sums import (
    FROM_ROLLUPS,
    FROM_SETTLED,
    OF_VIDEOS,
    SHORTEST_HALF_LIFE_HOURS,
    leading,
    rising,
    settled,
)

ONE_STATE = b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"

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
class Ranked:
    """A video's place and why: the points of each part; all but `age_penalty` are added."""

    rank: int
    video_id: UUID
    score: float
    views: float
    likes: float
    comments: float
    watch_minutes: float
    recency_boost: float
    age_penalty: float


class Trending:
    """The ranking by one formula."""

    def __init__(self, formula: Formula) -> None:
        self.formula = formula

    async def rank(
        self,
        conn: AsyncConnection[TupleRow],
        window: Window,
        *,
        limit: int,
        now: datetime,
        category: str | None = None,
        without: Collection[UUID] = (),
    ) -> list[Ranked]:
        """Return the first `limit` videos at the time `now`, of a category if given, but `without`.

        Equal scores are ordered by views, then by id. A video without points is not listed, nor is
        one that was removed.
        """
        edges = edges_of(window, now, self.formula.recent_hours)
        given: dict[str, Any] = {**self.formula.weights(), **edges.parameters()}
        given |= {"time_range": window.value, "now": now, "limit": limit}
        given |= {"category": category, "without": list(without)}
        async with conn.transaction():
            await conn.execute(ONE_STATE)
            kept = await settled(conn, window, formula=self.formula, now=now)
            if kept is None:
                return await self._rank(conn, FROM_ROLLUPS, given)
            given |= {"settled_until": kept.until}
            if kept.keyed and self.formula.half_life_hours >= SHORTEST_HALF_LIFE_HOURS:
                ranked = await self._rank_leaders(conn, given)
                if ranked is not None:
                    return ranked
            return await self._rank(conn, FROM_SETTLED.format(of_videos=""), given)

    async def _rank_leaders(
        self, conn: AsyncConnection[TupleRow], given: dict[str, Any]
    ) -> list[Ranked] | None:
        """Rank only the few videos that can be listed; return None where those can be many."""
        leaders = await leading(conn, given["limit"], given, self.formula.half_life_hours)
        ranked = await self._rank_of(conn, leaders.videos, given)
        last_score = ranked[-1].score if len(ranked) == given["limit"] else 0.0
        others = await rising(conn, leaders.rest, last_score, given)
        if others is None:
            return None
        if set(others) <= set(leaders.videos):
            return ranked
        return await self._rank_of(conn, [*leaders.videos, *others], given)

    async def _rank_of(
        self, conn: AsyncConnection[TupleRow], videos: Sequence[UUID], given: dict[str, Any]
    ) -> list[Ranked]:
        sums = FROM_SETTLED.format(of_videos=OF_VIDEOS)
        return await self._rank(conn, sums, {**given, "videos": videos})

    async def _rank(
        self, conn: AsyncConnection[TupleRow], sums: LiteralString, given: dict[str, Any]
    ) -> list[Ranked]:
        scored = SCORED + narrowed(given)
        query = f"WITH sums AS ({sums}), scored AS ({scored}) {RANKED}"
        return await fetch_as(conn, Ranked, query.encode(), given)


@dataclass(frozen=True, slots=True)
class Listing:
    """Another edition begins whenever a video may be listed otherwise than before.

    The event log is in it up to `position`; None where no consumer has ever said.
    """

    edition: int
    position: int | None


async def listing(conn: AsyncConnection[TupleRow]) -> Listing | None:
    """Return the listing now, from the analytics; None where no consumer has ever begun."""
    try:
        cursor = await conn.execute(LISTING)
    except UndefinedTable:
        return None
    row = await cursor.fetchone()
    return None if row is None else Listing(*row)


async def changed_after(conn: AsyncConnection[TupleRow], position: int) -> int:
    """Return the position of the last change that the listing or the catalog lacks, or 0.

    `conn` leads to the event log.
    """
    cursor = await conn.execute(CHANGED, (position, Catalog.name, CHANGES))
    ((changed,),) = await cursor.fetchall()
    return int(changed)

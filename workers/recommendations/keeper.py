"""The keeper of the recommendations: who watched and liked what, and which videos that ties."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType

import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.connections import ThreadedConnection
from engine.messages import Poison, Received
from infra.errors import describe
from infra.integration import topics
from projections.analytics.migrating import migrate
from projections.analytics.rules import NotCountable, Row, row_of
from projections.consumers import ENGAGED
from projections.recommendations.keeping import keep, rank_categories
from projections.recommendations.pairing import Engagement
from projections.recommendations.weighing import EngagementKind, Weighing

log = structlog.get_logger(__name__)

# An unlike takes nothing back: what the like brought together decays. It is followed only since
# the viewer's profile changes by it.
KINDS: Mapping[str, EngagementKind | None] = MappingProxyType(
    {
        topics.VIDEO_VIEWED: EngagementKind.WATCHED,
        topics.VIDEO_LIKED: EngagementKind.LIKED,
        topics.VIDEO_UNLIKED: None,
    }
)
RANK_SECONDS = 60.0

Tell = Callable[[frozenset[str]], Awaitable[None]]


async def tell_nobody(viewers: frozenset[str]) -> None:
    """Nobody wants to know whose profile changed."""


class EngagementKeeper:
    """Keeps what known viewers engage with; shares its database with the analytics."""

    name = ENGAGED
    topics = frozenset(KINDS)

    def __init__(self, weighing: Weighing, *, changed: Tell = tell_nobody) -> None:
        """`changed` is told after each commit whose profiles are others now; must not raise."""
        self._weighing = weighing
        self._changed = changed
        self._last: frozenset[str] = frozenset()
        self._ranked_at = float("-inf")

    def prepare(self, conn: Connection[TupleRow]) -> None:
        found = migrate(conn)
        log.info("recommendations_ready", on=str(found))

    def store(self, conn: Connection[TupleRow], batch: Sequence[Received]) -> None:
        now = datetime.now(UTC)
        told = [_row(message, now) for message in batch]
        engaged = [
            Engagement(row.user_id, row.video_id, kind, row.at)
            for kind, row in told
            if kind is not None and row.user_id is not None
        ]
        unliked = {row.user_id for kind, row in told if kind is None and row.user_id is not None}
        self._last = keep(conn, engaged, self._weighing) | unliked

    async def stored(self, conn: ThreadedConnection) -> None:
        """Tell whose profiles changed; rank the categories anew once a minute."""
        last, self._last = self._last, frozenset()
        if last:
            await self._changed(last)
            if time.monotonic() - self._ranked_at >= RANK_SECONDS:
                await conn.do(rank_categories, self._weighing)
                self._ranked_at = time.monotonic()


def _row(message: Received, now: datetime) -> tuple[EngagementKind | None, Row]:
    try:
        return KINDS[message.topic], row_of(message.topic, message.id, message.value, now)
    except NotCountable as error:
        raise Poison(message, describe(error)) from error

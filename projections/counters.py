"""Keeps the like counters in Redis as new as the read model, whatever happened to either.

It follows the log with a position of its own, which lies in Redis beside the counters: what is
lost there, or was put while Redis was away, shows as a position that is behind, and is put again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import LiteralString
from uuid import UUID

import structlog
from eventsourcing.persistence import MapperDeserialisationError
from psycopg import AsyncConnection, Connection, InterfaceError, OperationalError
from psycopg.rows import TupleRow
from redis import RedisError

from domain.video_likes import VideoLikes
from engine.connections import ThreadedConnection
from engine.leader_lock import EveryProcess
from engine.sources import Wakeups
from engine.subscription import Handler, Subscription, Unkept
from infra.codec import EventMapper
from infra.counters import GONE, Counter, Counters
from infra.event_store import EVENTS
from infra.metrics import counter, gauge
from projections.likes import Likes
from projections.log import Log, Stored

log = structlog.get_logger(__name__)

WINDOW_EVENTS = 5_000
# Where Redis has lost the position, fills of that moment may still be on their way.
MARGIN_EVENTS = 10_000
POLL_SECONDS = 0.5

# One statement sees one moment: these counts are those at this position.
COUNTED: LiteralString = """
SELECT s.position, v.id, coalesce(c.likes, 0), r.video_id IS NOT NULL
FROM backlot_checkpoints s
LEFT JOIN unnest(%b::uuid[]) AS v(id) ON true
LEFT JOIN {schema}.counts c ON c.video_id = v.id
LEFT JOIN {schema}.removed r ON r.video_id = v.id
WHERE s.kind = 'projection' AND s.subscription = %b
"""
HEAD = f"SELECT coalesce(max(notification_id), 0) FROM {EVENTS}".encode()

COUNTERS_PUBLISHED = counter(
    "backlot_like_counters_published",
    "Like counters put into Redis.",
)
COUNTER_LAG_EVENTS = gauge(
    "backlot_like_counters_lag_events",
    "Positions between the likes' read model and the counters in Redis.",
)
COUNTER_FAILURES = counter(
    "backlot_like_counter_failures",
    "Times that like counters could not be put or read because a part was away.",
)


def counted(
    conn: Connection[TupleRow], likes: Likes, videos: Collection[UUID]
) -> tuple[int, dict[UUID, Counter]]:
    """How far the read model is, and what the counters of these videos have to be there."""
    with conn.cursor(binary=True) as cursor:
        cursor.execute(likes.sql(COUNTED), (list(videos), likes.schema), prepare=True)
        return _as_counters(cursor.fetchall())


async def counted_async(
    conn: AsyncConnection[TupleRow], likes: Likes, videos: Collection[UUID]
) -> tuple[int, dict[UUID, Counter]]:
    """The same for queries."""
    async with conn.cursor(binary=True) as cursor:
        await cursor.execute(likes.sql(COUNTED), (list(videos), likes.schema))
        return _as_counters(await cursor.fetchall())


def _as_counters(rows: Sequence[TupleRow]) -> tuple[int, dict[UUID, Counter]]:
    position: int = rows[0][0] if rows else 0
    return position, {
        video: Counter(GONE if removed else count, position)
        for _, video, count, removed in rows
        if video is not None
    }


class CounterPublisher(Handler[None]):
    """Puts changed counts into Redis; several in several processes do no harm."""

    def __init__(
        self, likes: Likes, counters: Counters, wake: asyncio.Event, mapper: EventMapper
    ) -> None:
        """`wake` makes the subscription go on at once."""
        self._likes = likes
        self._counters = counters
        self._wake = wake
        self._log = Log(likes.events, mapper=mapper, batch_events=WINDOW_EVENTS)

    async def handle(self, conn: ThreadedConnection, batch: None) -> None:
        lag = await conn.do(self.advance)
        COUNTER_LAG_EVENTS.set(lag)
        if lag > 0:
            self._wake.set()

    def failed(self, error: Exception) -> None:
        """Count and log what interrupted it."""
        COUNTER_FAILURES.inc()
        if isinstance(error, OperationalError | InterfaceError | RedisError):
            log.warning("like_counters_interrupted", error=f"{type(error).__name__}: {error}")
        else:
            log.error("like_counters_broke", exc_info=error)

    def advance(self, conn: Connection[TupleRow]) -> int:
        """Put the next stretch of changes; returns how many positions remain."""
        position, _ = counted(conn, self._likes, ())
        after = self._start(conn, position)
        if after >= position:
            return 0
        window = self._log.read(conn, after, position)
        changed = {video for stored in window.events if (video := self._video(stored))}
        _, now = counted(conn, self._likes, changed)
        self._counters.publish(now.items(), window.until)
        COUNTERS_PUBLISHED.inc(len(now))
        return position - window.until

    def _video(self, stored: Stored) -> UUID | None:
        """Whose count an event may have changed; None where nobody can read it."""
        try:
            event = self._log.decode(stored).event
        except MapperDeserialisationError:
            # The read model has parked it; its count goes on without it.
            return None
        if isinstance(event, VideoLikes.Event):
            return event.video_id
        return event.originator_id

    def _start(self, conn: Connection[TupleRow], position: int) -> int:
        """The position after which counters may be stale."""
        published = self._counters.published()
        if published is not None and published > position:
            (head,) = conn.execute(HEAD).fetchone() or (0,)
            if published <= head:
                # The read model is being rebuilt; until it is there, the counters are newer.
                return position
            log.warning("like_counters_of_another_log", published=published, head=head)
            self._counters.forget()
            published = None
        return max(0, position - MARGIN_EVENTS) if published is None else published


def subscribe_counters(
    database_url: str, likes: Likes, counters: Counters, moved: asyncio.Event, mapper: EventMapper
) -> Subscription[None]:
    """Return the subscription that keeps the counters; `moved` says that the read model has."""
    publisher = CounterPublisher(likes, counters, moved, mapper)
    return Subscription(
        database_url,
        "like counters",
        source=Wakeups(moved),
        checkpoint=Unkept(),
        handler=publisher,
        on_error=publisher.failed,
        leader=EveryProcess(),
        poll_seconds=POLL_SECONDS,
    )

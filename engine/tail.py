"""The end of the log in the memory of one process: whoever reads is as far as whoever wrote.

A read asks what was recorded since the last one (`confirm`), and all that ask at the same time
share one statement. Whatever was acknowledged to anybody before a read began, in any process, is
known to it then: followers drop or renew exactly what the new events change, and what they keep is
right at that position. A process that is not asked for a minute reads nothing.

This is the read index of Raft (Ongaro, 2014, section 6.4), with the log's own order in the place
of a leader's word.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, NamedTuple, Protocol, TypeVar
from uuid import UUID

import orjson
import structlog
from psycopg import AsyncConnection, Error
from psycopg.rows import TupleRow
from psycopg_pool import PoolTimeout

from engine.checkpoints import Pool
from engine.event_store import EVENTS
from engine.subscription import woken
from infra.cancellation import cancel
from infra.http.shapes import BEGINNING, Position
from infra.metrics import counter

log = structlog.get_logger(__name__)

# Whoever is further behind begins anew: what was kept is of little use by then.
MOST_EVENTS = 2_000
MOST_ACTORS = 20_000
# So long after a question the log is followed, and so often at most.
IDLE_SECONDS, PAUSE_SECONDS = 60.0, 0.25
# One row at least, with both heads and the copies that are live: a cutover gives a name another
# namespace.
READ = f"""
SELECT known.copies, known.events, known.telemetry, new.*
FROM (SELECT ARRAY(SELECT to_regnamespace(name)::oid::bigint
                   FROM unnest(%b::text[]) WITH ORDINALITY AS named (name, place)
                   ORDER BY place),
             (SELECT coalesce(max(notification_id), 0) FROM {EVENTS}),
             (SELECT coalesce(max(seq), 0) FROM backlot_telemetry))
     AS known (copies, events, telemetry)
LEFT JOIN (
    (SELECT notification_id, originator_id, topic, state, NULL::text FROM {EVENTS}
     WHERE notification_id > %b ORDER BY notification_id LIMIT %b)
    UNION ALL
    (SELECT seq, video_id, topic, NULL, user_id FROM backlot_telemetry
     WHERE seq > %b ORDER BY seq LIMIT %b))
     AS new (position, stream_id, topic, state, person) ON true
""".encode()

# What follows a position is a few rows, wherever that is. The planner takes it for a third of the
# log, and so would plan each time anew, which costs four times what reading does.
SESSION = b"; SET plan_cache_mode = force_generic_plan"

TAIL_READS = counter(
    "backlot_tail_reads",
    "Times that the end of the log was read for all who asked meanwhile, and what came of it "
    "(nothing new, events, or begun anew).",
    ("outcome",),
)


CACHE_READS = counter(
    "backlot_read_cache_reads",
    "Videos, likes of viewers, pages and answers that were wanted, by whether they were in memory.",
    ("kind", "outcome"),
)

K = TypeVar("K")
V = TypeVar("V")


class TailEvent(NamedTuple):
    """An event of the log as it was recorded: what is encrypted in its `fields` stays so."""

    position: int
    stream_id: UUID
    topic: str
    fields: Mapping[str, Any]


class TailTelemetry(NamedTuple):
    """What a viewer did with a video, and in which place of the telemetry."""

    position: int
    video_id: UUID
    topic: str
    person: str | None


class Follower(Protocol):
    """Keeps what events change. Nothing here may wait."""

    def begin(self, position: Position) -> None:
        """Forget everything; what follows was recorded behind this position."""

    def take(self, event: TailEvent) -> None:
        """Drop or renew what the event changes."""

    def take_telemetry(self, event: TailTelemetry) -> None:
        """Drop or renew what a view, watch time or a share changes."""


class LastSeen:
    """At which position something happened last, by key; bounded, and never too low."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._floor = 0
        self._seen: dict[object, int] = {}

    def begin(self, position: int) -> None:
        """Forget all: whatever happened may have happened as late as there."""
        self._seen.clear()
        self._floor = position

    def put(self, key: object, position: int) -> None:
        self._seen.pop(key, None)
        self._seen[key] = position
        if len(self._seen) > self._most:
            self._floor = max(self._floor, self._seen.pop(next(iter(self._seen))))

    def get(self, key: object) -> int:
        """Return a position behind which nothing happened under the key."""
        return self._seen.get(key, self._floor)


def _one(_: object) -> int:
    return 1


class Lru(Generic[K, V]):
    """The entries that were used last; so many at most."""

    def __init__(self, most: int, kind: str, size: Callable[[V], int] = _one) -> None:
        """The sizes of all entries together are `most` at most; that of an entry stays."""
        self._most, self._crowded = most, most * 3 // 4
        self._size = size
        self._held = 0
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._hits, self._misses = (CACHE_READS.labels(kind, each) for each in ("hit", "miss"))

    def get(self, key: K) -> V | None:
        (found,) = self.get_all((key,))
        return found

    def get_all(self, keys: Iterable[K]) -> list[V | None]:
        """Return the entries of the keys, in their order."""
        entries = self._entries
        found = [entries.get(key) for key in keys]
        if missing := found.count(None):
            self._misses.inc(missing)
        if hits := len(found) - missing:
            self._hits.inc(hits)
        # Which was used last matters only where there is little room left.
        if self._held > self._crowded:
            for key, value in zip(keys, found, strict=True):
                if value is not None:
                    entries.move_to_end(key)
        return found

    def peek(self, key: K) -> V | None:
        """Return the entry without counting it as used."""
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        self.drop(key)
        self._entries[key] = value
        self._held += self._size(value)
        while self._held > self._most:
            self._gone(self._entries.popitem(last=False)[1])

    def drop(self, key: K) -> None:
        if (gone := self._entries.pop(key, None)) is not None:
            self._gone(gone)

    def _gone(self, value: V) -> None:
        self._held -= self._size(value)

    def clear(self) -> None:
        self._entries.clear()
        self._held = 0

    def values(self) -> Iterable[V]:
        return self._entries.values()


class Listings(Generic[V]):
    """Entries that any change of a kind makes out of date, as one of the catalog does rankings."""

    def __init__(self, kind: str, most: int, seconds: float = math.inf) -> None:
        """So many at most, and nothing for longer than so many seconds."""
        self._kept: Lru[Hashable, tuple[V, float]] = Lru(most, kind)
        self._seconds = seconds
        self.changes = 0
        """Another number whenever a list may have changed."""

    def get(self, key: Hashable) -> V | None:
        found = self._kept.get(key)
        return found[0] if found is not None and time.monotonic() < found[1] else None

    def peek(self, key: Hashable) -> V | None:
        """Return what is kept, however old, without counting it as used."""
        found = self._kept.peek(key)
        return None if found is None else found[0]

    def put(self, key: Hashable, value: V, changes: int) -> None:
        """Keep what was read after so many changes, and before the next one."""
        if changes == self.changes:
            self._kept.put(key, (value, time.monotonic() + self._seconds))

    def drop(self, key: Hashable) -> None:
        self._kept.drop(key)

    def clear(self) -> None:
        self._kept.clear()
        self.changes += 1


class LogTail:
    """What was recorded last, and who follows it; to be used from one event loop."""

    def __init__(self, pool: Pool, copies: Iterable[str]) -> None:
        """`pool` leads to the log, with SESSION; `copies` are the schemas of live read models."""
        self._pool = pool
        self._copies = list(copies)
        self._followers: list[tuple[Follower, Collection[str] | None]] = []
        self._by_topic: dict[str, list[Follower]] = {}
        self._position = BEGINNING
        self._live: list[int | None] | None = None
        self._waiting: list[asyncio.Future[Position]] = []
        self._reader: asyncio.Task[None] | None = None
        self._topics: dict[str, int] = {}
        self._floor = 0
        self._actors = LastSeen(MOST_ACTORS)
        self._viewers = LastSeen(MOST_ACTORS)
        self._asked = float("-inf")
        self.epoch = 0
        """Another number whenever everything was forgotten."""

    @property
    def position(self) -> Position:
        """How far the followers are."""
        return self._position

    def follow(self, follower: Follower, topics: Collection[str] | None = None) -> None:
        """Tell a follower of what is recorded from now on under these topics, or under any."""
        self._followers.append((follower, topics))
        self._by_topic.clear()
        follower.begin(self._position)

    def _followers_of(self, topic: str) -> Sequence[Follower]:
        found = self._by_topic.get(topic)
        if found is None:
            found = self._by_topic[topic] = [
                each for each, topics in self._followers if topics is None or topic in topics
            ]
        return found

    def last_of(self, topics: Iterable[str]) -> int:
        """Return a position behind which no event of these topics is known."""
        return max((self._topics.get(topic, self._floor) for topic in topics), default=0)

    def own(self, person: str) -> Position:
        """Return a position behind which nothing is known that this person did."""
        return Position(self._actors.get(person), self._viewers.get(person))

    async def confirm(self) -> Position:
        """Return how much was recorded, at least what was acknowledged before this call.

        The followers know all of it then. Raise what the database raises when it is away.
        """
        self._asked = time.monotonic()
        return await self._confirmed()

    async def _confirmed(self) -> Position:
        asked: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        self._waiting.append(asked)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read_all())
        return await asked

    async def run(self, wake: asyncio.Event) -> None:
        """Go on reading while somebody asks now and then, until cancelled.

        `wake` is set whenever something was recorded. Else whoever asks next would be so far behind
        that all is forgotten.
        """
        while True:
            await woken(wake, IDLE_SECONDS)
            if time.monotonic() - self._asked < IDLE_SECONDS:
                # Whoever asks next is told what is wrong.
                with suppress(Error, PoolTimeout):
                    await self._confirmed()
            await asyncio.sleep(PAUSE_SECONDS)

    async def aclose(self) -> None:
        """Stop reading."""
        if self._reader is not None:
            await cancel(self._reader)

    async def _read_all(self) -> None:
        """Read for those who wait, as long as somebody does; who comes meanwhile, is next."""
        waiting: list[asyncio.Future[Position]] = []
        try:
            while self._waiting:
                async with self._pool.connection() as conn:
                    while self._waiting:
                        waiting, self._waiting = self._waiting, []
                        await self._read(conn)
                        for each in waiting:
                            if not each.done():
                                each.set_result(self._position)
        except BaseException as error:
            for each in (*waiting, *self._waiting):
                if not each.done():
                    each.set_exception(error)
            self._waiting = []
            if not isinstance(error, Exception):
                raise
        finally:
            self._reader = None

    async def _read(self, conn: AsyncConnection[TupleRow]) -> None:
        given = (
            *(self._copies, self._position.events, MOST_EVENTS),
            *(self._position.telemetry, MOST_EVENTS),
        )
        async with conn.cursor(binary=True) as cursor:
            await cursor.execute(READ, given, prepare=True)
            rows = await cursor.fetchall()
        live, *heads = rows[0][:3]
        head = Position(*heads)
        if len(rows) >= MOST_EVENTS or live != self._live or not head.covers(self._position):
            self._live = live
            self.begin(head)
        elif rows[0][3] is None:
            TAIL_READS.labels("nothing").inc()
        else:
            self._position = head
            try:
                self._take(rows)
            except Exception:
                # Half of it may be taken: nothing that is kept can be trusted.
                log.exception("tail_broke", position=head)
                self.begin(head)
            else:
                TAIL_READS.labels("events").inc()

    def begin(self, position: Position) -> None:
        """Have everything forgotten that was kept."""
        TAIL_READS.labels("begun").inc()
        self.epoch += 1
        self._position = position
        self._topics.clear()
        self._floor = position.events
        self._actors.begin(position.events)
        self._viewers.begin(position.telemetry)
        for follower, _ in self._followers:
            follower.begin(position)

    def _take(self, rows: Sequence[TupleRow]) -> None:
        for *_, position, stream_id, topic, state, person in rows:
            if state is None:
                happened = TailTelemetry(position, stream_id, topic, person)
                if person is not None:
                    self._viewers.put(person, position)
                for follower in self._followers_of(topic):
                    follower.take_telemetry(happened)
            else:
                event = TailEvent(position, stream_id, topic, orjson.loads(state))
                self._topics[topic] = position
                if (actor := event.fields.get("actor")) is not None:
                    self._actors.put(actor, position)
                for follower in self._followers_of(topic):
                    follower.take(event)

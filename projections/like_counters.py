"""Like counters in Redis: each is a count, and the position in the log that the count includes.

A counter is only ever replaced by a newer one, so that putting one twice, late or out of order
changes nothing, and whoever notices that a counter is missing can fill it in. Only a fault of this
program or of Redis makes a counter wrong: reconciliation compares the counters with the read model
at a common position, and reports each drift.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, LiteralString, NamedTuple, cast
from uuid import UUID

import redis.asyncio
import structlog
from psycopg import AsyncConnection, Connection, InterfaceError, OperationalError
from psycopg.rows import TupleRow
from redis import Redis, RedisError
from redis.commands.core import Script

from domain.video_likes import VideoLikes
from engine.connections import EveryProcess, ThreadedConnection, connect
from engine.event_store import EVENTS
from engine.installation import MigrationSet
from engine.log import Log, Stored, topics_of
from engine.replay.records import Progress, Replay, ReplayState, Report, tell_nobody
from engine.subscription import Handler, NoCheckpoint, Subscription, Wakeups
from infra.metrics import counter, gauge
from projections.likes import Likes, video_of

log = structlog.get_logger(__name__)

TABLES = MigrationSet("projections", Path(__file__).with_name("sql"), "projections")
"""The table of the drift that was found; it belongs to no copy of the likes."""

PREFIX = "video:likes:"
PUBLISHED = "backlot:likes:published"
"""The position up to which every change of a count has been put into its counter."""

# KEYS: the counter. ARGV: count, position, seconds to live. One key, so any slot of a cluster.
PUT = """
local held = redis.call('HMGET', KEYS[1], 'position', 'unproved')
if tonumber(held[1] or '-1') >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'count', ARGV[1], 'position', ARGV[2])
if held[2] then redis.call('HDEL', KEYS[1], 'unproved') end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""
# PUT at an equal position too: for a read model that was built again.
CORRECT = PUT.replace(">= ", "> ")
# PUT for nobody to read before PROVE, which does nothing where another counter has come meanwhile.
FILL = """
local held = redis.call('HMGET', KEYS[1], 'position', 'unproved')
if not held[2] and tonumber(held[1] or '-1') >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'count', ARGV[1], 'position', ARGV[2], 'unproved', 1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""
PROVE = """
if redis.call('HGET', KEYS[1], 'position') == ARGV[1] then
    redis.call('HDEL', KEYS[1], 'unproved')
end
"""
FIELDS = ("count", "position", "unproved")
ADVANCE = """
if tonumber(redis.call('GET', KEYS[1]) or '-1') < tonumber(ARGV[1]) then
    redis.call('SET', KEYS[1], ARGV[1])
end
"""
OF_LIKES = frozenset(topic for event in VideoLikes.events() for topic in topics_of(event))
GONE = -1
"""The count of a removed or private video: nothing older can bring its counter back."""

SCAN_KEYS = 1_000
# Each counter costs a call of a script, and nobody waits: queries pass over those that are behind.
GATHER_SECONDS = 0.1
WINDOW_EVENTS = 5_000
# Where Redis has lost the position, fills of that moment may still be on their way.
MARGIN_EVENTS = 10_000
POLL_SECONDS = 0.5

# One statement sees one moment: these counts are those at this position.
COUNTED: LiteralString = """
SELECT s.position, v.id, coalesce(c.likes, 0),
       EXISTS (SELECT FROM {schema}.removed WHERE video_id = v.id)
       OR EXISTS (SELECT FROM {schema}.private WHERE video_id = v.id)
FROM backlot_checkpoints s
LEFT JOIN unnest(%b::uuid[]) AS v(id) ON true
LEFT JOIN {schema}.counts c ON c.video_id = v.id
WHERE s.kind = 'projection' AND s.subscription = %b
"""
HEAD = f"SELECT coalesce(max(notification_id), 0) FROM {EVENTS}".encode()

# What the progress of a rebuild is named.
NAME = "counters"
# A query that read the copy before the switch has put what it found into a missing counter by then.
FILL_SECONDS = 0.5
WAIT_POLL_SECONDS = 0.05

NEXT_VIDEOS: LiteralString = (
    "SELECT video_id FROM {schema}.counts WHERE video_id > %s ORDER BY video_id LIMIT %s"
)
REPORT = """
INSERT INTO projections.like_drift
    (video_id, counter, counter_position, likes, position, repaired)
VALUES (%s, %s, %s, %s, %s, %s)
"""

COUNTERS_PUBLISHED = counter("backlot_like_counters_published", "Like counters put into Redis.")
COUNTER_LAG_EVENTS = gauge(
    "backlot_like_counters_lag_events",
    "Positions between the likes' read model and the counters in Redis.",
)
COUNTER_FAILURES = counter(
    "backlot_like_counter_failures",
    "Times that like counters could not be put or read because a part was away.",
)
COUNTER_DRIFT = gauge(
    "backlot_like_counters_drifting",
    "Like counters that differed from the read model when they were last compared.",
)
COUNTERS_DRIFTED = counter(
    "backlot_like_counters_drifted", "Like counters that were found to differ from the read model."
)


class Counter(NamedTuple):
    """How many like a video, and the position in the log up to which that counts."""

    likes: int
    position: int


def key_of(video_id: UUID) -> str:
    """Return where a video's counter lies."""
    return f"{PREFIX}{video_id}"


class Counters:
    """The counters as their writer sees them; blocking. Every method raises redis.RedisError."""

    def __init__(self, client: Redis, ttl_seconds: int) -> None:
        """A counter that is not put for `ttl_seconds` expires."""
        self._client = client
        self._ttl = ttl_seconds
        self._put = client.register_script(PUT)
        self._correct = client.register_script(CORRECT)
        self._advance = client.register_script(ADVANCE)

    def published(self) -> int | None:
        """Return the position up to which counters are right; None where it is not known."""
        value = cast("bytes | None", self._client.get(PUBLISHED))
        return None if value is None else int(value)

    def publish(self, counters: Iterable[tuple[UUID, Counter]], until: int) -> None:
        """Put these counters, which hold every change up to a position, and store that position."""
        self.put(counters)
        self._advance(keys=[PUBLISHED], args=[until])

    def put(self, counters: Iterable[tuple[UUID, Counter]]) -> None:
        """Put counters that are newer than those in Redis, in one pipeline."""
        self._send(self._put, counters)

    def correct(self, counters: Iterable[tuple[UUID, Counter]]) -> None:
        """Put counters that are as new as those in Redis, or newer: a count there may be wrong."""
        self._send(self._correct, counters)

    def _send(self, script: Script, counters: Iterable[tuple[UUID, Counter]]) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            for video_id, counter in counters:
                script(keys=[key_of(video_id)], args=[*counter, self._ttl], client=pipe)
            pipe.execute()

    def get(self, videos: Sequence[UUID]) -> list[Counter | None]:
        """Return the counters of these videos, None for those that are not there."""
        with self._client.pipeline(transaction=False) as pipe:
            for video_id in videos:
                pipe.hmget(key_of(video_id), *FIELDS)
            return [_counter(row) for row in pipe.execute()]

    def all_videos(self) -> Iterator[list[UUID]]:
        """Return the videos that have a counter, some at a time; pass over foreign keys."""
        keys = self._client.scan_iter(match=f"{PREFIX}*", count=SCAN_KEYS)
        while some := list(islice(keys, SCAN_KEYS)):
            if videos := [video for key in some if (video := _video(key))]:
                yield videos

    def drop(self, videos: Sequence[UUID]) -> None:
        """Forget these counters; they are filled in again when somebody asks."""
        if videos:
            self._client.delete(*map(key_of, videos))

    def forget(self) -> None:
        """Forget every counter: they belong to another log."""
        self._client.delete(PUBLISHED)
        for videos in self.all_videos():
            self.drop(videos)


class AsyncCounters:
    """The counters as queries see them. Every method raises redis.RedisError."""

    def __init__(self, client: redis.asyncio.Redis, ttl_seconds: int) -> None:
        self._client = client
        self._ttl = ttl_seconds
        self._fill = client.register_script(FILL)
        self._prove = client.register_script(PROVE)

    async def get(self, videos: Sequence[UUID]) -> tuple[list[Counter | None], int]:
        """Return the counters of these videos, and the position up to which counters are right."""
        async with self._client.pipeline(transaction=False) as pipe:
            # First: what is published while the counters are read only makes them newer.
            _ = pipe.get(PUBLISHED)
            for video_id in videos:
                _ = pipe.hmget(key_of(video_id), *FIELDS)
            published, *rows = await pipe.execute()
        return [_counter(row) for row in rows], int(published or 0)

    async def fill(self, video_id: UUID, counter: Counter) -> bool:
        """Put a counter that was missing; False if it may be stale by now, and is not there.

        Between looking and putting, a newer counter may have come and gone. Then the position
        published is newer than ours. Until that is seen, nobody is told the counter.
        """
        key = key_of(video_id)
        if not await self._fill(keys=[key], args=[*counter, self._ttl]):
            return True
        published = cast("bytes | None", await self._client.get(PUBLISHED))
        if int(published or 0) <= counter.position:
            await self._prove(keys=[key], args=[counter.position])
            return True
        await self._client.delete(key)
        return False


def _counter(row: Any) -> Counter | None:
    count, position, unproved = row
    if count is None or position is None or unproved is not None:
        return None
    return Counter(int(count), int(position))


def _video(key: bytes) -> UUID | None:
    try:
        return UUID(key.decode().removeprefix(PREFIX))
    except ValueError:
        return None


def read_counters(
    conn: Connection[TupleRow], likes: Likes, videos: Collection[UUID]
) -> tuple[int, dict[UUID, Counter]]:
    """Return the read model's position, and the counters that these videos must have there."""
    with conn.cursor(binary=True) as cursor:
        cursor.execute(likes.sql(COUNTED), (list(videos), likes.schema), prepare=True)
        return _as_counters(cursor.fetchall())


async def read_counters_async(
    conn: AsyncConnection[TupleRow], likes: Likes, videos: Collection[UUID]
) -> tuple[int, dict[UUID, Counter]]:
    """Return the same as `read_counters`, on an event loop."""
    async with conn.cursor(binary=True) as cursor:
        await cursor.execute(likes.sql(COUNTED), (list(videos), likes.schema))
        return _as_counters(await cursor.fetchall())


def _as_counters(rows: Sequence[TupleRow]) -> tuple[int, dict[UUID, Counter]]:
    position: int = rows[0][0] if rows else 0
    return position, {
        video: Counter(GONE if hidden else count, position)
        for _, video, count, hidden in rows
        if video is not None
    }


class CounterPublisher(Handler[None]):
    """Puts changed counts into Redis; several in several processes do no harm."""

    def __init__(self, likes: Likes, counters: Counters, wake: asyncio.Event) -> None:
        """`wake` makes the subscription go on at once."""
        self._likes = likes
        self._counters = counters
        self._wake = wake
        self._log = Log(likes.counted, batch_events=WINDOW_EVENTS)

    async def handle(self, conn: ThreadedConnection, batch: None) -> None:
        lag = await conn.do(self.advance)
        COUNTER_LAG_EVENTS.set(lag)
        if lag > 0:
            self._wake.set()
        else:
            await asyncio.sleep(GATHER_SECONDS)

    def failed(self, error: Exception) -> None:
        """Count and log what interrupted it."""
        COUNTER_FAILURES.inc()
        if isinstance(error, OperationalError | InterfaceError | RedisError):
            log.warning("like_counters_interrupted", error=f"{type(error).__name__}: {error}")
        else:
            log.error("like_counters_broke", exc_info=error)

    def advance(self, conn: Connection[TupleRow]) -> int:
        """Put the next stretch of changes; return how many positions remain."""
        position, _ = read_counters(conn, self._likes, ())
        after = self._start(conn, position)
        if after >= position:
            return 0
        window = self._log.read(conn, after, position)
        changed = {video for stored in window.events if (video := self._video(stored))}
        _, now = read_counters(conn, self._likes, changed)
        self._counters.publish(now.items(), window.until)
        COUNTERS_PUBLISHED.inc(len(now))
        return position - window.until

    def _video(self, stored: Stored) -> UUID | None:
        """Return whose count an event may have changed; None where nobody can read it."""
        if stored.topic not in OF_LIKES:
            return stored.stream_id
        try:
            return video_of(stored.state)
        except (KeyError, TypeError, ValueError):
            # The read model has parked it; its count goes on without it.
            return None

    def _start(self, conn: Connection[TupleRow], position: int) -> int:
        """Return the position after which counters may be stale."""
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
    database_url: str, likes: Likes, counters: Counters, moved: asyncio.Event
) -> Subscription[None]:
    """Return the subscription that keeps the counters; `moved` says that the read model has."""
    publisher = CounterPublisher(likes, counters, moved)
    return Subscription(
        database_url,
        "like counters",
        source=Wakeups(moved),
        checkpoint=NoCheckpoint(),
        handler=publisher,
        on_error=publisher.failed,
        leader=EveryProcess(),
        poll_seconds=POLL_SECONDS,
    )


def rebuild(
    conn: Connection[TupleRow], likes: Likes, counters: Counters, report: Report = tell_nobody
) -> int:
    """Put the counters of all videos that have or had likes; return how many there are.

    What is there for other videos is corrected too, and dropped where it belongs to another log.
    `report` hears of progress in counters. Raise redis.RedisError and OperationalError.
    """
    started = time.monotonic()
    (total,) = conn.execute(likes.sql("SELECT count(*) FROM {schema}.counts")).fetchone() or (0,)
    done, last = 0, UUID(int=0)
    while rows := conn.execute(likes.sql(NEXT_VIDEOS), (last, WINDOW_EVENTS)).fetchall():
        last = rows[-1][0]
        counters.correct(read_counters(conn, likes, [video for (video,) in rows])[1].items())
        done += len(rows)
        rate = done / (time.monotonic() - started)
        left = max(0, total - done)
        state = ReplayState.BUILDING
        report(Progress(NAME, state, done, done + left, done, rate, left / rate))
    renew(conn, likes, counters)
    log.info("like_counters_rebuilt", counters=done, seconds=time.monotonic() - started)
    return done


def renew(conn: Connection[TupleRow], likes: Likes, counters: Counters) -> int:
    """Correct every counter that is in Redis, at equal positions too; return how many there are.

    Raise redis.RedisError and OperationalError.
    """
    done = 0
    for videos in counters.all_videos():
        held = zip(videos, counters.get(videos), strict=True)
        (head,) = conn.execute(HEAD).fetchone() or (0,)
        counters.drop([video for video, counter in held if counter and counter.position > head])
        counters.correct(read_counters(conn, likes, videos)[1].items())
        done += len(videos)
    return done


def renewing(database_url: str, likes: Likes, counters: Counters) -> Callable[[Replay], None]:
    """Return the work after a cutover; reconciliation does it later when Redis is away."""

    def after_switch(replay: Replay) -> None:
        if replay.name != likes.name:
            return
        time.sleep(FILL_SECONDS)
        try:
            with connect(database_url, "like counters") as conn:
                done = renew(conn, likes, counters)
        except RedisError as error:
            COUNTER_FAILURES.inc()
            log.warning("like_counters_not_renewed", error=f"{type(error).__name__}: {error}")
        else:
            log.info("like_counters_renewed", counters=done)

    return after_switch


class CountersBehind(Exception):
    """What the read model has is not in the counters yet, so that nothing can be compared."""


class Drift(NamedTuple):
    """A counter that differs from the read model at the same position."""

    video_id: UUID
    counter: Counter
    truth: Counter


class Reconciliation(NamedTuple):
    """How many counters were compared, and which of them differed."""

    compared: int
    drifted: Sequence[Drift]


def reconcile(
    conn: Connection[TupleRow],
    likes: Likes,
    counters: Counters,
    *,
    repair: bool = True,
    wait_seconds: float = 5.0,
) -> Reconciliation:
    """Compare every counter with the read model; report and, if `repair`, drop what differs.

    Raise CountersBehind when the publisher does not catch up within `wait_seconds`, and what
    Redis and the database raise when they are away.
    """
    compared, drifted = 0, list[Drift]()
    for videos in counters.all_videos():
        position, truth = read_counters(conn, likes, videos)
        _await(counters, position, wait_seconds)
        for video, held in zip(videos, counters.get(videos), strict=True):
            # A counter that was put since is newer than `truth`; one that is gone is not wrong.
            if held is not None and held.position <= position:
                compared += 1
                if held.likes != truth[video].likes:
                    drifted.append(Drift(video, held, truth[video]))
    if drifted:
        # A fill that came too late takes itself back in a moment.
        time.sleep(FILL_SECONDS)
        now = counters.get([drift.video_id for drift in drifted])
        drifted = [drift for drift, held in zip(drifted, now, strict=True) if held == drift.counter]
    for drift in drifted:
        _report(conn, drift, repair)
    if repair:
        # The next query, or the next like, puts the right counter.
        counters.drop([drift.video_id for drift in drifted])
    COUNTER_DRIFT.set(len(drifted))
    return Reconciliation(compared, drifted)


def _await(counters: Counters, position: int, seconds: float) -> None:
    """Wait until what the read model has at this position is in the counters."""
    deadline = time.monotonic() + seconds
    while (counters.published() or 0) < position:
        if time.monotonic() > deadline:
            raise CountersBehind(
                f"The like counters have not reached position {position}; is a process with the "
                "role `projections` running, and does it reach Redis?"
            )
        time.sleep(WAIT_POLL_SECONDS)


def _report(conn: Connection[TupleRow], drift: Drift, repair: bool) -> None:
    held, truth = drift.counter, drift.truth
    COUNTERS_DRIFTED.inc()
    log.error(
        "like_counter_drifted",
        videoId=str(drift.video_id),
        counter=held.likes,
        counterPosition=held.position,
        likes=truth.likes,
        position=truth.position,
        repaired=repair,
    )
    conn.execute(REPORT, (drift.video_id, *held, *truth, repair))

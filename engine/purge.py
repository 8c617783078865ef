"""Removes what is held about a person who is forgotten, place by place, as each has declared.

Read models are not among these: they remove what they have when they come to the event that says
that the person is forgotten, so that a replay ends the same. Everything else is looked for here, in
batches that lock few rows for a short time. Whoever is interrupted begins again from the start.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import LiteralString

from psycopg import Connection
from psycopg.rows import TupleRow
from redis.asyncio import Redis

from engine.connections import ThreadedConnection
from engine.installation import drop
from engine.personal_data import (
    Deleted,
    Pace,
    PersonalEntries,
    PersonalKeys,
    PersonalPlace,
    PersonalTable,
    Rewritten,
    count_rows,
    given,
    json_bytes,
    statements,
)
from infra.advisory_locks import Lock, lock_in_transaction

ROWS_AT_ONCE = 5_000
KEYS_AT_ONCE = 1_000
UNHURRIED, UNHURRIED_SECONDS = 5.0, 20.0
"""Times as long as a batch took others have the machine behind it, for so long; then, as long."""
BATCH: LiteralString = f" LIMIT {ROWS_AT_ONCE}))"

# Neither live nor brought on by a replay; and whether they are of the version of the live one.
RESTING_COPIES = b"""
SELECT c.subscription, c.version = live.version FROM backlot_checkpoints AS c
JOIN backlot_checkpoints AS live ON live.kind = c.kind AND live.subscription = c.projection
WHERE c.kind = 'projection' AND c.projection = %s AND c.subscription <> c.projection
  AND NOT EXISTS (SELECT FROM projections.replays AS r
                  WHERE r.schema = c.subscription AND r.finished_at IS NULL)
ORDER BY c.subscription
"""


async def purge(
    places: Sequence[PersonalPlace],
    main: ThreadedConnection,
    analytics: ThreadedConnection,
    redis: Redis | None,
    subject: str,
) -> Counter[str]:
    """Remove what all places hold about a person; return how much, by the places' names.

    Twice is once. Raise psycopg.Error and RedisError where something is away: what was done by then
    stays done. Tables come first: what is cached in Redis is made from them.
    """
    tables = [place for place in places if isinstance(place, PersonalTable)]
    gone, pace = Counter[str](), SharedTime()
    for database, is_analytics in ((main, False), (analytics, True)):
        held = [each for each in tables if each.analytics is is_analytics]
        gone += await database.do(purge_tables, held, subject, pace=pace)
    gone += await main.do(purge_copies, tables, subject)
    if redis is not None:
        for place in places:
            gone[place.name] += await _purge_redis(redis, place, subject)
    return +gone


class SharedTime:
    """A pace that leaves the machine to others: most of the time at first, then half of it.

    Whoever is forgotten has to wait for so long anyway (see `SETTLING` in workers/erasure.py).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._unhurried_until = clock() + UNHURRIED_SECONDS

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Pause behind the block; blocks."""
        began = self._clock()
        yield
        time.sleep(self.pause_behind(self._clock() - began))

    def pause_behind(self, took: float) -> float:
        """Return for how many seconds to leave it to others behind work that took so many."""
        left = self._unhurried_until - self._clock()
        return max(took, min(took * UNHURRIED, left))


def purge_tables(
    conn: Connection[TupleRow],
    places: Iterable[PersonalTable],
    subject: str,
    *,
    pace: Pace | None = None,
) -> Counter[str]:
    """Remove what tables of one database hold about a person; return how many rows, by place.

    `conn` is in autocommit mode: each batch of rows is a transaction. Without a pace, the time is
    shared with others. Raise psycopg.Error.
    """
    gone, pace = Counter[str](), pace or SharedTime()
    for place in places:
        if isinstance(place.forget, Rewritten):
            gone[place.name] += place.forget.by(conn, subject, pace)
        elif place.purge is not None and place.projection is None:
            gone[place.name] += _purge_rows(conn, place, place.purge, subject, pace)
    return +gone


def _purge_rows(
    conn: Connection[TupleRow],
    place: PersonalTable,
    change: LiteralString,
    subject: str,
    pace: Pace,
) -> int:
    begin: LiteralString = f"{change}ctid = ANY (ARRAY(SELECT ctid FROM {place.table} AS t WHERE "
    gone = 0
    for statement in statements(conn, place, begin, BATCH):
        went = ROWS_AT_ONCE
        while went == ROWS_AT_ONCE:
            with pace():
                went = conn.execute(statement, given(subject)).rowcount
            gone += went
    return gone


def purge_copies(
    conn: Connection[TupleRow], places: Iterable[PersonalTable], subject: str
) -> Counter[str]:
    """Drop the copies of read models that hold something of a person, and never come to forget it.

    These are what a rollback would go back to, and looks at the past. What another release made
    can't be searched, and goes. Return how many rows they had of the person, by place. Raise
    psycopg.Error.
    """
    gone: Counter[str] = Counter()
    by_projection: defaultdict[str, list[PersonalTable]] = defaultdict(list)
    for place in places:
        if place.projection is not None and not place.stays:
            by_projection[place.projection].append(place)
    for projection, tables in by_projection.items():
        for copy, is_alike in conn.execute(RESTING_COPIES, (projection,)).fetchall():
            held = {place.name: count_rows(conn, place, subject, copy) for place in tables}
            if any(held.values()) or not is_alike:
                _drop_copy(conn, projection, copy)
                gone.update(held)
    return +gone


def _drop_copy(conn: Connection[TupleRow], projection: str, copy: str) -> None:
    """Drop it, unless a replay has taken it up meanwhile."""
    with conn.transaction():
        lock_in_transaction(conn, Lock.PROJECTION_TABLES)
        resting = conn.execute(RESTING_COPIES, (projection,)).fetchall()
        if any(name == copy for name, _ in resting):
            drop(conn, copy)


async def _purge_redis(redis: Redis, place: PersonalPlace, subject: str) -> int:
    match place:
        case PersonalKeys(forget=Deleted()):
            return await _unlink(redis, place, subject)
        case PersonalEntries(forget=Deleted()):
            return await _take_out(redis, place, subject)
    return 0


async def _unlink(redis: Redis, place: PersonalKeys, subject: str) -> int:
    if (key := place.only_key(subject)) is not None:
        return int(await redis.unlink(key))
    found = redis.scan_iter(match=place.of(subject), count=KEYS_AT_ONCE)
    return sum([await redis.unlink(key) async for key in found])


async def _take_out(redis: Redis, place: PersonalEntries, subject: str) -> int:
    """Take the entries out of the hashes, and out of what orders them."""
    gone = 0
    async for name, entry, _ in entries_of(redis, place, subject):
        order = name.removesuffix(place.suffix)
        if await redis.type(order) in (b"zset", "zset"):
            await redis.zrem(order, entry)
        else:
            await redis.lrem(order, 0, entry)
        gone += await redis.hdel(name, entry)
    return gone


async def entries_of(
    redis: Redis, place: PersonalEntries, subject: str
) -> AsyncIterator[tuple[str, str, bytes]]:
    """Yield the entries that name a person: hash, name and value of each. Raise RedisError."""
    needle = json_bytes(subject)
    async for key in redis.scan_iter(match=place.pattern, count=KEYS_AT_ONCE, _type="hash"):
        async for entry, value in redis.hscan_iter(key):
            held = value if isinstance(value, bytes) else value.encode()
            if needle in held:
                yield _text(key), _text(entry), held


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()

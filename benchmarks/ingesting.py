"""Taking events into the analytics: against a bare COPY of the same rows into the same table."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any
from uuid import UUID

import orjson
import psycopg
import uvloop

from backlot.up import calm_garbage_collector
from benchmarks.bench import Bench
from benchmarks.results import Comparison, Side
from engine import telemetry
from engine.connections import ThreadedConnection, connect
from engine.messages import (
    BEHIND_EVENTS,
    DeadMessage,
    IncomingMessage,
    MessageBatch,
    MessageSource,
    RawMessage,
    Unreadable,
)
from engine.subscription import Place
from infra.cancellation import alongside
from projections.analytics.ingest import COPY
from projections.analytics.rules import TOPICS, Rules
from projections.analytics.schema import migrate
from projections.feeds import feeds
from projections.integration_events import from_telemetry
from workers.analytics import Analytics
from workers.consumers import subscribe_sink
from workers.sources import LogSource, received

OURS = "ours: rows, rollups, viewers, sessions, places"
BARE = "bare COPY of the raw rows"
WHOLE = "ours, from the telemetry on"
TELEMETRY = ("telemetry", 0)
LOOK_SECONDS = 0.01
MOST_SECONDS = 600.0
FILL = """
COPY backlot_telemetry (event_id, topic, video_id, user_id, happened_at, details) FROM STDIN
"""
DONE = "SELECT position FROM backlot_checkpoints WHERE kind = 'consumer' AND source = 'telemetry'"

Event = tuple[UUID, str, UUID, str, datetime, dict[str, Any]]


def run(bench: Bench) -> list[Comparison]:
    """Rates in events/s; both sides begin with what lies in memory, as Python values.

    A view and four reports of watch time per session, of 1,000 videos, some far more watched than
    others, within an hour. Ours ends with the commit of rows, rollups and places; noted is its rate
    when it has to read the telemetry as well.
    """
    events, rounds = bench.size(100_000, 2_000), bench.size(5, 1)
    told = history(events)
    messages = [message_of(number, event) for number, event in enumerate(told, 1)]

    def ours(_: int) -> float:
        url = prepared(bench.database())
        return events / uvloop.run(keep(url, Handed(messages), events))

    def whole(_: int) -> float:
        url = prepared(bench.database(), told)
        source = LogSource(feeds(TOPICS, batch_events=BEHIND_EVENTS), wake=asyncio.Event())
        return events / uvloop.run(keep(url, source, events))

    def bare(_: int) -> float:
        return events / copied(prepared(bench.database()), told)

    with calm():
        rates = bench.interleave(rounds, {OURS: ours, BARE: bare, WHOLE: whole})
    notes = {"from the telemetry on": median(rates[WHOLE])}
    sides = Side(OURS, rates[OURS], notes), Side(BARE, rates[BARE])
    return [Comparison("ingesting", "events/s", *sides, at_least=0.4)]


@contextmanager
def calm() -> Iterator[None]:
    """The garbage collector as in a process of Backlot, for all sides.

    It would go through the whole history again and again, which no such process has in memory.
    """
    before = gc.get_threshold()
    calm_garbage_collector()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


class Handed:
    """A source of messages that are ready."""

    kind = "memory"

    def __init__(self, messages: Sequence[IncomingMessage]) -> None:
        self._messages = messages
        self._at = 0

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        self._at = places.get(TELEMETRY, 0)

    async def fetch(self, at_most_seconds: float) -> MessageBatch:
        found = self._messages[self._at : self._at + BEHIND_EVENTS]
        self._at += len(found)
        if not found:
            await asyncio.sleep(at_most_seconds)
        return MessageBatch(found, (), {TELEMETRY: self._at}, len(self._messages) - self._at)

    async def reread(self, raw: RawMessage) -> IncomingMessage:
        raise Unreadable("It is not asked for.")

    async def bury(self, consumer: str, dead: Sequence[DeadMessage]) -> None:
        raise RuntimeError(f"{len(dead)} events could not be taken in.")

    async def stop(self) -> None:
        """It holds nothing."""


def message_of(seq: int, event: Event) -> IncomingMessage:
    """An event as the log's source hands it over."""
    id_, topic, video, user, at, details = event
    taken = telemetry.TelemetryEvent(id_, topic, video, user, at, details)
    return received("telemetry", from_telemetry(seq, taken))


def history(events: int) -> list[Event]:
    """What viewers do, in order of time."""
    chance = random.Random(7)
    videos = [_uuid(chance) for _ in range(1_000)]
    begun = datetime.now(UTC) - timedelta(hours=1)
    found: list[Event] = []
    for _ in range(events // 5):
        video = videos[min(int(chance.paretovariate(0.8)) - 1, len(videos) - 1)]
        user, session = f"user-{chance.randrange(10_000)}", str(_uuid(chance))
        at = begun + timedelta(seconds=chance.uniform(0, 3_500))
        found.append((_uuid(chance), telemetry.VIEWED, video, user, at, {"sessionId": session}))
        for number in range(1, 5):
            details = {"sessionId": session, "seconds": 10.0}
            later = at + timedelta(seconds=10 * number)
            found.append((_uuid(chance), telemetry.WATCH_TIME, video, user, later, details))
    return sorted(found, key=lambda event: event[4])


def prepared(url: str, told: Sequence[Event] = ()) -> str:
    """A database with all tables, in which so much is recorded and nothing counted."""
    with psycopg.connect(url, autocommit=True) as conn:
        migrate(conn)
        with conn.cursor() as cursor, cursor.copy(FILL) as copy:
            for *plain, details in told:
                copy.write_row((*plain, orjson.dumps(details).decode()))
        conn.execute("CHECKPOINT")
    return url


async def keep(url: str, source: MessageSource, events: int) -> float:
    """Count all that the source gives, as in a process of Backlot; seconds, the start included."""
    sink = Analytics(Rules())
    runner = subscribe_sink(url, sink, source, log_url=url, batch_events=100, flush_seconds=0.01)
    with psycopg.connect(url, autocommit=True) as conn:
        started = time.perf_counter()
        async with alongside(runner.run()):
            await _until(conn, events, started + MOST_SECONDS)
            return time.perf_counter() - started


def copied(url: str, told: Sequence[Event]) -> float:
    """COPY the rows that we make of them into the table with its indexes; seconds."""
    rows = [_row(*event) for event in told]
    with connect(url, "bench") as conn:
        started = time.perf_counter()
        with conn.cursor() as cursor, cursor.copy(COPY) as copy:
            for row in rows:
                copy.write_row(row)
        return time.perf_counter() - started


def _row(
    id_: UUID, topic: str, video: UUID, user: str, at: datetime, details: dict[str, Any]
) -> tuple[str | datetime, ...]:
    kept: dict[str, Any] = {"own": False, "session": details["sessionId"]}
    if topic == telemetry.VIEWED:
        kind, kept = "view", {"counts": True, **kept}
    else:
        kind, kept = "watch_time", {"seconds": 10.0, "reported": 10.0, **kept}
    return str(id_), str(video), user, kind, at, orjson.dumps(kept).decode()


def _uuid(chance: random.Random) -> UUID:
    return UUID(int=chance.getrandbits(128), version=4)


async def _until(conn: psycopg.Connection[tuple[int]], position: int, deadline: float) -> None:
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        with suppress(psycopg.errors.UndefinedTable):
            row = conn.execute(DONE).fetchone()
            if row is not None and row[0] >= position:
                return
        if time.perf_counter() > deadline:
            raise TimeoutError(f"The sink did not reach {position} in {MOST_SECONDS:.0f} s.")

"""The index is the same however the log was cut, takes any bytes, and is followed without gaps."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from uuid import uuid4

import psycopg
import pytest
from eventsourcing.persistence import StoredEvent
from psycopg import AsyncConnection

from engine.inspection.index import Audit, Search, head_of, watch
from engine.inspection.streams import Entry, read_entry
from engine.installation import drop
from engine.projection_subscription import ProjectionHost
from engine.subscription import EVENTS, Notifications
from tests.integration.audit_support import (
    AT,
    UNREADABLE,
    append,
    body,
    index,
    log_of,
    random_log,
)
from tests.integration.event_log import recording, rows
from tests.integration.projection_support import caught_up, hosting
from tests.support import ended

TABLES = ("events", "topics", "days", "blocks")


def contents(database_url: str) -> dict[str, list[tuple[object, ...]]]:
    return {
        table: rows(database_url, f"SELECT * FROM audit.{table} ORDER BY 1") for table in TABLES
    }


@pytest.mark.parametrize("batch", [1, 7, 1_000])
def test_a_rebuilt_index_is_equal(database_url: str, batch: int) -> None:
    append(database_url, random_log(3, 300))
    index(database_url)
    built = contents(database_url)
    with psycopg.connect(database_url, autocommit=True) as conn:
        drop(conn, "audit")
    index(database_url, batch=batch)
    assert contents(database_url) == built


def test_it_holds_what_a_look_at_each_event_gives(database_url: str) -> None:
    append(database_url, random_log(5, 400))
    index(database_url)
    wanted = [_indexed(read_entry(stored)) for stored in log_of(database_url)]
    found = contents(database_url)
    assert found["events"] == wanted
    assert sum(int(str(row[1])) for row in found["topics"]) == 400
    unreadable = sum(1 for row in wanted if row[1] is None)
    assert sum(int(str(row[4])) for row in found["topics"]) == unreadable > 0


@pytest.mark.parametrize("state", UNREADABLE, ids=lambda state: repr(state[:30]))
def test_no_bytes_stop_it(database_url: str, state: bytes) -> None:
    good = body(AT, "ann", "request")
    states = [good, state, good]
    append(database_url, [StoredEvent(uuid4(), 1, "odd.v1", each) for each in states])
    index(database_url)
    first, _, last = contents(database_url)["events"]
    assert first[3] == last[3] == "ann"


def test_columns_that_are_empty_or_endless_stop_it_neither(database_url: str) -> None:
    with recording(database_url), psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("INSERT INTO backlot_events VALUES (%s, 1, NULL, NULL, 1)", (uuid4(),))
        topic = "x" * 10_000
        conn.execute("INSERT INTO backlot_events VALUES (%s, 1, %s, '{}', 2)", (uuid4(), topic))
    index(database_url)
    assert [row[2] for row in contents(database_url)["events"]] == ["", ""]


def test_who_follows_sees_each_event_once_and_in_order(database_url: str) -> None:
    saves, writers = 150, 2
    with recording(database_url):
        pass
    with hosting(database_url, Audit()) as host:
        seen = asyncio.run(_follow_beside(database_url, saves, writers))
        head = saves * writers
        assert seen == list(range(1, head + 1))
        assert isinstance(host, ProjectionHost)
        caught_up(database_url, ["audit"], head)


async def _follow_beside(database_url: str, saves: int, writers: int) -> list[int]:
    """What a follower has seen once two writers have recorded everything."""
    loop = asyncio.get_running_loop()
    seen: list[int] = []
    notifications = Notifications(database_url)
    wake = notifications.subscribe(EVENTS)
    listening = asyncio.create_task(notifications.run())
    async with await AsyncConnection.connect(database_url, autocommit=True) as conn:
        after = await head_of(conn)
        with ThreadPoolExecutor(writers) as pool:
            written = [
                loop.run_in_executor(pool, partial(_write, database_url, saves))
                for _ in range(writers)
            ]
            async with asyncio.timeout(60):
                async for stored in watch(conn, Audit(), Search(actor="ann"), after, wake):
                    seen.append(stored.position)
                    if len(seen) == saves * writers:
                        break
            await asyncio.gather(*written)
    await ended(listening)
    return seen


def _write(database_url: str, saves: int) -> None:
    with recording(database_url) as recorder:
        for _ in range(saves):
            recorder.insert_events([StoredEvent(uuid4(), 1, "odd.v1", body(AT, "ann", "r"))])


def _indexed(entry: Entry) -> tuple[object, ...]:
    """The row that an event should have."""
    stored = entry.stored
    if b"\\u0000" in stored.state:
        # JSON that PostgreSQL has no text for: listed as what it is, found by its place only.
        return (stored.position, None, stored.topic, None, None, None)
    told = (entry.actor, entry.correlation_id, entry.causation_id)
    actor, correlation, cause = (
        text if text is not None and len(text.encode()) <= 1024 else None for text in told
    )
    cause = None if cause == correlation else cause
    return (stored.position, entry.recorded_at, stored.topic, actor, correlation, cause)

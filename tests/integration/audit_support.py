"""Logs for the tests of the audit: any bytes at all, indexed as far as a test wants it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

import orjson
import psycopg
from eventsourcing.persistence import StoredEvent
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from engine import checkpoints
from engine.connections import connect
from engine.inspection.index import Audit
from engine.installation import install
from engine.log import Stored
from engine.projection import Applier
from tests.integration.event_log import recording

T = TypeVar("T")

AT = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
STREAMS = [UUID(int=number, version=4) for number in range(1, 13)]
TOPICS = ("comment.posted.v1", "comment.posted.v2", "comment.edited.v1", "upload.started.v1",
          "video_likes.liked.v1", "unheard.of", "odd")  # fmt: skip
ACTORS = ("ann", "bob", "translation", "Zoë")

# What no JSON decoder takes, what only PostgreSQL's refuses, and what is of odd types.
UNREADABLE: tuple[bytes, ...] = (
    b"",
    b"not json",
    b"\xff\xfe{}",
    b'{"actor":"ann\\u0000"}',
    b'{"actor":"ann","size":1e999999}',
    b'{"actor":"\xed\xa0\x80"}',
    b"[" * 50_000,
    b"[1,2]",
    b"null",
    b'"text"',
    b"7",
    b'{"actor":7,"timestamp":"now","correlation_id":["a"],"causation_id":{}}',
    b'{"actor":"ann","timestamp":"2026-13-45T00:00:00+00:00"}',
    b'{"actor":"ann","timestamp":"2026-11-22T09:30:00"}',
    b'{"actor":"ann","timestamp":"infinity"}',
    b'{"timestamp":1,"actor":null}',
    b'{"actor":"' + b"x" * 5_000 + b'","correlation_id":"' + b"y" * 9_000 + b'"}',
)


def body(at: datetime, actor: str, correlation: str, cause: str | None = None) -> bytes:
    """The bytes of an event that tells when, who and why."""
    told = {
        "timestamp": at,
        "actor": actor,
        "correlation_id": correlation,
        "causation_id": cause or correlation,
        "content": f"by {actor}",
    }
    return orjson.dumps(told)


def random_log(seed: int, count: int) -> list[StoredEvent]:
    """Events of a few streams, a tenth of them unreadable; times rise, but not strictly."""
    chance = random.Random(seed)
    versions = dict.fromkeys(STREAMS, 0)
    made: list[StoredEvent] = []
    for number in range(count):
        stream = chance.choice(STREAMS)
        versions[stream] += 1
        at = AT + timedelta(seconds=60 * number + chance.randint(-300, 300))
        state = body(at, chance.choice(ACTORS), f"request-{chance.randint(1, 9)}")
        if chance.random() < 0.1:
            state = chance.choice(UNREADABLE)
        made.append(StoredEvent(stream, versions[stream], chance.choice(TOPICS), state))
    return made


def append(database_url: str, events: Sequence[StoredEvent]) -> None:
    """Record them, in this order."""
    with recording(database_url) as recorder:
        recorder.insert_events(events)


def index(database_url: str, until: int | None = None, batch: int = 1_000) -> None:
    """Have the audit's index take in the log up to a position, or all of it."""
    audit = Audit()
    with connect(database_url, "test") as conn:
        install(conn, [audit])
        applier = Applier(audit, batch_events=batch)
        seen = checkpoints.look(conn, audit.schema)
        assert seen is not None
        position, head = seen.position, seen.head if until is None else until
        while position < head:
            step = applier.advance(conn, position, head)
            assert not step.broken
            position = step.until


def log_of(database_url: str) -> list[Stored]:
    """The whole log, in order."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        rows = conn.execute(
            "SELECT notification_id, originator_id, originator_version, topic, state "
            "FROM backlot_events ORDER BY notification_id"
        )
        return [Stored(*row) for row in rows.fetchall()]


def ask(database_url: str, question: Callable[[AsyncConnection[TupleRow]], Awaitable[T]]) -> T:
    """What a question comes to, on a connection of its own."""

    async def work() -> T:
        async with await AsyncConnection.connect(database_url, autocommit=True) as conn:
            return await question(conn)

    return asyncio.run(work())

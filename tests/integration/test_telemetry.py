"""Views, watch time and shares: acknowledged once durable, each counted once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from infra.telemetry import SHARED, VIEWED, WATCH_TIME, Telemetry, TelemetryEvent, Views, install
from tests.integration.event_log import rows

VIDEO = UUID("5f0c2f0a-7f0e-4a3c-9a39-1c6a54f2b7aa")
AT = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)


@pytest.fixture
def database(database_url: str) -> str:
    with psycopg.connect(database_url, autocommit=True) as conn:
        install(conn)
    return database_url


def event(topic: str = VIEWED, video: UUID = VIDEO, **details: Any) -> TelemetryEvent:
    return TelemetryEvent(uuid4(), topic, video, "ann", AT, details)


def run(database: str, scenario: Callable[[Telemetry], Coroutine[Any, Any, None]]) -> None:
    async def opened() -> None:
        telemetry = Telemetry(database)
        telemetry.open()
        try:
            await scenario(telemetry)
        finally:
            await telemetry.close()

    asyncio.run(opened())


def views(database: str, *videos: UUID) -> dict[UUID, int]:
    """As both sides read them: the command bus and the query API."""

    async def read() -> dict[UUID, int]:
        async with await psycopg.AsyncConnection.connect(database) as conn:
            return await Views().views(conn, videos)

    with psycopg.connect(database) as conn:
        counted = Views().of(conn.cursor(), videos)
    assert asyncio.run(read()) == counted
    return counted


def test_what_was_taken_is_there_with_all_that_was_said(database: str) -> None:
    taken = [
        event(VIEWED, sessionId="s-1"),
        event(WATCH_TIME, sessionId="s-1", seconds=12.5),
        event(SHARED, channel="mail ✉ \"'\\")._replace(user_id=None),
    ]

    async def scenario(telemetry: Telemetry) -> None:
        for each in taken:
            await telemetry.record(each)
            assert rows(
                database,
                "SELECT event_id, topic, video_id, user_id, happened_at, details "
                "FROM backlot_telemetry WHERE event_id = %s",
                [each.event_id],
            ) == [(each.event_id, each.topic, VIDEO, each.user_id, AT, each.details)]

    run(database, scenario)


def test_only_views_are_counted_by_video(database: str) -> None:
    other, unseen = uuid4(), uuid4()
    taken = [event(VIEWED) for _ in range(250)] + [event(VIEWED, other) for _ in range(3)]
    taken += [event(WATCH_TIME), event(SHARED, unseen)]

    async def scenario(telemetry: Telemetry) -> None:
        await asyncio.gather(*(telemetry.record(each) for each in taken))

    run(database, scenario)
    assert views(database, VIDEO, other, unseen) == {VIDEO: 250, other: 3}
    assert views(database) == {}


def test_many_at_once_are_few_transactions(database: str) -> None:
    async def scenario(telemetry: Telemetry) -> None:
        await asyncio.gather(*(telemetry.record(event()) for _ in range(500)))

    run(database, scenario)
    found = rows(database, "SELECT count(*), count(DISTINCT xmin::text) FROM backlot_telemetry")
    assert found == [(500, 1)]


def test_the_same_event_again_counts_once(database: str) -> None:
    same = event()

    async def scenario(telemetry: Telemetry) -> None:
        await asyncio.gather(*(telemetry.record(same) for _ in range(5)))
        await telemetry.record(same)

    run(database, scenario)
    assert views(database, VIDEO) == {VIDEO: 1}


def test_what_can_not_be_stored_is_its_senders_failure_alone(database: str) -> None:
    async def scenario(telemetry: Telemetry) -> None:
        taken = [event(), event(SHARED, channel="a\x00b"), event()]
        outcomes = await asyncio.gather(
            *(telemetry.record(each) for each in taken), return_exceptions=True
        )
        assert [isinstance(each, psycopg.DataError) for each in outcomes] == [False, True, False]
        assert (outcomes[0], outcomes[2]) == (None, None)

    run(database, scenario)
    assert views(database, VIDEO) == {VIDEO: 2}


def test_a_lost_connection_is_told_and_then_replaced(database: str) -> None:
    async def scenario(telemetry: Telemetry) -> None:
        await telemetry.record(event())
        rows(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        await telemetry.record(event())

    run(database, scenario)
    assert views(database, VIDEO) == {VIDEO: 2}


def test_without_its_tables_everybody_is_told(database_url: str) -> None:
    async def scenario(telemetry: Telemetry) -> None:
        outcomes = await asyncio.gather(
            *(telemetry.record(event()) for _ in range(3)), return_exceptions=True
        )
        assert [type(each) for each in outcomes] == [psycopg.errors.UndefinedFunction] * 3

    run(database_url, scenario)


def test_closing_finishes_what_was_accepted(database: str) -> None:
    async def scenario(telemetry: Telemetry) -> None:
        accepted = [asyncio.create_task(telemetry.record(event())) for _ in range(50)]
        await asyncio.sleep(0)
        await telemetry.close()
        assert all(task.done() and task.exception() is None for task in accepted)

    run(database, scenario)
    assert views(database, VIDEO) == {VIDEO: 50}


def test_several_may_install_at_once(database_url: str) -> None:
    def start(_: int) -> None:
        with psycopg.connect(database_url, autocommit=True) as conn:
            install(conn)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(start, range(8))) == [None] * 8

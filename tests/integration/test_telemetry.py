"""Views, watch time and shares: acknowledged once durable, each counted once; a viewer within the
window too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from engine.installation import make_tables
from engine.telemetry import (
    SHARED,
    VIEWED,
    WATCH_TIME,
    Telemetry,
    TelemetryEvent,
    forget_sessions,
    views_of,
)
from projections.integration_events import TELEMETRY
from tests.integration.analytics_support import REPEAT, migrated, stored_from
from tests.integration.event_log import rows
from tests.real_inputs import RealInput, each

VIDEO = UUID("5f0c2f0a-7f0e-4a3c-9a39-1c6a54f2b7aa")
AT = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)


@pytest.fixture
def database(database_url: str) -> str:
    return database_url


def event(topic: str = VIEWED, video: UUID = VIDEO, **details: Any) -> TelemetryEvent:
    return TelemetryEvent(uuid4(), topic, video, "ann", AT, details)


def run(database: str, scenario: Callable[[Telemetry], Coroutine[Any, Any, None]]) -> None:
    async def opened() -> None:
        telemetry = Telemetry(database, repeat=REPEAT)
        telemetry.open()
        try:
            await scenario(telemetry)
        finally:
            await telemetry.close()

    asyncio.run(opened())


def views(database: str, *videos: UUID) -> dict[UUID, int]:
    with psycopg.connect(database) as conn:
        return views_of(conn.cursor(), videos)


def test_what_was_taken_is_there_with_all_that_was_said(database: str) -> None:
    taken = [
        event(VIEWED, sessionId="s-1"),
        event(WATCH_TIME, sessionId="s-1", seconds=12.5),
        event(SHARED, channel="mail ✉ \"'\\")._replace(user_id=None),
    ]

    async def scenario(telemetry: Telemetry) -> None:
        for one in taken:
            await telemetry.record(one)
            assert rows(
                database,
                "SELECT event_id, topic, video_id, user_id, happened_at, details "
                "FROM backlot_telemetry WHERE event_id = %s",
                [one.event_id],
            ) == [(one.event_id, one.topic, VIDEO, one.user_id, AT, one.details)]

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


def test_without_its_tables_everybody_is_told(empty_database_url: str) -> None:
    async def scenario(telemetry: Telemetry) -> None:
        outcomes = await asyncio.gather(
            *(telemetry.record(event()) for _ in range(3)), return_exceptions=True
        )
        assert [type(each) for each in outcomes] == [psycopg.errors.UndefinedFunction] * 3

    run(empty_database_url, scenario)


def test_closing_finishes_what_was_accepted(database: str) -> None:
    async def scenario(telemetry: Telemetry) -> None:
        accepted = [asyncio.create_task(telemetry.record(event())) for _ in range(50)]
        await asyncio.sleep(0)
        await telemetry.close()
        assert all(task.done() and task.exception() is None for task in accepted)

    run(database, scenario)
    assert views(database, VIDEO) == {VIDEO: 50}


def test_several_may_install_at_once(empty_database_url: str) -> None:
    def start(_: int) -> None:
        with psycopg.connect(empty_database_url, autocommit=True) as conn:
            make_tables(conn)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(start, range(8))) == [None] * 8


OLD = "UPDATE backlot_view_sessions SET began_at = began_at - %s RETURNING 1"
FUNCTION_BEFORE = """
CREATE FUNCTION backlot_take_telemetry(uuid[], text[], uuid[], text[], timestamptz[], text[],
                                       text[])
RETURNS void LANGUAGE sql AS 'SELECT NULL::void'
"""


def view(who: str, video: UUID = VIDEO) -> TelemetryEvent:
    """What `POST /watch` records of a viewer; `-client` is one without a name."""
    user = None if who.startswith("-") else who
    taken = event(VIEWED, video, sessionId=str(uuid4()))
    return taken._replace(user_id=user, viewer=who, happened_at=datetime.now(UTC))


def pass_by(database: str, seconds: int) -> None:
    """Let every session have begun so much earlier."""
    rows(database, OLD, [timedelta(seconds=seconds)])


@each("watches")
def test_a_viewer_within_the_window_is_one_view_wherever_it_is_told(
    database: str, real: RealInput
) -> None:
    """By the counter, by the telemetry that all consumers follow, and by the analytics."""

    async def scenario(telemetry: Telemetry) -> None:
        sessions = set()
        for step in real.text.split():
            if step.startswith("+"):
                pass_by(database, int(step))
            else:
                sessions.add(await telemetry.record(view(step)))
        assert len(sessions) == int(real.right)

    run(database, scenario)
    right = int(real.right)
    migrated(database)
    stored_from(database, TELEMETRY)
    assert views(database, VIDEO) == {VIDEO: right}
    assert rows(database, "SELECT count(*) FROM backlot_telemetry") == [(right,)]
    assert rows(database, "SELECT sum(views)::int FROM analytics.video_hourly") == [(right,)]


def test_replicas_that_take_a_viewers_view_at_once_count_one(database: str) -> None:
    async def scenario(telemetry: Telemetry) -> None:
        others = [Telemetry(database, repeat=REPEAT) for _ in range(3)]
        for other in others:
            other.open()
        taken = [one.record(view("bob")) for one in (telemetry, *others) for _ in range(25)]
        sessions = await asyncio.gather(*taken)
        assert len(set(sessions)) == 1
        for other in others:
            await other.close()

    run(database, scenario)
    assert views(database, VIDEO) == {VIDEO: 1}


def test_each_video_has_its_own_window(database: str) -> None:
    other = uuid4()

    async def scenario(telemetry: Telemetry) -> None:
        taken = [view("bob"), view("bob", other), view("bob")]
        first, second, again = [await telemetry.record(one) for one in taken]
        assert first == again != second

    run(database, scenario)
    assert views(database, VIDEO, other) == {VIDEO: 1, other: 1}


def test_a_view_that_is_told_again_keeps_its_session_even_after_the_window(database: str) -> None:
    same = view("bob")

    async def scenario(telemetry: Telemetry) -> None:
        told = await telemetry.record(same)
        pass_by(database, 4000)
        assert await telemetry.record(same) == told == UUID(same.details["sessionId"])
        assert await telemetry.record(view("bob")) != told

    run(database, scenario)
    assert views(database, VIDEO) == {VIDEO: 2}


def test_a_session_outlives_every_process_and_is_forgotten_after_its_window(database: str) -> None:
    found: list[UUID | None] = []

    async def scenario(telemetry: Telemetry) -> None:
        found.append(await telemetry.record(view("bob")))

    run(database, scenario)
    with psycopg.connect(database, autocommit=True) as conn:
        assert forget_sessions(conn, REPEAT) == 0
        run(database, scenario)
        pass_by(database, 4000)
        assert forget_sessions(conn, REPEAT) == 1
    run(database, scenario)
    assert (found[0] == found[1], found[1] == found[2]) == (True, False)
    assert views(database, VIDEO) == {VIDEO: 2}


def test_a_database_of_an_earlier_release_counts_on(empty_database_url: str) -> None:
    """While it is upgraded its processes may still call the function of before."""
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute(FUNCTION_BEFORE)
        make_tables(conn)

    async def scenario(telemetry: Telemetry) -> None:
        await asyncio.gather(*(telemetry.record(view("bob")) for _ in range(3)))

    run(empty_database_url, scenario)
    assert views(empty_database_url, VIDEO) == {VIDEO: 1}

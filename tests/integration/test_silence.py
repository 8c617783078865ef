"""A PostgreSQL that hangs: nobody waits without an end, and afterwards all is as before."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from eventsourcing.persistence import OperationalError
from psycopg.errors import ConnectionTimeout, QueryCanceled
from psycopg_pool import PoolTimeout
from structlog.testing import capture_logs

from engine.command_bus import CommandBus, Executed
from engine.event_store import GroupCommitRecorder, IdempotencyKey, open_recorder
from engine.installation import make_tables
from engine.subscription import Notifications
from engine.telemetry import VIEWED, Telemetry, TelemetryEvent
from infra import metrics
from infra.batcher import NotBegun
from infra.postgres import connection
from infra.postgres.connection import (
    DatabaseSilent,
    Limits,
    LivePool,
    breaker_of,
    is_silence,
    make_pool,
    open_async_connection,
    open_connection,
    thread_pool,
    unhurried,
)
from infra.postgres.server import EmbeddedPostgres
from tests.integration.buses import Toggle, execute, execute_all, with_bus
from tests.support import ended, eventually, hung, until

BRIEF = Limits(connect=3, pool=2.0, statement=1.0)


@pytest.fixture(scope="module")
def server(short_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A server of our own: nobody else must wait while it hangs."""
    settings = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "64MB"}
    with EmbeddedPostgres(short_dir / "silent", settings=settings) as opened:
        yield opened


@pytest.fixture
def url(server: EmbeddedPostgres) -> Iterator[str]:
    yield server.url
    # What this process knows of the server must not reach the next test.
    breaker_of.cache_clear()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(connection, "PAUSE_SECONDS", 0.2)


@pytest.fixture
def without_collector() -> Iterator[None]:
    """As in a server, whose collector hardly ever looks at what is old."""
    gc.disable()
    yield
    gc.enable()


def pid_of(server: EmbeddedPostgres) -> int:
    assert server.pid is not None
    return server.pid


def sessions(url: str) -> int:
    """How many connections the server has beside the one that asks."""
    with psycopg.connect(url) as conn:
        query = "SELECT count(*) FROM pg_stat_activity WHERE client_port IS NOT NULL"
        (count,) = conn.execute(query).fetchone() or (0,)
        return int(count) - 1


class TestThreads:
    def test_short_work_is_told_and_the_connection_given_up(
        self, server: EmbeddedPostgres, url: str
    ) -> None:
        before = metrics.value("backlot_database_silences_total")
        with open_connection(url, "test", BRIEF) as conn, capture_logs() as logs:
            with hung(pid_of(server)), pytest.raises(DatabaseSilent, match="said nothing"):
                conn.execute("SELECT 1")
            assert conn.closed
        assert metrics.value("backlot_database_silences_total") == before + 1
        silence = {"event": "database_silent", "log_level": "error", "seconds": 2.0}
        assert logs == [{**silence, "connection": "backlot test"}]

    def test_a_slow_statement_is_no_silence(self, url: str) -> None:
        with open_connection(url, "test", BRIEF) as conn:
            with pytest.raises(QueryCanceled):
                conn.execute("SELECT pg_sleep(60)")
            assert conn.execute("SELECT 1").fetchone() == (1,)

    def test_a_transaction_ends_with_its_connection(
        self, server: EmbeddedPostgres, url: str
    ) -> None:
        with open_connection(url, "test", BRIEF) as conn:
            conn.execute("CREATE TEMPORARY TABLE t (n int)")
            with (
                hung(pid_of(server)),
                pytest.raises(DatabaseSilent),
                conn.transaction(),
            ):
                conn.execute("INSERT INTO t VALUES (1)")
            assert conn.closed

    @pytest.mark.parametrize("limits", [connection.LONG_WORK, BRIEF], ids=["long", "unhurried"])
    def test_long_work_takes_its_time_while_the_server_lives(
        self, url: str, limits: Limits, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []
        lives = connection._lives

        def ask(info: psycopg.ConnectionInfo) -> bool:
            asked.append(info)
            return lives(info)

        monkeypatch.setattr(connection, "_lives", ask)
        with open_connection(url, "test", limits) as conn, unhurried(conn):
            # Three times as long as it takes to ask.
            conn.execute("SELECT pg_sleep(2)")
        assert len(asked) >= 2
        with open_connection(url, "test", BRIEF) as conn:
            with unhurried(conn):
                pass
            assert conn.limits == BRIEF
            assert conn.execute("SHOW statement_timeout").fetchone() == ("1s",)

    def test_long_work_ends_where_the_server_hangs(
        self, server: EmbeddedPostgres, url: str
    ) -> None:
        with (
            open_connection(url, "test") as conn,
            hung(pid_of(server)),
            pytest.raises(DatabaseSilent),
        ):
            conn.execute("SELECT 1")

    def test_a_server_that_refuses_newcomers_lives(self, server: EmbeddedPostgres) -> None:
        # What is asked for a newcomer is refused: there is no such database.
        with open_connection(server.url_of("postgres"), "test") as conn:
            conn.execute("CREATE DATABASE going")
            with open_connection(server.url_of("going"), "test") as there:
                conn.execute("ALTER DATABASE going ALLOW_CONNECTIONS false")
                there.execute("SELECT pg_sleep(1.2)")
            conn.execute("DROP DATABASE going")

    def test_who_waits_for_notifications_may_wait(self, url: str) -> None:
        async def listen() -> None:
            notifications = Notifications(url)
            wake = notifications.subscribe()
            listening = asyncio.create_task(notifications.run())
            await wake.wait()
            await asyncio.sleep(1.5)
            await ended(listening)

        with capture_logs() as logs:
            asyncio.run(listen())
        assert logs == []


class TestNewcomers:
    def test_one_at_a_time_asks_and_the_others_are_told_at_once(
        self, server: EmbeddedPostgres, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "PAUSE_SECONDS", 600.0)
        with hung(pid_of(server)):
            with pytest.raises(ConnectionTimeout):
                open_connection(url, "test")
            for _ in range(100):
                with pytest.raises(DatabaseSilent, match="a moment ago"):
                    open_connection(url, "test")

    def test_when_it_answers_again_everybody_may_come(
        self, server: EmbeddedPostgres, url: str
    ) -> None:
        with hung(pid_of(server)), pytest.raises(ConnectionTimeout):
            open_connection(url, "test")
        with capture_logs() as logs:
            eventually(lambda: not fails(url))
        assert [entry["event"] for entry in logs] == ["database_answers"]
        for _ in range(3):
            open_connection(url, "test").close()

    def test_who_gives_up_leaves_no_session(
        self, server: EmbeddedPostgres, url: str, without_collector: None
    ) -> None:
        with hung(pid_of(server)), pytest.raises(ConnectionTimeout):
            open_connection(url, "gone")
        eventually(lambda: sessions(url) == 0)

    def test_nor_on_an_event_loop(
        self, server: EmbeddedPostgres, url: str, without_collector: None
    ) -> None:
        with hung(pid_of(server)), pytest.raises(ConnectionTimeout):
            asyncio.run(open_async_connection(url, "gone", BRIEF))
        eventually(lambda: sessions(url) == 0)

    def test_an_answer_on_an_old_connection_counts(
        self, server: EmbeddedPostgres, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connection, "PAUSE_SECONDS", 600.0)
        with open_connection(url, "test", BRIEF) as old:
            with hung(pid_of(server)), pytest.raises(ConnectionTimeout):
                open_connection(url, "test")
            assert fails(url)
            old.execute("SELECT 1")
            assert not fails(url)


def fails(url: str) -> bool:
    try:
        open_connection(url, "test").close()
    except (DatabaseSilent, ConnectionTimeout):
        return True
    return False


class TestLoops:
    def test_a_query_is_told_and_so_is_who_waits_for_a_connection(
        self, server: EmbeddedPostgres, url: str
    ) -> None:
        async def answers(pool: LivePool) -> bool:
            try:
                async with pool.connection() as conn:
                    await conn.execute("SELECT 1")
            except (DatabaseSilent, PoolTimeout):
                return False
            return True

        async def scenario() -> None:
            pool = make_pool(url, max_size=2, limits=BRIEF)
            await pool.open(wait=True)
            with hung(pid_of(server)):
                assert not any(await asyncio.gather(*(answers(pool) for _ in range(20))))
                # By now there is no connection left, and none to be had.
                assert not await answers(pool)
            await until(lambda: answers(pool))
            await pool.close()
            await asyncio.to_thread(eventually, lambda: sessions(url) == 0)

        asyncio.run(scenario())

    def test_a_cancelled_query_does_not_keep_who_cancelled(
        self, server: EmbeddedPostgres, url: str
    ) -> None:
        async def scenario() -> None:
            async with await open_async_connection(url, "test", BRIEF) as conn:
                asking = asyncio.create_task(conn.execute("SELECT pg_sleep(60)"))
                await asyncio.sleep(0)
                with hung(pid_of(server)):
                    asking.cancel()
                    with pytest.raises((asyncio.CancelledError, DatabaseSilent)):
                        await asking

        asyncio.run(scenario())


@pytest.fixture
def recorder(url: str) -> Iterator[GroupCommitRecorder]:
    opened = open_recorder(url, limits=BRIEF, name=f"log_{uuid4().hex[:8]}")
    with closing(opened.datastore):
        opened.create_table()
        yield opened


class TestCommands:
    def test_a_command_of_unknown_outcome_is_recorded_once_under_its_key(
        self,
        server: EmbeddedPostgres,
        recorder: GroupCommitRecorder,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It hangs between the decision and the commit; the server commits when it goes on."""
        command = Toggle(uuid4())
        key = IdempotencyKey("key", b"request", lambda liked: (200, str(liked).encode()))
        append = recorder._append
        hanging = ExitStack()

        def hang_then_append(conn: Any, arguments: Any) -> Any:
            monkeypatch.undo()
            hanging.enter_context(hung(pid_of(server)))
            return append(conn, arguments)

        monkeypatch.setattr(recorder, "_append", hang_then_append)

        async def scenario(bus: CommandBus) -> None:
            with hanging, pytest.raises(OperationalError) as away:
                await execute(bus, command, key=key)
            assert is_silence(away.value)

            async def repeated() -> bool:
                try:
                    outcome = await execute(bus, command, key=key)
                except OperationalError:
                    return False
                # Kept with the first attempt, or decided now: it is the same answer.
                liked = outcome.answer if isinstance(outcome, Executed) else outcome.body == b"True"
                assert liked
                return True

            await until(repeated)

        with_bus(recorder, scenario)
        assert recorder.max_notification_id() == 1

    def test_a_crowd_of_commands_is_told_before_long(
        self,
        server: EmbeddedPostgres,
        recorder: GroupCommitRecorder,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        batches = []
        fetch = recorder.fetch

        def count(*asked: Any) -> Any:
            batches.append(asked)
            return fetch(*asked)

        monkeypatch.setattr(recorder, "fetch", count)

        async def scenario(bus: CommandBus) -> None:
            with hung(pid_of(server)):
                outcomes = await execute_all(bus, [Toggle(uuid4()) for _ in range(1_000)])
            assert {type(outcome) for outcome in outcomes} == {OperationalError, NotBegun}
            # Not a hundred batches, each of which would find the same.
            assert len(batches) < 5

        with_bus(recorder, scenario, max_batch=10)

    def test_telemetry_is_told_and_taken_again(self, server: EmbeddedPostgres, url: str) -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            make_tables(conn)

        def event() -> TelemetryEvent:
            return TelemetryEvent(uuid4(), VIEWED, uuid4(), None, datetime.now(UTC), {})

        async def scenario() -> None:
            telemetry = Telemetry(url, repeat=timedelta(hours=1), limits=BRIEF)
            telemetry.open()

            async def taken() -> bool:
                try:
                    await telemetry.record(event())
                except psycopg.OperationalError:
                    return False
                return True

            await until(taken)
            with hung(pid_of(server)):
                assert not await taken()
            await until(taken)
            await telemetry.close()

        asyncio.run(scenario())


def test_no_connection_of_a_pool_is_lost(server: EmbeddedPostgres, url: str) -> None:
    pool = thread_pool(url, "test", BRIEF, size=3)
    pool.open(wait=True)

    def ask(_: int) -> bool:
        try:
            with pool.connection() as conn:
                conn.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    with closing(pool), ThreadPoolExecutor(10) as threads:
        with hung(pid_of(server)):
            assert not any(threads.map(ask, range(30)))
        eventually(lambda: ask(0))
        eventually(lambda: pool.get_stats()["pool_size"] == 3 and sessions(url) == 3)
    eventually(lambda: sessions(url) == 0)

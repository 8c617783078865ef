"""What tests of the event log and of the buses on it share."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from multiprocessing.context import BaseContext
from unittest.mock import patch

import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from engine.connections import connect
from engine.event_store import GroupCommitRecorder
from infra.postgres.server import EmbeddedPostgres
from projections.analytics.schema import Shape
from tests.fork_server import fork_server
from tests.integration.event_log import recording
from tests.integration.operator_desk import Backlot, Desk, desk, in_group
from tests.integration.projection_support import Writer
from tests.integration.trending_support import analytics_database, analytics_of
from tests.openai_server import OpenAIServer, openai_server
from tests.support import CopyOf, DatabaseWith, eventually

CONNECTED = b"SELECT FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"


@pytest.fixture(scope="session")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Two processes that are ready to work at the same time."""
    with ProcessPoolExecutor(2, mp_context=fork_server()) as pool:
        for ready in [pool.submit(time.sleep, 0.5) for _ in range(2)]:
            ready.result()
        yield pool


@pytest.fixture(scope="session", autouse=True)
def _forked_parts() -> Iterator[None]:
    """Have parts of replays built by forks of a process that has imported the program.

    A new interpreter for each part takes longer than the whole replay of a test. In those that
    the tests start as processes of their own, parts are built as in production.
    """
    get_context = multiprocessing.get_context

    def forked(method: str | None = None) -> BaseContext:
        return fork_server() if method == "spawn" else get_context(method)

    with patch("engine.replay.build.multiprocessing.get_context", forked):
        yield


@pytest.fixture(scope="session")
def running() -> Iterator[OpenAIServer]:
    """A server that speaks OpenAI's API."""
    with openai_server() as server:
        yield server


@pytest.fixture
def server(running: OpenAIServer) -> OpenAIServer:
    """The same, without what earlier tests asked it and told it to answer."""
    running.forget()
    return running


@pytest.fixture(scope="session")
def database_with(
    postgres: EmbeddedPostgres, copy_of: CopyOf, template: str
) -> Iterator[DatabaseWith]:
    """Makes databases in which a function has recorded what many tests begin with.

    The function is called once, with the URL of the database of which the others are copies, and
    leaves no connection to it.
    """
    with ExitStack() as stack, psycopg.connect(postgres.url, autocommit=True) as admin:

        @cache
        def name_of(record: Callable[[str], object]) -> str:
            url = stack.enter_context(copy_of(template))
            record(url)
            name = str(conninfo_to_dict(url)["dbname"])
            # PostgreSQL waits for no more than five seconds until the last connection is gone.
            eventually(lambda: not admin.execute(CONNECTED, [name]).fetchall())
            return name

        yield lambda record: copy_of(name_of(record))


@pytest.fixture(scope="session")
def log_database(postgres: EmbeddedPostgres, template: str) -> str:
    """A database with the tables of the event store."""
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        create = sql.SQL("CREATE DATABASE test_log TEMPLATE {}")
        admin.execute(create.format(sql.Identifier(template)))
    return postgres.url_of("test_log")


@pytest.fixture
def log_url(log_database: str) -> str:
    """The URL of a database with an empty event log; far faster than a database of its own."""
    with psycopg.connect(log_database, autocommit=True) as conn:
        conn.execute("TRUNCATE backlot_events, backlot_events_answers, backlot_checkpoints")
    return log_database


@pytest.fixture
def recorder(log_url: str) -> Iterator[GroupCommitRecorder]:
    with recording(log_url) as opened:
        yield opened


@pytest.fixture
def another(recorder: GroupCommitRecorder, log_url: str) -> Iterator[GroupCommitRecorder]:
    """A second recorder on the same log, as another process has it."""
    with recording(log_url) as opened:
        yield opened


@pytest.fixture
def writer(database_url: str) -> Iterator[Writer]:
    """Records events of the domain in this test's own database."""
    opened = Writer(database_url)
    yield opened
    opened.close()


@pytest.fixture
def conn(database_url: str) -> Iterator[Connection[TupleRow]]:
    """A connection to this test's own database, as projections have it."""
    with connect(database_url, "test") as opened:
        yield opened


@pytest.fixture
def root(database_url: str) -> Iterator[Desk]:
    with desk(database_url) as opened:
        yield opened


@pytest.fixture
def backlot(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Backlot:
    monkeypatch.setenv("DATABASE_URL", database_url)
    return in_group("projections", monkeypatch, capsys)


@pytest.fixture
def analytics(database_url: str) -> Iterator[Connection[TupleRow]]:
    """A connection to analytics in this test's own database."""
    with analytics_database(database_url) as conn:
        yield conn


@pytest.fixture(params=list(Shape))
def both_shapes(request: pytest.FixtureRequest) -> Iterator[Connection[TupleRow]]:
    """The same on PostgreSQL alone, and on TimescaleDB where there is one."""
    with analytics_of(request.param, request) as conn:
        yield conn

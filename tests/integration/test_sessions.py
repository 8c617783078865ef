"""A session is the same whatever the server, the role, the database and the environment say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any, LiteralString
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from engine.connections import connect as connect_for_projections
from engine.event_store import open_recorder
from engine.seals.chain import connect as connect_for_seals
from infra.postgres.connection import (
    SHORT_WORK,
    make_pool,
    open_async_connection,
    open_connection,
    thread_pool,
)
from tests.real_inputs import RealInput, each

# Of the role in this database, as `ALTER DATABASE … SET` is of all roles.
ROLE = "ALTER ROLE CURRENT_USER IN DATABASE {database} SET {name} = {value}"
DATABASE = "ALTER DATABASE {database} SET {name} = {value}"
LIMITS = {"statement_timeout", "lock_timeout"}
# psycopg's own variables beside PGOPTIONS.
VARIABLES = {"timezone": "PGTZ", "datestyle": "PGDATESTYLE", "client_encoding": "PGCLIENTENCODING"}


def named(setting: str) -> tuple[str, str]:
    name, _, value = setting.partition("=")
    return name, value


def told(url: str, statement: LiteralString, setting: str) -> None:
    """Have the server wish something for the sessions that begin from now on."""
    name, value = named(setting)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            sql.SQL(statement).format(
                database=sql.Identifier(conn.info.dbname),
                name=sql.Identifier(name),
                value=sql.Literal(value),
            )
        )


def shown(conn: psycopg.Connection[Any], name: str) -> str:
    row = conn.execute(f"SELECT current_setting('{name}') AS v".encode()).fetchone()
    assert row is not None
    return str(row["v"] if isinstance(row, dict) else row[0])


async def shown_there(conn: psycopg.AsyncConnection[Any], name: str) -> str:
    row = await (await conn.execute(f"SELECT current_setting('{name}')".encode())).fetchone()
    assert row is not None
    return str(row[0])


@contextmanager
def every_session(url: str) -> Iterator[list[psycopg.Connection[Any]]]:
    """A connection of each kind that threads have."""
    recorder = open_recorder(url)
    pool = thread_pool(url, "test", SHORT_WORK, size=1)
    pool.open()
    with (
        closing(recorder.datastore),
        closing(pool),
        open_connection(url, "test") as plain,
        connect_for_projections(url, "test") as projecting,
        connect_for_seals(url, "test") as sealing,
        recorder.connection() as recording,
        pool.connection() as pooled,
    ):
        yield [plain, projecting, sealing, recording, pooled]


async def sessions_of_loops(url: str, name: str) -> list[str]:
    """The same of each kind that event loops have."""
    pool = make_pool(url)
    await pool.open()
    async with await open_async_connection(url, "test") as plain, pool.connection() as pooled:
        found = [await shown_there(plain, name), await shown_there(pooled, name)]
    await pool.close()
    return found


def check(url: str, real: RealInput) -> None:
    name, right = named(real.right)
    with every_session(url) as sessions:
        found = [shown(session, name) for session in sessions]
    if name in LIMITS:
        # Each kind has its own; none has the server's.
        assert found[0] == right
        assert "50ms" not in found
        return
    found += asyncio.run(sessions_of_loops(url, name))
    if name == "search_path":
        found = [each.split(",")[0] for each in found]
    assert found == [right] * 7


@pytest.mark.parametrize("statement", [DATABASE, ROLE], ids=["database", "role"])
@each("sessions")
def test_what_the_server_wishes_does_not_count(
    real: RealInput, statement: LiteralString, database_url: str
) -> None:
    told(database_url, statement, real.text)
    check(database_url, real)


@each("sessions")
def test_what_the_environment_wishes_does_not_count(
    real: RealInput, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, value = named(real.text)
    escaped = value.replace("\\", "\\\\").replace(" ", "\\ ")
    monkeypatch.setenv("PGOPTIONS", f"-c {name}={escaped}")
    monkeypatch.setenv("TZ", "America/New_York")
    if name in VARIABLES:
        monkeypatch.setenv(VARIABLES[name], value)
    check(database_url, real)


@each("sessions", "TimeZone=UTC")
def test_times_are_in_utc_also_where_the_url_says_otherwise(
    real: RealInput, database_url: str
) -> None:
    url = f"{database_url}&options={quote(f'-c {real.text}')}"
    with open_connection(url, "test") as conn:
        (at,) = conn.execute("SELECT timestamptz '2026-07-01 12:00:00+02'").fetchone() or (None,)
    assert at == datetime(2026, 7, 1, 10, tzinfo=UTC)
    assert at.utcoffset() == datetime.now(UTC).utcoffset()


def test_nothing_is_asked_for_that_a_pooler_refuses(database_url: str) -> None:
    with every_session(database_url) as sessions:
        assert all("options" not in session.info.get_parameters() for session in sessions)

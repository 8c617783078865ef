"""How this program connects to PostgreSQL: every session the same, and no wait without an end.

A session says all that could change a result, so that the server's, the role's and the
environment's own wishes (`timezone`, `ALTER ROLE … SET`, `PGTZ`, `PGOPTIONS`) do not count. It is
said after connecting, because pgbouncer refuses the start-up parameter `options`.

A server that hangs (a stopped process, a full disk) goes on acknowledging packets, and its own
time-outs do not fire; so the time that it stays silent is measured here. Short work has a limit.
Work that may take long asks a silent server for another connection: one that gives it is alive.
While a server is known to be silent, one at a time asks it, and the others are told at once: what
needs several answers does not wait several times, and a server that comes back does not find
hundreds of connections that nobody wants any more.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from time import monotonic
from traceback import clear_frames
from types import NoneType
from typing import Any, NoReturn, Self, TypeVar
from uuid import UUID

import psycopg
import structlog
from psycopg import AsyncConnection, Connection, OperationalError
from psycopg.abc import Params, PQGen
from psycopg.conninfo import make_conninfo
from psycopg.errors import ConnectionTimeout
from psycopg.rows import Row, RowFactory, TupleRow, class_row, tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from infra.circuit_breaker import CircuitBreaker, CircuitState
from infra.metrics import counter
from infra.settings.adapters import DatabaseSettings

log = structlog.get_logger(__name__)

# The server cancels a statement at its limit; only one that does not even do that is silent.
GRACE_SECONDS = 1.0
# Long work: how long the server may say nothing before it is asked whether it lives.
SILENCE_SECONDS = 5.0
# How often psycopg looks up while it waits.
INTERVAL_SECONDS = 0.1
# How long a silent server is left alone, and how long who then asks it may take to find out.
PAUSE_SECONDS = 1.0
TRIAL_SECONDS = 5.0
# After an outage of any length, who wants a connection next has a new one tried at once.
RECONNECT_SECONDS = 3.0

SESSION = b"""
SET statement_timeout = %d;
SET TimeZone = 'UTC';
SET DateStyle = 'ISO, MDY';
SET IntervalStyle = 'postgres';
SET client_encoding = 'UTF8';
SET bytea_output = 'hex';
SET extra_float_digits = 1;
SET standard_conforming_strings = on;
SET array_nulls = on;
SET default_transaction_isolation = 'read committed';
SET lock_timeout = 0;
SELECT set_config('search_path', concat_ws(', ', 'public',
                  nullif(current_setting('search_path'), '')), false)
"""

DATABASE_SILENCES = counter(
    "backlot_database_silences",
    "Connections given up because PostgreSQL took a statement and did not answer.",
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long one waits for PostgreSQL, in seconds: a connection, a pool's free one, an answer.

    `statement` 0: as long as the server lives.
    """

    connect: int = 3
    pool: float = 4.0
    statement: float = 3.0

    @classmethod
    def from_settings(cls, settings: DatabaseSettings) -> Self:
        """Return what the settings give requests."""
        return cls(settings.connect_seconds, settings.pool_seconds, settings.statement_seconds)

    @property
    def silence(self) -> float:
        """How long the server may say nothing while a statement runs."""
        return self.statement + GRACE_SECONDS if self.statement else SILENCE_SECONDS


SHORT_WORK = Limits()
# An operator at the command line, who looks through a long log.
UNHURRIED = Limits(statement=60.0)
LONG_WORK = Limits(statement=0)


class DatabaseSilent(OperationalError):
    """PostgreSQL took a statement and says nothing; what becomes of the statement is not known."""


def is_silence(error: BaseException) -> bool:
    """Return whether PostgreSQL said nothing, not no; to try again at once does not help then.

    Of an error of the event-sourcing library, its cause tells.
    """
    silences = (DatabaseSilent, ConnectionTimeout, PoolTimeout)
    return isinstance(error, silences) or isinstance(error.__cause__, silences)


def explained(error: Exception) -> str:
    """Return what is wrong with the database, in one line for operators."""
    if is_silence(error):
        return f"it hangs, or is no PostgreSQL, or can't be reached: {error}"
    return " ".join(str(error).split())


class DatabaseBreaker(CircuitBreaker):
    """Whether a PostgreSQL said nothing lately, for the whole process."""

    service = "database"

    def __init__(self) -> None:
        super().__init__(PAUSE_SECONDS, trial_seconds=TRIAL_SECONDS)

    def refusal(self, retry_after: float | None) -> Exception:
        return DatabaseSilent("PostgreSQL said nothing a moment ago")

    def blames(self, error: BaseException) -> bool | None:
        # Whoever meets the silence tells of it, with `missed`.
        return None

    def changed(self, before: CircuitState, error: BaseException | None) -> None:
        if self.state is CircuitState.CLOSED:
            log.info("database_answers")

    def missed(self, purpose: str, seconds: float) -> None:
        """Count that the server took a connection or a statement, and said nothing for so long."""
        DATABASE_SILENCES.inc()
        if self.state is CircuitState.CLOSED:
            log.error("database_silent", connection=purpose, seconds=seconds)
        self.fail()


@cache
def breaker_of(database_url: str) -> DatabaseBreaker:
    """Return what this process knows of the server there."""
    return DatabaseBreaker()


class LiveConnection(Connection[Row]):
    """A thread's connection that is closed once the server does not answer on it."""

    limits: Limits
    breaker: DatabaseBreaker

    @classmethod
    def connect(  # type: ignore[override]  # a session needs more than psycopg's parameters
        cls, conninfo: str = "", *, limits: Limits, session: bytes = b"", **kwargs: Any
    ) -> Self:
        """Connect as psycopg does, and make the connection a session of ours.

        `session` is more SQL that the session begins with. Raise DatabaseSilent at once where the
        server is silent.
        """
        with _newcomer(conninfo, kwargs) as breaker:
            conn = super().connect(conninfo, **kwargs)
        conn.limits, conn.breaker = limits, breaker
        try:
            conn.execute(SESSION % round(limits.statement * 1000) + session)
        except BaseException:
            conn.close()
            raise
        return conn

    def wait(
        self, gen: PQGen[T], interval: float = INTERVAL_SECONDS, timeout: float | None = None
    ) -> T:
        # Who waits for notifications says for how long, and silence is nothing bad then.
        watched = _listen(self, gen) if timeout is None else gen
        try:
            result = super().wait(watched, interval, timeout)
        except DatabaseSilent:
            self.pgconn.finish()
            raise
        self.breaker.succeed()
        return result


class LiveAsyncConnection(AsyncConnection[Row]):
    """An event loop's connection that is closed once the server does not answer; for short work."""

    limits: Limits
    breaker: DatabaseBreaker

    @classmethod
    async def connect(  # type: ignore[override]  # a session needs more than psycopg's parameters
        cls, conninfo: str = "", *, limits: Limits, session: bytes = b"", **kwargs: Any
    ) -> Self:
        """Connect and raise as `LiveConnection` does."""
        with _newcomer(conninfo, kwargs) as breaker:
            conn = await super().connect(conninfo, **kwargs)
        conn.limits, conn.breaker = limits, breaker
        try:
            await conn.execute(SESSION % round(limits.statement * 1000) + session)
        except BaseException:
            await conn.close()
            raise
        return conn

    async def wait(  # psycopg's signature
        self,
        gen: PQGen[T],
        interval: float = INTERVAL_SECONDS,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> T:
        watched = _listen(self, gen) if timeout is None else gen
        try:
            result = await super().wait(watched, interval, timeout)
        except DatabaseSilent:
            self.pgconn.finish()
            raise
        self.breaker.succeed()
        return result


class ThreadPool(ConnectionPool[LiveConnection[Any]]):
    """Connections that threads share; one of a silent server is refused at once."""

    def getconn(self, timeout: float | None = None) -> LiveConnection[Any]:
        breaker_of(self.conninfo).check()
        return super().getconn(timeout)


class LivePool(AsyncConnectionPool[LiveAsyncConnection[TupleRow]]):
    """A pool whose clients don't notice that the server was restarted while they were idle.

    Who wants a connection of a silent server is told so at once. The library's own check costs
    every query a round trip, and pauses for a second after each lost connection.
    """

    async def getconn(  # the library's signature
        self,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> LiveAsyncConnection[TupleRow]:
        breaker_of(self.conninfo).check()
        while True:
            conn = await super().getconn(timeout)
            if not await _is_lost(conn):
                return conn
            await conn.close()
            await self.putconn(conn)


async def _is_lost(conn: LiveAsyncConnection[TupleRow]) -> bool:
    try:
        # On a lost connection the socket has something to say; only then is the server asked.
        poller = select.poll()
        poller.register(conn.fileno(), select.POLLIN)
        if poller.poll(0):
            await conn.execute("")
    except OperationalError:
        return True
    return False


def open_connection(
    database_url: str, purpose: str, limits: Limits = LONG_WORK
) -> LiveConnection[TupleRow]:
    """Open a thread's connection in autocommit mode, named after its purpose.

    Without limits, a statement may take as long as it needs. Raise OperationalError.
    """
    return LiveConnection.connect(database_url, **_options(purpose, limits))


async def open_async_connection(
    database_url: str, purpose: str, limits: Limits = SHORT_WORK
) -> LiveAsyncConnection[TupleRow]:
    """Open a connection for an event loop, for short work only; raise OperationalError."""
    return await LiveAsyncConnection.connect(database_url, **_options(purpose, limits))


def thread_pool(
    database_url: str,
    purpose: str,
    limits: Limits,
    *,
    size: int,
    session: bytes = b"",
    row_factory: RowFactory[Any] = tuple_row,
    check: Callable[[LiveConnection[Any]], None] | None = None,
) -> ThreadPool:
    """Connections that threads share, not opened yet; `session` is more SQL that each begins with.

    Who gets none within the limit has PoolTimeout, which is an OperationalError.
    """
    return ThreadPool(
        database_url,
        connection_class=LiveConnection,
        kwargs=_options(purpose, limits) | {"row_factory": row_factory, "session": session},
        check=check,
        min_size=size,
        max_size=size,
        timeout=limits.pool,
        reconnect_timeout=RECONNECT_SECONDS,
        open=False,
    )


def make_pool(
    database_url: str, *, max_size: int = 10, limits: Limits = SHORT_WORK, session: bytes = b""
) -> LivePool:
    """The connections of queries, not opened yet: `await pool.open()` in the event loop.

    `session` is more SQL that each begins with. A query that gets no connection within the limit
    has PoolTimeout, and one that gets no answer another OperationalError.
    """
    return LivePool(
        database_url,
        connection_class=LiveAsyncConnection,
        kwargs=_options("queries", limits) | {"session": session},
        min_size=min(2, max_size),
        max_size=max_size,
        timeout=limits.pool,
        reconnect_timeout=RECONNECT_SECONDS,
        open=False,
    )


@contextmanager
def unhurried(conn: LiveConnection[Any]) -> Iterator[None]:
    """Open a transaction without a limit for its statements, on a connection with limits."""
    limits, conn.limits = conn.limits, LONG_WORK
    try:
        with conn.transaction():
            conn.execute("SET LOCAL statement_timeout = 0")
            yield
    finally:
        conn.limits = limits


def _options(purpose: str, limits: Limits) -> dict[str, Any]:
    """Return what a connection is made with beside the URL."""
    return {"limits": limits, **_parameters(purpose, limits)}


def _parameters(purpose: str, limits: Limits) -> dict[str, Any]:
    """Return libpq's parameters. A lost machine is noticed within 30 seconds."""
    return {
        "autocommit": True,
        "application_name": f"backlot {purpose}",
        "connect_timeout": limits.connect,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": 30_000,
    }


def _listen(conn: LiveConnection[Any] | LiveAsyncConnection[Any], gen: PQGen[T]) -> PQGen[T]:
    """psycopg's dialogue with the server; raise DatabaseSilent when it sends nothing for long."""
    try:
        wanted = next(gen)
        heard = monotonic()
        while True:
            ready = yield wanted
            if ready:
                heard = monotonic()
            elif monotonic() - heard >= conn.limits.silence:
                # Work that may take long goes on while the server answers others.
                if conn.limits.statement or not _lives(conn.info):
                    _give_up(conn)
                heard = monotonic()
            wanted = gen.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result


def _give_up(conn: LiveConnection[Any] | LiveAsyncConnection[Any]) -> NoReturn:
    seconds = conn.limits.silence
    conn.breaker.missed(conn.info.get_parameters().get("application_name", ""), seconds)
    raise DatabaseSilent(f"PostgreSQL took a statement and said nothing for {seconds:g} s")


def _lives(info: psycopg.ConnectionInfo) -> bool:
    """Return whether the server still answers a newcomer, be it with a refusal."""
    url = make_conninfo(info.dsn, password=info.password or None)
    try:
        psycopg.connect(url, **_parameters("watch", LONG_WORK)).close()
    except ConnectionTimeout as error:
        _let_go(error)
        return False
    except OperationalError:
        pass
    return True


def _let_go(error: ConnectionTimeout) -> None:
    """Close the half-made connection, which psycopg's frames hold in a cycle with the error.

    A server that comes back would keep a session for it until the collector finds the cycle.
    """
    clear_frames(error.__traceback__)


@contextmanager
def _newcomer(database_url: str, parameters: Mapping[str, Any]) -> Iterator[DatabaseBreaker]:
    breaker = breaker_of(database_url)
    with breaker.attempt():
        try:
            yield breaker
        except ConnectionTimeout as error:
            _let_go(error)
            breaker.missed(parameters["application_name"], parameters["connect_timeout"])
            raise


async def fetch_as(
    conn: AsyncConnection[Any], kind: type[T], query: bytes, given: Params | None = None
) -> list[T]:
    """Run a query, and return its rows as objects of a class whose fields are the columns."""
    async with conn.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(query, given)
        return await cursor.fetchall()


def array(items: Iterable[str]) -> str:
    """Return an array literal of items that need no quotes."""
    return "{" + ",".join(items) + "}"


OR_NOTHING: Sequence[set[type]] = ({NoneType}, {UUID, NoneType}, {int, NoneType})


def column(values: Sequence[Any]) -> Any:
    """Values of one column for `unnest(%b::type[])`: a literal where none needs to be escaped."""
    kinds = set(map(type, values))
    if kinds == {UUID}:
        return array([b"".join([value.bytes for value in values]).hex(",", 16)])
    if kinds == {int}:
        return array(map(str, values))
    if kinds == {str}:
        return texts(values)
    if datetime in kinds and kinds <= {datetime, NoneType}:
        return array(["NULL" if value is None else value.isoformat() for value in values])
    if kinds in OR_NOTHING:
        return array(["NULL" if value is None else str(value) for value in values])
    return list(values)


def texts(values: Sequence[str]) -> str:
    """Return an array literal of any texts."""
    if not values:
        return "{}"
    body = '","'.join(values)
    if "\\" in body or body.count('"') != 2 * (len(values) - 1):
        body = '","'.join(value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return '{"' + body + '"}'

"""Fixtures of all tiers; the PostgreSQL here is the one that Backlot ships, started once."""

# ruff: noqa: E402 - what is imported below is kept compiled

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import count
from pathlib import Path
from unittest.mock import patch

# Compiled modules are kept, as in the Makefile: to rewrite all asserts takes pytest seconds, and to
# compile the product takes each program that a test starts one.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import httpx
import hypothesis
import psycopg
import pytest
import structlog
import typer.main
from httpx._transports import default as transports
from psycopg import sql
from psycopg.rows import TupleRow

import infra.redis
from engine.installation import make_tables
from engine.log import MAPPER
from infra.postgres.server import EmbeddedPostgres
from infra.settings import Settings
from tests.support import PROJECT, CopyOf, unused_port

# Not imported here: hooks of a conftest are not called for what has the scope of the session.
pytest_plugins = ["tests.leftovers"]
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("backlot", deadline=None)
hypothesis.settings.load_profile("backlot")

# COLUMNS is how wide the terminal is; a runner of tests in several processes may say so.
OWN_VARIABLES = {*Settings.variables(), *Settings.files(), "COLUMNS"}
# The usual ones but for the last: its pretty tracebacks take as long as ten whole tests.
PLAIN_LOG = (
    *structlog.get_config()["processors"][:-1],
    structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
)
ROOM = 2**30
# So many new objects, then so many times that, and that: a fifth of the work of the usual ones.
COLLECTED_AFTER = (2_000, 10, 40)
TIERS = ("e2e", "integration", "unit")
_numbers = count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tier whose files take longest, so that no process ends long after the others.

    Within a tier the order stays random.
    """
    depth = len((PROJECT / "tests").parts)
    items.sort(key=lambda item: TIERS.index(item.path.parts[depth]))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays: the garbage collector need not go through it, neither
    while it grows nor during the tests, whose syntax trees it would go through again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(*COLLECTED_AFTER)
        gc.enable()


@pytest.fixture(autouse=True)
def _surroundings(request: pytest.FixtureRequest) -> Iterator[None]:
    """No setting of whoever runs the tests, no logging that an earlier test set up, and clients
    that take no busy machine for a Redis that is away.

    A test that undoes its own patches does not undo these.
    """
    with pytest.MonkeyPatch.context() as patches:
        for name in OWN_VARIABLES.intersection(os.environ):
            patches.delenv(name)
        if request.node.get_closest_marker("redis_hangs") is None:
            patches.setattr(infra.redis, "CONNECT_SECONDS", 20.0)
            patches.setattr(infra.redis, "ANSWER_SECONDS", 20.0)
        # A command or a program in this process encrypts with the keys of its database.
        patches.setattr(MAPPER, "ciphers", MAPPER.ciphers)
        structlog.contextvars.clear_contextvars()
        structlog.configure(processors=[*PLAIN_LOG])
        yield
        structlog.reset_defaults()


@pytest.fixture(scope="session", autouse=True)
def _made_once() -> Iterator[None]:
    """What never changes and takes longer to make than most tests: the tree of commands, and what
    each client of HTTP knows of certificates."""
    with (
        patch.object(typer.main, "get_command", cache(typer.main.get_command)),
        patch.object(transports, "create_ssl_context", cache(httpx.create_ssl_context)),
    ):
        yield


@pytest.fixture
def free_port() -> int:
    return unused_port()


@pytest.fixture(scope="session")
def short_dir() -> Iterator[Path]:
    """A folder with a short path that other users can pass, for sockets and servers.

    It lies in memory where that has room: what is put there has to be removed by who needs it no
    more.
    """
    with _short_dir(_memory()) as folder:
        yield folder


@pytest.fixture(scope="session")
def disk_dir() -> Iterator[Path]:
    """The same on a disk, for tests of what outlives a crash."""
    with _short_dir() as folder:
        yield folder


@contextmanager
def _short_dir(parent: Path | None = None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="backlot-test-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _memory() -> Path | None:
    """A folder in memory, where there is one with room: a database is made there in a fifth of
    the time, and tests make thousands."""
    shared = Path("/dev/shm")
    if shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free >= ROOM:
        return shared
    return None


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A real server for the whole run; tests that kill a server start their own."""
    # Speed: nothing here outlives the run. Tests of durability start a server as it is shipped.
    settings = {
        "fsync": "off",
        "full_page_writes": "off",
        "shared_buffers": "64MB",
        "max_wal_size": "128MB",
        # A database is a copy of some 560 files: let the kernel copy them.
        "file_copy_method": "clone",
    }
    with (
        _short_dir(_memory()) as folder,
        EmbeddedPostgres(folder / "postgres", settings=settings) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres: EmbeddedPostgres) -> str:
    """The shared server's own database: for looking at the server, not for tables."""
    return postgres.url


@pytest.fixture(scope="session")
def main_template(postgres: EmbeddedPostgres) -> str:
    """The name of a database with the tables of the main database."""
    from backlot.features import TABLES

    return _template(postgres, "main", lambda conn: make_tables(conn, *TABLES))


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres, main_template: str) -> str:
    """The name of a database with the tables of the analytics as well; tests get copies."""
    from projections.analytics.schema import migrate

    return _template(postgres, "all", migrate, main_template)


def _template(
    postgres: EmbeddedPostgres,
    name: str,
    make: Callable[[psycopg.Connection[TupleRow]], object],
    template: str = "template1",
) -> str:
    name = f"template_{name}_{os.getpid()}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
    with psycopg.connect(postgres.url_of(name), autocommit=True) as conn:
        make(conn)
    return name


@contextmanager
def _database(
    admin: psycopg.Connection[TupleRow], postgres: EmbeddedPostgres, template: str
) -> Iterator[str]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
    admin.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield postgres.url_of(name)
    finally:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def copy_of(postgres: EmbeddedPostgres) -> Iterator[CopyOf]:
    """Makes databases from a database, given its name, to which nobody is connected; their URLs.

    What many tests begin with is recorded once, and copied for each.
    """
    # One connection for all: to open one takes a fifth of what a database takes.
    with psycopg.connect(postgres.url, autocommit=True, application_name="tests") as admin:
        yield partial(_database, admin, postgres)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, copy_of: CopyOf) -> Iterator[str]:
    """The URL of a database that only this test uses; its tables are there, and empty."""
    alone = request.node.get_closest_marker("no_analytics")
    with copy_of(request.getfixturevalue("main_template" if alone else "template")) as url:
        yield url


@pytest.fixture
def empty_database_url(copy_of: CopyOf) -> Iterator[str]:
    """The URL of a database without tables that only this test uses."""
    with copy_of("template1") as url:
        yield url

"""Connections of the projections' threads, and the pauses between attempts to get one."""

from __future__ import annotations

from typing import Any

from psycopg import Connection, InterfaceError, OperationalError
from psycopg.rows import TupleRow

from infra.connecting import open_connection

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0

# A crash may lose the last commits of a projection, and then it loses rows and position together:
# they are applied again, and each event still counts exactly once. Waiting for the disk would buy
# nothing. Every query is keyed, and the planner must not think otherwise while a table is small.
# What takes longer than the timeouts is stuck, and has to show as an interruption. The last three
# let the server notice a vanished machine, and free its lock, within a minute.
SESSION = b"""
SET synchronous_commit = off;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SET lock_timeout = '30s';
SET statement_timeout = '5min';
SET tcp_keepalives_idle = 10;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 4
"""


def connect(database_url: str, purpose: str) -> Connection[TupleRow]:
    """A connection in autocommit mode, named after its purpose; raises OperationalError."""
    connection = open_connection(database_url, purpose)
    connection.execute(SESSION)
    return connection


def is_outage(error: BaseException) -> bool:
    """Whether the database, not the content of an event, is at fault: then trying again helps."""
    return isinstance(error, OperationalError | InterfaceError) and not _too_big(error)


def _too_big(error: Any) -> bool:
    # SQLSTATE class 54, a program limit exceeded, such as a value too large for an index.
    return str(error.sqlstate or "").startswith("54")


class Backoff:
    """Growing pauses, in seconds: doubled after each failure, short again after a success."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE_SECONDS

    def next(self) -> float:
        pause = self._pause
        self._pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        return pause

    def reset(self) -> None:
        self._pause = FIRST_PAUSE_SECONDS

"""Every advisory lock of the program: one registry of their numbers, and how each is taken.

PostgreSQL tells advisory locks apart by two numbers alone, so a number that is used twice would
make two jobs exclude each other. The numbers that exist never change: during a rolling upgrade, a
process of the last release has to meet this one at the same lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, Final, NamedTuple
from uuid import UUID
from zlib import crc32

from psycopg import Connection, Cursor


class LockClass(IntEnum):
    """The first number: what a lock is about. Most of them spell a word in ASCII."""

    LOG = 0x6C6F67
    """The event store, by the `oid` of the events table."""
    PROJECTION = 0x70726F6A
    """The copies of projections and the replays, by `copy_lock` and `replay_lock`."""
    JOB = 0x776F726B
    """Jobs that one process does at a time, by `job_lock`."""
    LIKES = 0x6C696B65
    SEALS = 0x7365616C
    OPERATION = 0x6F706572
    """Operations of operators, by `operation_lock`."""
    RESERVATION = 0x72657376
    """What one user reserves, by `reservation_lock`."""
    SHARED = 7104878
    """Everything that needs no class of its own."""


class AdvisoryLock(NamedTuple):
    """A lock by its two numbers, both positive int4."""

    class_id: int
    key: int


class Lock:
    """The locks whose key is fixed."""

    PROJECTION_TABLES: Final = AdvisoryLock(LockClass.PROJECTION, 0)
    LIKES_RECONCILIATION: Final = AdvisoryLock(LockClass.LIKES, 1)
    SEALING: Final = AdvisoryLock(LockClass.SEALS, 1)
    TELEMETRY: Final = AdvisoryLock(LockClass.SHARED, 2)
    ANALYTICS_ROWS: Final = AdvisoryLock(LockClass.SHARED, 5)
    TRENDING_SETTLEMENT: Final = AdvisoryLock(LockClass.SHARED, 6)
    ANALYTICS_REFRESH: Final = AdvisoryLock(LockClass.SHARED, 7)
    ANALYTICS_PRUNING: Final = AdvisoryLock(LockClass.SHARED, 8)
    RECOMMENDATION_ROWS: Final = AdvisoryLock(LockClass.SHARED, 9)
    MIGRATION: Final = AdvisoryLock(LockClass.SHARED, 10)
    FEEDBACK_ROWS: Final = AdvisoryLock(LockClass.SHARED, 12)


def copy_lock(schema: str) -> AdvisoryLock:
    """Return the lock of the one process that applies events to this copy of a projection."""
    return AdvisoryLock(LockClass.PROJECTION, (crc32(schema.encode()) & 0x3FFFFFFF) + 1)


def replay_lock(replay_id: int) -> AdvisoryLock:
    """Return the lock of the one process that works on this replay."""
    return copy_lock(f"replay {replay_id}")


def job_lock(job: str) -> AdvisoryLock:
    """Return the lock of the one process that does a job: `relay`, `consumer analytics`."""
    return AdvisoryLock(LockClass.JOB, crc32(job.encode()) & 0x7FFFFFFF)


def operation_lock(operation_id: UUID) -> AdvisoryLock:
    """Return the lock of the one process that carries out this operation."""
    return AdvisoryLock(LockClass.OPERATION, operation_id.int & 0x7FFFFFFF)


def reservation_lock(owner: str) -> AdvisoryLock:
    """Return the lock of the one transaction that reserves something for this user."""
    return AdvisoryLock(LockClass.RESERVATION, crc32(owner.encode()) & 0x7FFFFFFF)


def lock(conn: Connection[Any], which: AdvisoryLock) -> None:
    """Take a lock for as long as the session lives, once it is free."""
    conn.execute("SELECT pg_advisory_lock(%s, %s)", which)


def try_lock(conn: Connection[Any], which: AdvisoryLock) -> bool:
    """Take a lock for as long as the session lives; False where another session holds it."""
    return _flag(conn.execute("SELECT pg_try_advisory_lock(%s, %s)", which))


def unlock(conn: Connection[Any], which: AdvisoryLock) -> None:
    """Let another session take the lock."""
    conn.execute("SELECT pg_advisory_unlock(%s, %s)", which)


@contextmanager
def hold(conn: Connection[Any], which: AdvisoryLock, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock for the block, once it is free; without `wait`, yield False where it is not."""
    if wait:
        lock(conn, which)
    mine = wait or try_lock(conn, which)
    try:
        yield mine
    finally:
        if mine and not conn.closed:
            unlock(conn, which)


def lock_in_transaction(conn: Connection[Any] | Cursor[Any], which: AdvisoryLock) -> None:
    """Take a lock until the transaction ends, once it is free."""
    conn.execute("SELECT pg_advisory_xact_lock(%s, %s)", which)


def try_lock_in_transaction(conn: Connection[Any], which: AdvisoryLock) -> bool:
    """Take a lock until the transaction ends; False where another session holds it."""
    return _flag(conn.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", which))


def _flag(cursor: Cursor[Any]) -> bool:
    """Return the one value of a row, whatever the connection makes of rows."""
    row = cursor.fetchone()
    return row is not None and bool(next(iter(row.values() if isinstance(row, Mapping) else row)))

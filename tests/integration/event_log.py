"""Raw events, writers in other processes and a reader that follows the log."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import psycopg
from eventsourcing.persistence import ApplicationRecorder, Notification, StoredEvent
from eventsourcing.utils import Environment, get_topic
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from engine.event_store import GroupCommitFactory, GroupCommitRecorder, open_recorder
from engine.installation import make_tables
from infra.advisory_locks import LockClass
from tests.support import eventually

Rows = list[tuple[Any, ...]]
# How long a reader rests that has seen everything.
IDLE_SECONDS = 0.002
_kept: dict[str, psycopg.Connection[TupleRow]] = {}


def events(count: int = 1, *, stream: UUID | None = None, first: int = 1) -> list[StoredEvent]:
    """Events of one stream, a new one unless said, each with a state of its own."""
    stream = stream or uuid4()
    versions = range(first, first + count)
    return [StoredEvent(stream, version, "test.v1", uuid4().bytes) for version in versions]


def url_of(conn: psycopg.Connection[TupleRow]) -> str:
    """Where another connection to the same database is made; `dsn` leaves out the password."""
    return make_conninfo(conn.info.dsn, password=conn.info.password)


def environment(database_url: str, name: str = "") -> Environment:
    """What the library's factories read, for a database at a libpq URL."""
    parts = conninfo_to_dict(database_url)
    return Environment(
        name,
        {
            "PERSISTENCE_MODULE": get_topic(GroupCommitFactory),
            "POSTGRES_DBNAME": str(parts["dbname"]),
            "POSTGRES_HOST": str(parts["host"]),
            "POSTGRES_PORT": str(parts["port"]),
            "POSTGRES_USER": str(parts["user"]),
            "POSTGRES_PASSWORD": "",
            "POSTGRES_POOL_SIZE": "1",
        },
    )


def tables_made(database_url: str) -> None:
    """Make the tables of the main database where they are missing."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        make_tables(conn)


@contextmanager
def recording(database_url: str, **options: Any) -> Iterator[GroupCommitRecorder]:
    """A recorder of our own, closed at the end."""
    tables_made(database_url)
    recorder = open_recorder(database_url, **options)
    try:
        yield recorder
    finally:
        recorder.close()


def rows(database_url: str, query: str, values: Sequence[Any] = ()) -> Rows:
    """What a query gives; those of the main thread share a connection, as long as it lasts."""
    if threading.current_thread() is not threading.main_thread():
        with _connected(database_url) as conn:
            return conn.execute(query.encode(), values).fetchall()
    reused = database_url in _kept
    try:
        return _keep(database_url).execute(query.encode(), values).fetchall()
    except psycopg.OperationalError:
        # Somebody may have ended it since it was used last.
        forget_connection()
        if not reused:
            raise
    return _keep(database_url).execute(query.encode(), values).fetchall()


def _connected(database_url: str) -> psycopg.Connection[TupleRow]:
    # Nothing is prepared: tables change between two looks.
    return psycopg.connect(database_url, autocommit=True, prepare_threshold=None)


def _keep(database_url: str) -> psycopg.Connection[TupleRow]:
    if database_url not in _kept:
        forget_connection()
        _kept[database_url] = _connected(database_url)
    return _kept[database_url]


@atexit.register
def forget_connection() -> None:
    """Close the connection that `rows` has kept."""
    for conn in _kept.values():
        conn.close()
    _kept.clear()


def logged(database_url: str) -> dict[int, StoredEvent]:
    """The whole log: each event under its position, in their order."""
    found = rows(
        database_url,
        "SELECT notification_id, originator_id, originator_version, topic, state "
        "FROM backlot_events ORDER BY notification_id",
    )
    return {row[0]: StoredEvent(*row[1:]) for row in found}


@contextmanager
def lock_of_the_log(database_url: str) -> Iterator[psycopg.Connection[TupleRow]]:
    """Holds every append back, so that what is saved meanwhile shares one batch."""
    with psycopg.connect(database_url) as conn:
        conn.execute(
            "SELECT pg_advisory_xact_lock(%s::int, 'backlot_events'::regclass::oid::int)",
            (int(LockClass.LOG),),
        )
        yield conn


def appends_wait(database_url: str, count: int = 1) -> bool:
    """Whether so many appends wait for the lock of the log."""
    return _waiting(database_url, int(LockClass.LOG)) >= count


GATE = 1


@contextmanager
def gate(database_url: str) -> Iterator[Callable[[int], object]]:
    """Holds other processes back; what it gives waits until so many stand ready.

    At its end they all start at once; what they need to get ready is done by then.
    """
    with psycopg.connect(database_url) as conn:
        conn.execute("SELECT pg_advisory_xact_lock(%s::int, 0)", (GATE,))
        yield lambda count: eventually(lambda: _waiting(database_url, GATE) >= count)


def pass_gate(database_url: str) -> None:
    """Wait until the gate is open."""
    rows(database_url, "SELECT pg_advisory_xact_lock_shared(%s::int, 0)", (GATE,))


def _waiting(database_url: str, lock_class: int) -> int:
    query = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database "
    query += "WHERE datname = current_database() AND classid = %s AND NOT granted"
    return int(rows(database_url, query, (lock_class,))[0][0])


class Tail:
    """Follows the log in a thread, close behind; notes every position that it passed over."""

    def __init__(self, recorder: ApplicationRecorder) -> None:
        self.seen: list[Notification] = []
        self.skipped: list[int] = []
        self._recorder = recorder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tail")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def await_position(self, position: int) -> None:
        eventually(lambda: self.seen and self.seen[-1].id >= position)

    @property
    def positions(self) -> list[int]:
        return [notification.id for notification in self.seen]

    def _follow(self) -> None:
        last = 0
        while not self._stop.is_set():
            found = self._recorder.select_notifications(
                start=last, limit=100, inclusive_of_start=False
            )
            for notification in found:
                self.skipped.extend(range(last + 1, notification.id))
                self.seen.append(notification)
                last = notification.id
            if not found:
                time.sleep(IDLE_SECONDS)


def write(
    database_url: str, saves: int, size: int = 1, threads: int = 8
) -> list[tuple[UUID, list[int]]]:
    """Save events of new streams from many threads once the gate is open, in any process.

    Returns each stream with the positions that were acknowledged.
    """
    with recording(database_url) as recorder, ThreadPoolExecutor(threads) as pool:
        batches = [events(size) for _ in range(saves)]
        pass_gate(database_url)
        acknowledged = pool.map(recorder.insert_events, batches)
        return [
            (UUID(str(batch[0].originator_id)), list(positions or ()))
            for batch, positions in zip(batches, acknowledged, strict=True)
        ]

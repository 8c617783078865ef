"""The event store: the `eventsourcing` recorder with group commit and gapless positions.

Whatever arrives while a transaction commits goes into the next one. Positions are given under a
lock that is held until the commit, so they are in commit order and no reader can skip one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import structlog
from eventsourcing.persistence import (
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProcessRecorder,
    StoredEvent,
)
from eventsourcing.postgres import (
    PostgresApplicationRecorder,
    PostgresDatastore,
    PostgresFactory,
    PostgresTrackingRecorder,
)
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow, dict_row, tuple_row
from psycopg.sql import SQL, Composed, Identifier

from engine.group_commit import (
    Appended,
    GroupCommit,
    Save,
    StoredAnswer,
    arguments,
    columns,
    outcomes,
)
from infra.postgres.connection import SHORT_WORK, Limits, array, is_silence, thread_pool, unhurried

log = structlog.get_logger(__name__)

RETRY_SECONDS = 5.0
RETRY_PAUSE_SECONDS = 0.1

T = TypeVar("T")

EVENTS_CHANNEL = "backlot_events"
"""What PostgreSQL notifies of new events."""
EVENTS = f"public.{EVENTS_CHANNEL}"
"""The table of the event log, for SQL."""
TABLES = Path(__file__).with_name("sql") / "0001_event_store.log.sql"

# Every query of this store is keyed. The planner must not think otherwise while the table is still
# small, because the append function's plan is cached while the table grows.
SESSION = b"; SET enable_seqscan = off"


class GroupCommitRecorder(PostgresApplicationRecorder):
    """Records events of many callers in one transaction; see `append` for the guarantees."""

    def __init__(
        self,
        datastore: PostgresDatastore,
        *,
        events_table_name: str = "stored_events",
        **kwargs: Any,
    ) -> None:
        super().__init__(datastore, events_table_name=events_table_name, **kwargs)
        self.answers_table_name = f"{events_table_name}_answers"
        self.check_identifier_length(self.answers_table_name)
        self.names = {
            "schema": Identifier(datastore.schema),
            "table": Identifier(events_table_name),
            "answers": Identifier(self.answers_table_name),
            "append": Identifier(f"{events_table_name}_append"),
        }
        self.sql_create_statements = [Composed([SQL(self._tables())])]
        self.append_statement = self._sql(
            "SELECT head, conflicts FROM {schema}.{append}("
            "%s::int[], %s::uuid[], %s::bigint[], %b::text[], %b::bytea[], "
            "%s::int[], %s::text[], %s::text[], %s::bytea[], %s::int[], %s::bytea[])"
        )
        self.select_streams_statement = self._sql(
            "SELECT NULL, coalesce(max(notification_id), 0), NULL, NULL FROM {schema}.{table} "
            "UNION ALL SELECT e.* FROM unnest(%s::uuid[], %s::bigint[]) AS s(id, after) "
            "CROSS JOIN LATERAL (SELECT originator_id, originator_version, topic, state "
            "FROM {schema}.{table} WHERE originator_id = s.id AND originator_version > s.after "
            "ORDER BY originator_version) AS e"
        )
        self.select_answers_statement = self._sql(
            "SELECT a.actor, a.key, a.request_hash, a.status, a.body, a.position "
            "FROM unnest(%b::text[], %b::text[]) AS k(actor, key) "
            "CROSS JOIN LATERAL (SELECT * FROM {schema}.{answers} "
            "WHERE actor = k.actor AND key = k.key OFFSET 0) AS a"
        )
        self._commits = GroupCommit(self.append)

    def _sql(self, statement: str) -> bytes:
        # As bytes: psycopg would put composed SQL together again for every execution.
        return SQL(statement).format(**self.names).as_bytes(None)

    def _tables(self) -> str:
        """Return the SQL that makes the log, with the names of this recorder."""
        text = re.sub(
            rf"\b{EVENTS}(\w*)",
            rf'"{self.datastore.schema}"."{self.events_table_name}\1"',
            TABLES.read_text(),
        )
        return text.replace(EVENTS_CHANNEL, self.events_table_name)

    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Record the events together with whatever other threads want recorded now.

        Return their positions; raise IntegrityError when one of the versions exists already.
        """
        if not stored_events:
            return None
        return list(self._commits.save(Save(stored_events)))

    def append(self, saves: Sequence[Save]) -> Appended:
        """Record many saves in one transaction; no two of them may want the same stream version.

        Each save is atomic and fails alone: where one of its versions, or its idempotency key,
        exists already, its outcome is None and nothing of it is recorded; the others get their
        positions. Return after the commit is durable. A lost connection is retried for 5 s, and
        whether the lost attempt was committed is then read from the store. Raise OperationalError
        or InterfaceError when the database stays away.
        """
        values = arguments(saves)

        def work(conn: Connection[Any], retrying: bool) -> Appended:
            head, refused = self._append(conn, values)
            ours = self._recorded_before(conn, saves, refused) if retrying else {}
            return Appended(head, list(outcomes(saves, head, refused, ours)))

        return self._patiently("append_retried", work)

    def _patiently(self, retried: str, work: Callable[[Connection[Any], bool], T]) -> T:
        """Do the work, and for up to 5 s again on lost connections; it gets whether it is a retry.

        Not on a database that says nothing: it has had the time that a request has.
        """
        deadline = time.monotonic() + RETRY_SECONDS
        retrying = False
        while True:
            try:
                with self.connection() as conn:
                    return work(conn, retrying)
            except (OperationalError, InterfaceError) as error:
                if is_silence(error) or time.monotonic() > deadline:
                    raise
                log.warning(retried, error=str(error))
                retrying = True
                time.sleep(RETRY_PAUSE_SECONDS)
                self.datastore.pool.check()

    def _append(self, conn: Connection[Any], arguments: tuple[Any, ...]) -> tuple[int, set[int]]:
        with conn.cursor(binary=True, row_factory=tuple_row) as cursor:
            cursor.execute(self.append_statement, arguments, prepare=True)
            row = cursor.fetchone()
        if row is None:
            raise OperationalError("The append function gave no answer.")
        return row[0], set(row[1])

    def _recorded_before(
        self, conn: Connection[Any], saves: Sequence[Save], refused: set[int]
    ) -> dict[int, range]:
        """Return those refused saves that an earlier attempt, whose answer was lost, did record."""
        found: dict[int, range] = {}
        for index in refused:
            positions = [self._position_of(conn, event) for event in saves[index].events]
            known = [position for position in positions if position is not None]
            if known and len(known) == len(positions):
                found[index] = range(known[0], known[-1] + 1)
        return found

    def _position_of(self, conn: Connection[Any], event: StoredEvent) -> int | None:
        row = conn.execute(
            self._sql(
                "SELECT notification_id FROM {schema}.{table} WHERE originator_id = %s "
                "AND originator_version = %s AND topic = %s AND state = %s"
            ),
            (event.originator_id, event.originator_version, event.topic, event.state),
        ).fetchone()
        return None if row is None else row["notification_id"]

    def close(self) -> None:
        """Close the connections of this recorder."""
        self.datastore.close()

    def connection(self) -> Any:
        """Return a pooled connection in autocommit mode, its errors translated to the library's."""
        return self.datastore.get_connection()

    def fetch(
        self,
        streams: Sequence[tuple[UUID, int]],
        answers: Sequence[tuple[str, str]],
        also: Callable[[Cursor[TupleRow]], T],
    ) -> tuple[list[TupleRow], list[StoredAnswer], int, T]:
        """Return what a batch of commands needs to be decided, read in one go.

        `also` reads what answers need beside the streams. Then come the answers stored under
        `(actor, key)`, and the events of each `(stream, after version)`, ordered by version within
        the stream, together with the head position of the same moment. A lost connection is
        retried for 5 s.
        """
        wanted = (array(s.hex for s, _ in streams), array(str(after) for _, after in streams))

        def work(
            conn: Connection[Any], again: bool
        ) -> tuple[list[TupleRow], list[StoredAnswer], int, T]:
            with conn.cursor(binary=True, row_factory=tuple_row) as cursor:
                extra = also(cursor)
                stored: list[StoredAnswer] = []
                if answers:
                    cursor.execute(self.select_answers_statement, columns(answers), prepare=True)
                    stored = [StoredAnswer(*row) for row in cursor.fetchall()]
                cursor.execute(self.select_streams_statement, wanted, prepare=True)
                (_, head, *_), *rows = cursor.fetchall()
                return rows, stored, head, extra

        return self._patiently("load_retried", work)

    def forget_answers(self, older_than_hours: float) -> int:
        """Delete idempotency answers past their lifetime; return how many."""
        with self.connection() as conn, unhurried(conn):
            cursor = conn.execute(
                self._sql(
                    "DELETE FROM {schema}.{answers} "
                    "WHERE created_at < now() - make_interval(secs => %s)"
                ),
                (older_than_hours * 3600,),
            )
            return int(cursor.rowcount)


class GroupCommitProcessRecorder(PostgresTrackingRecorder, GroupCommitRecorder, ProcessRecorder):
    """Also records, in the same transaction, how far in another application a process has come."""

    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        tracking = kwargs.get("tracking")
        if tracking is None:
            return super().insert_events(stored_events)
        save = Save(stored_events)
        save.keys()
        with self.datastore.transaction(commit=True) as curs:
            self._insert_tracking(curs, tracking)
            head, refused = self._append(curs.connection, arguments([save]))
            if refused:
                raise IntegrityError("The stream has that version already.")
        return list(range(head + 1, head + 1 + len(stored_events)))


class GroupCommitFactory(PostgresFactory):
    """The library's PostgreSQL factory with our recorders."""

    application_recorder_class = GroupCommitRecorder
    process_recorder_class = GroupCommitProcessRecorder  # type: ignore[assignment]


def open_recorder(
    database_url: str,
    *,
    pool_size: int = 2,
    name: str = "backlot",
    limits: Limits = SHORT_WORK,
) -> GroupCommitRecorder:
    """Return a recorder on the database at a libpq URL, which has its tables already.

    `engine.migrations` makes those of Backlot; tests that give another `name` create theirs.
    """
    datastore = PostgresDatastore(dbname="", host="", port="", user="", password="")
    datastore.pool = thread_pool(  # type: ignore[assignment]  # the library's fetches passwords
        database_url, "events", limits, size=pool_size, session=SESSION, row_factory=dict_row
    )
    return GroupCommitRecorder(datastore, events_table_name=f"{name}_events")

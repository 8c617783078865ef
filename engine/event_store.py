"""The event store: the `eventsourcing` recorder with group commit and gapless positions.

Whatever arrives while a transaction commits goes into the next one. Positions are given under a
lock that is held until the commit, so they are in commit order and no reader can skip one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar
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

from engine.group_commit import GroupCommit
from engine.personal_data import Deleted, PersonalTable
from infra.postgres.connection import (
    SHORT_WORK,
    Limits,
    array,
    column,
    is_silence,
    texts,
    thread_pool,
    unhurried,
)

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
NO_ANSWERS = ("{}",) * 6

PERSONAL = (
    PersonalTable(
        name="answers",
        holds="answers to requests with an idempotency key",
        kept="so many hours",
        setting="IDEMPOTENCY_TTL_HOURS",
        table="public.backlot_events_answers",
        columns=("actor",),
        shown="key, status, convert_from(body, 'UTF8') AS body, position, created_at",
        forget=Deleted(),
    ),
    PersonalTable(
        name="answers.of_others",
        holds="answers to others that name somebody, with what that one wrote",
        kept="so many hours",
        setting="IDEMPOTENCY_TTL_HOURS",
        table="public.backlot_events_answers",
        where="actor <> %(subject)s AND position(%(needle)s::bytea IN body) > 0",
        shown=None,
        # Who asks again with the same key gets what can be said then.
        forget=Deleted(),
    ),
)

# The parts of the statement that loads: one row with the head, then news, then events of streams.
LOAD_HEAD = """
SELECT NULL::uuid, (SELECT coalesce(max(notification_id), 0) FROM {schema}.{table}),
       NULL::text, NULL::bytea"""
LOAD_NEWS = "SELECT NULL, notification_id, topic, state"
LOAD_BEHIND = """
FROM {schema}.{table} WHERE notification_id > greatest(%b, %%s::bigint)
     AND topic = ANY (%%s::text[]) ORDER BY notification_id LIMIT %%s"""
LOAD_STREAMS = """
FROM unnest(%s::uuid[], %s::bigint[]) AS s(id, after) CROSS JOIN LATERAL (
    SELECT originator_id, originator_version, topic, state FROM {schema}.{table}
    WHERE originator_id = s.id AND originator_version > s.after ORDER BY originator_version) AS e"""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's name for one request; `request_hash` differs when another request reuses the name.

    `render` turns the command's answer into the HTTP status and body that a repeat will get.
    """

    key: str
    request_hash: bytes
    render: Callable[[Any], tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """The answer to a command, stored under its idempotency key together with the events.

    `telemetry` is not stored: it is the head of the telemetry when the answer is given.
    """

    actor: str
    key: str
    request_hash: bytes
    status: int
    body: bytes
    position: int = 0
    telemetry: int = 0


@dataclass(frozen=True, slots=True)
class Beside:
    """What is read in the statement of some streams, at the same moment.

    `columns` are scalar expressions with the parameters `given`. With `beyond`, which asks for a
    position, also the events behind that one: behind the first of `news`, of the topics in the
    second (an array literal), as many as the third at most.
    """

    columns: tuple[bytes, ...] = ()
    given: tuple[Any, ...] = ()
    beyond: bytes = b""
    news: tuple[Any, ...] = ()


NOTHING = Beside()


class Loaded(NamedTuple, Generic[T]):
    """What a batch of commands is decided on.

    `rows` are events as stream, version, topic and state; `beside` are the values of the columns
    that were asked for, and `news` events as None, position, topic and state.
    """

    rows: list[TupleRow]
    answers: list[StoredAnswer]
    head: int
    extra: T
    beside: Sequence[Any] = ()
    news: Sequence[TupleRow] = ()


@dataclass(frozen=True, slots=True)
class Save:
    """Events that are recorded together or not at all, with the answers that they led to."""

    events: Sequence[StoredEvent]
    answers: Sequence[StoredAnswer] = ()

    def keys(self) -> set[Any]:
        """Return what must not exist yet.

        Raise IntegrityError when the save contradicts itself.
        """
        keys: set[Any] = {(e.originator_id, e.originator_version) for e in self.events}
        if len(keys) < len(self.events):
            raise IntegrityError("One save holds the same version of a stream twice.")
        keys.update((answer.actor, answer.key) for answer in self.answers)
        return keys


class Appended(NamedTuple):
    """Outcome of one append: the head before it, and for each save its positions or a conflict."""

    head: int
    outcomes: list[range | None]


def arguments(saves: Sequence[Save]) -> tuple[Any, ...]:
    """Return the arguments of the append function."""
    events = [event for save in saves for event in save.events]
    return (
        array([str(index) for index, save in enumerate(saves) for _ in save.events]),
        _ids([event.originator_id for event in events]),
        array([str(event.originator_version) for event in events]),
        texts([event.topic for event in events]),
        [event.state for event in events],
        *_answer_columns(saves),
    )


def _answer_columns(saves: Sequence[Save]) -> Sequence[Any]:
    rows = [
        (index, answer.actor, answer.key, answer.request_hash, answer.status, answer.body)
        for index, save in enumerate(saves)
        for answer in save.answers
    ]
    # An empty list takes psycopg as long as a full one; few requests have a key.
    return [*map(list, zip(*rows, strict=True))] or NO_ANSWERS


def _ids(streams: Sequence[UUID | str]) -> Any:
    if set(map(type, streams)) == {UUID}:
        return column(streams)
    # Text ids of the library's, or none.
    return texts([str(stream) for stream in streams])


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
        answers = f"{events_table_name}_answers"
        self.check_identifier_length(answers)
        self.names = {
            "schema": Identifier(datastore.schema),
            "table": Identifier(events_table_name),
            "answers": Identifier(answers),
            "append": Identifier(f"{events_table_name}_append"),
        }
        text = re.sub(
            rf"\b{EVENTS}(\w*)",
            rf'"{datastore.schema}"."{events_table_name}\1"',
            TABLES.read_text(),
        ).replace(EVENTS_CHANNEL, events_table_name)
        self.sql_create_statements = [Composed([SQL(text)])]
        self.append_statement = self._sql(
            "SELECT head, conflicts FROM {schema}.{append}("
            "%s::int[], %s::uuid[], %s::bigint[], %s::text[], %b::bytea[], "
            "%s::int[], %s::text[], %s::text[], %s::bytea[], %s::int[], %s::bytea[])"
        )
        self._load_parts = [
            self._sql(text) for text in (LOAD_HEAD, LOAD_NEWS, LOAD_BEHIND, LOAD_STREAMS)
        ]
        self._loads: dict[tuple[tuple[bytes, ...], bytes], bytes] = {}
        self.select_answers_statement = self._sql(
            "SELECT a.actor, a.key, a.request_hash, a.status, a.body, a.position "
            "FROM unnest(%b::text[], %b::text[]) AS k(actor, key) "
            "CROSS JOIN LATERAL (SELECT * FROM {schema}.{answers} "
            "WHERE actor = k.actor AND key = k.key OFFSET 0) AS a"
        )
        self._commits = GroupCommit(self.append)

    def _load_statement(self, beside: Beside) -> bytes:
        """Return what reads streams and, before them, one row with the head and the columns."""
        shape = beside.columns, beside.beyond
        statement = self._loads.get(shape)
        if statement is None:
            nulls = b", NULL" * len(beside.columns)
            head, event, news, streams = self._load_parts
            parts = [head, *(b", " + each for each in beside.columns)]
            if beside.beyond:
                parts += [b" UNION ALL (", event, nulls, news % beside.beyond, b")"]
            parts += [b" UNION ALL SELECT e.*", nulls, streams]
            statement = self._loads[shape] = b"".join(parts)
        return statement

    def _sql(self, statement: str) -> bytes:
        # As bytes: psycopg would put composed SQL together again for every execution.
        return SQL(statement).format(**self.names).as_bytes(None)

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
            outcomes: list[range | None] = []
            position = head + 1
            for index, save in enumerate(saves):
                if index in refused:
                    outcomes.append(ours.get(index))
                else:
                    outcomes.append(range(position, position + len(save.events)))
                    position += len(save.events)
            return Appended(head, outcomes)

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

    def _append(self, conn: Connection[Any], values: tuple[Any, ...]) -> tuple[int, set[int]]:
        with conn.cursor(binary=True, row_factory=tuple_row) as cursor:
            cursor.execute(self.append_statement, values, prepare=True)
            ((head, conflicts),) = cursor.fetchall()
        return head, set(conflicts)

    def _recorded_before(
        self, conn: Connection[Any], saves: Sequence[Save], refused: set[int]
    ) -> dict[int, range]:
        """Return those refused saves that an earlier attempt, whose answer was lost, did record."""
        find = self._sql(
            "SELECT notification_id FROM {schema}.{table} WHERE originator_id = %s "
            "AND originator_version = %s AND topic = %s AND state = %s"
        )
        found: dict[int, range] = {}
        for index in refused:
            values = [
                (e.originator_id, e.originator_version, e.topic, e.state)
                for e in saves[index].events
            ]
            rows = [conn.execute(find, each).fetchone() for each in values]
            positions = [row["notification_id"] for row in rows if row is not None]
            if rows and len(positions) == len(rows):
                found[index] = range(positions[0], positions[-1] + 1)
        return found

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
        beside: Beside = NOTHING,
    ) -> Loaded[T]:
        """Return what a batch of commands needs to be decided, read in one go.

        That is the events of each `(stream, after version)`, ordered by version within the stream,
        the answers stored under `(actor, key)`, the head position and what is `beside` at the
        moment of the events, and what `also` reads first. A lost connection is retried for 5 s.
        """
        statement = self._load_statement(beside)
        wanted = (_ids([s for s, _ in streams]), array([str(after) for _, after in streams]))
        given = (*beside.given, *beside.news, *wanted)

        def work(conn: Connection[Any], retrying: bool) -> Loaded[T]:
            with conn.cursor(binary=True, row_factory=tuple_row) as cursor:
                extra = also(cursor)
                stored: list[StoredAnswer] = []
                if answers:
                    names = [*map(list, zip(*answers, strict=True))]
                    cursor.execute(self.select_answers_statement, names, prepare=True)
                    stored = [StoredAnswer(*row) for row in cursor.fetchall()]
                cursor.execute(statement, given, prepare=True)
                (_, head, _, _, *columns), *rows = cursor.fetchall()
                begin = 0
                while begin < len(rows) and rows[begin][0] is None:
                    begin += 1
                return Loaded(rows[begin:], stored, head, extra, columns, rows[:begin])

        return self._patiently("load_retried", work)

    def forget_answers(self, older_than_hours: float) -> int:
        """Delete idempotency answers past their lifetime; return how many."""
        delete = self._sql(
            "DELETE FROM {schema}.{answers} WHERE created_at < now() - make_interval(secs => %s)"
        )
        with self.connection() as conn, unhurried(conn):
            return int(conn.execute(delete, (older_than_hours * 3600,)).rowcount)


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
    database_url: str, *, pool_size: int = 2, name: str = "backlot", limits: Limits = SHORT_WORK
) -> GroupCommitRecorder:
    """Return a recorder on the database at a libpq URL, which has its tables already.

    `engine.installation` makes those of Backlot; tests that give another `name` create theirs.
    """
    datastore = PostgresDatastore(dbname="", host="", port="", user="", password="")
    datastore.pool = thread_pool(  # type: ignore[assignment]  # the library's fetches passwords
        database_url, "events", limits, size=pool_size, session=SESSION, row_factory=dict_row
    )
    return GroupCommitRecorder(datastore, events_table_name=f"{name}_events")

"""What the event log tells, in tables that last as long as their connection, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from uuid import UUID

import orjson
from eventsourcing.persistence import MapperDeserialisationError
from psycopg import Connection
from psycopg.rows import TupleRow

from engine.event_store import EVENTS
from engine.log import Log, LogWindow, event_id
from engine.persons import forgotten
from engine.telemetry import TelemetryEvent
from projections.analytics import videos
from projections.analytics.rules import TOPICS, NotCountable, Row, row_of
from projections.analytics.videos import WRITES
from projections.integration_events import (
    NotPublishable,
    events_for,
    from_event,
    from_telemetry,
)

WINDOW_EVENTS = 5_000

HEAD = f"SELECT coalesce(max(notification_id), 0) FROM {EVENTS}".encode()
# The log names who was forgotten since, and the analytics no longer do: so nobody it was.
TABLES = b"""
CREATE TEMPORARY TABLE told_forgotten (person text COLLATE "C" PRIMARY KEY);
CREATE TEMPORARY TABLE told_by_log (position bigint NOT NULL, LIKE analytics.video_analytics);
CREATE INDEX ON told_by_log ("timestamp");
CREATE TEMPORARY VIEW told_rows AS
SELECT position, event_id, video_id,
       CASE WHEN user_id NOT IN (SELECT person FROM told_forgotten) THEN user_id END AS user_id,
       event_type, "timestamp", metadata
FROM told_by_log;
CREATE TEMPORARY TABLE told_unreadable (event_id uuid PRIMARY KEY);
CREATE TEMPORARY TABLE told_videos (LIKE analytics.videos INCLUDING ALL)
"""
COPY = b"""
COPY told_by_log (position, event_id, video_id, user_id, event_type, "timestamp", metadata)
FROM STDIN
"""
UNREADABLE = b"INSERT INTO told_unreadable SELECT unnest(%b::uuid[]) ON CONFLICT DO NOTHING"
# The statements that write the live table, on its staging table.
STAGING_WRITES = {
    kind: statement.replace(b"analytics.videos", b"told_videos")
    for kind, statement in WRITES.items()
}

ADD_FORGOTTEN = b"INSERT INTO told_forgotten SELECT unnest(%b::text[]) ON CONFLICT DO NOTHING"
# Unless the owner is yet to be taken out.
DISOWN = b"""
UPDATE told_videos AS told SET owner = '' WHERE owner IN (SELECT person FROM told_forgotten)
    AND NOT EXISTS (SELECT FROM analytics.videos AS kept
                    WHERE kept.video_id = told.video_id AND kept.owner = told.owner)
"""

TELEMETRY = b"""
SELECT seq, event_id, topic, video_id, user_id, happened_at, details, correlation_id
FROM public.backlot_telemetry WHERE event_id = ANY (%b)
"""

OnRead = Callable[[int], None]
"""Hears of the position that was read; raises what is to end the reading."""


class StagingTables:
    """What the log tells up to a position of likes and comments, and up to another of uploads.

    They tell nothing of an event that can't be read or counted: its row, if there is one, stays.
    """

    def __init__(self, log_conn: Connection[TupleRow], conn: Connection[TupleRow]) -> None:
        """`log_conn` is where the events are, `conn` where the analytics are."""
        self._log_conn = log_conn
        self._conn = conn
        self._rows = Log(events_for(TOPICS), batch_events=WINDOW_EVENTS)
        self._videos = Log(WRITES, batch_events=WINDOW_EVENTS)
        self._rows_until = self._videos_until = 0
        self.events = 0
        conn.execute(TABLES)

    def head(self) -> int:
        """Return the last position of the log."""
        (head,) = self._log_conn.execute(HEAD).fetchone() or (0,)
        return int(head)

    def read_rows(self, on_read: OnRead = lambda _: None) -> None:
        """Go on with likes and comments to the end of the log."""
        after, until = self._rows_until, self.head()
        self._rows_until = self._read(self._rows, self._write_rows, after, until, on_read)
        self._forget()

    def read_videos(self, until: int, on_read: OnRead = lambda _: None) -> None:
        """Go on with the uploads to a position, which must be where their consumer is."""
        after = self._videos_until
        self._videos_until = self._read(self._videos, self._write_videos, after, until, on_read)
        self._forget()
        self._conn.execute(DISOWN)

    def _forget(self) -> None:
        """Learn who is forgotten, before that is compared of which they are taken out."""
        self._conn.execute(ADD_FORGOTTEN, (forgotten(self._log_conn),))

    def _read(
        self, log: Log, write: Callable[[LogWindow], None], after: int, until: int, on_read: OnRead
    ) -> int:
        while after < until:
            window = log.read(self._log_conn, after, until)
            write(window)
            self.events += len(window.events)
            after = window.until
            on_read(after)
        return after

    def _write_rows(self, window: LogWindow) -> None:
        unreadable: list[UUID] = []
        now = datetime.now(UTC)
        with self._conn.cursor() as cursor, cursor.copy(COPY) as copy:
            for stored in window.events:
                try:
                    message = from_event(*stored.decode())
                    row = row_of(message.topic, message.id, orjson.loads(message.value), now)
                except (MapperDeserialisationError, NotCountable):
                    unreadable.append(event_id(stored.stream_id, stored.version))
                    continue
                metadata = orjson.dumps(row.metadata).decode()
                copy.write_row((stored.position, *row[:5], metadata))
        if unreadable:
            self._conn.execute(UNREADABLE, (unreadable,))

    def _write_videos(self, window: LogWindow) -> None:
        with self._conn.pipeline():
            for stored in window.events:
                try:
                    message = videos.message(*stored.decode())
                except MapperDeserialisationError:
                    # The consumer has set it aside, too.
                    continue
                change = videos.change_of(message.topic, orjson.loads(message.value))
                self._conn.execute(STAGING_WRITES[change.kind], change.values, prepare=True)


def telemetry_rows(log_conn: Connection[TupleRow], ids: list[UUID]) -> Iterator[Row]:
    """Yield the rows of those events that are telemetry, as it was recorded."""
    now = datetime.now(UTC)
    for seq, *fields in log_conn.execute(TELEMETRY, (ids,)).fetchall():
        try:
            message = from_telemetry(seq, TelemetryEvent(*fields))
            yield row_of(message.topic, message.id, orjson.loads(message.value), now)
        except (NotPublishable, NotCountable):
            # The consumer has set it aside, too.
            continue

"""What the event log says, in temporary tables beside the analytics: they vanish with whoever made
them, however that ends.

It is told by what takes events in otherwise: the same messages, the same rules, the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from uuid import UUID

import orjson
from eventsourcing.persistence import MapperDeserialisationError
from psycopg import Connection
from psycopg.rows import TupleRow

from infra.codec import event_id
from infra.event_store import EVENTS
from infra.integration import events_for, from_event
from projections.analytics import uploads
from projections.analytics.rules import TOPICS, NotCountable, Row, row_of
from projections.analytics.videos import WRITES
from projections.log import Log, LogWindow, Stored

WINDOW_EVENTS = 5_000

HEAD = f"SELECT coalesce(max(notification_id), 0) FROM {EVENTS}".encode()
TABLES = b"""
CREATE TEMPORARY TABLE told_rows (
    position bigint NOT NULL,
    event_id uuid NOT NULL,
    video_id uuid NOT NULL,
    user_id text COLLATE "C",
    event_type text COLLATE "C" NOT NULL,
    "timestamp" timestamptz NOT NULL,
    metadata jsonb NOT NULL);
CREATE INDEX ON told_rows ("timestamp");
CREATE TEMPORARY TABLE told_unreadable (event_id uuid PRIMARY KEY);
CREATE TEMPORARY TABLE told_videos (LIKE analytics.videos INCLUDING ALL)
"""
COPY = b"""
COPY told_rows (position, event_id, video_id, user_id, event_type, "timestamp", metadata)
FROM STDIN
"""
UNREADABLE = b"INSERT INTO told_unreadable SELECT unnest(%b::uuid[]) ON CONFLICT DO NOTHING"
# The statements that keep the live table, on the one beside it.
WRITES_ASIDE = {
    kind: statement.replace(b"analytics.videos", b"told_videos")
    for kind, statement in WRITES.items()
}

Pace = Callable[[int], None]
"""Hears of the position that was read; raises what is to end the reading."""


class Aside:
    """What was told up to where the log was read: likes and comments, and apart from them uploads.

    Nothing is claimed of an event that can't be read or counted: its row, if there is one, stays.
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
        """The last position of the log."""
        (head,) = self._log_conn.execute(HEAD).fetchone() or (0,)
        return int(head)

    def read_rows(self, pace: Pace | None = None) -> None:
        """Go on with likes and comments to the end of the log."""
        for window in self._windows(self._rows, self._rows_until, self.head()):
            self._write_rows(window)
            self._rows_until = window.until
            if pace is not None:
                pace(window.until)

    def read_videos(self, until: int, pace: Pace | None = None) -> None:
        """Go on with the uploads to a position, which must be where their keeper is."""
        for window in self._windows(self._videos, self._videos_until, until):
            self._write_videos(window)
            self._videos_until = window.until
            if pace is not None:
                pace(window.until)

    def _windows(self, log: Log, after: int, until: int) -> Iterator[LogWindow]:
        while after < until:
            window = log.read(self._log_conn, after, until)
            yield window
            self.events += len(window.events)
            after = window.until

    def _write_rows(self, window: LogWindow) -> None:
        unreadable: list[UUID] = []
        now = datetime.now(UTC)
        with self._conn.cursor() as cursor, cursor.copy(COPY) as copy:
            for stored in window.events:
                row = self._row(stored, now)
                if row is None:
                    unreadable.append(event_id(stored.stream_id, stored.version))
                else:
                    kept = orjson.dumps(row.metadata).decode()
                    copy.write_row((stored.position, *row[:5], kept))
        if unreadable:
            self._conn.execute(UNREADABLE, (unreadable,))

    def _row(self, stored: Stored, now: datetime) -> Row | None:
        try:
            message = from_event(*self._rows.decode(stored))
            return row_of(message.topic, message.id, orjson.loads(message.value), now)
        except (MapperDeserialisationError, NotCountable):
            return None

    def _write_videos(self, window: LogWindow) -> None:
        with self._conn.pipeline():
            for stored in window.events:
                try:
                    message = uploads.message(*self._videos.decode(stored))
                except MapperDeserialisationError:
                    # The keeper has set it aside, too.
                    continue
                told = uploads.told(message.topic, orjson.loads(message.value))
                self._conn.execute(WRITES_ASIDE[told.kind], told.values, prepare=True)

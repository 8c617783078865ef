"""Stores events with all that they count for, in the caller's transaction, each once by its id.

One transaction at a time stores: what it has looked up stays true until it commits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import orjson
from psycopg import Connection
from psycopg.rows import TupleRow

from projections.analytics import sessions
from projections.analytics.migrating import Shape
from projections.analytics.rollups import Deltas
from projections.analytics.rules import VIEW, Metadata, Row
from projections.analytics.sessions import Change, Key

LOCK = b"SELECT pg_advisory_xact_lock(7104878, 5)"
STORED = b"""
SELECT event_id::text FROM analytics.video_analytics
WHERE event_id = ANY (%b::uuid[]) AND "timestamp" BETWEEN %b AND %b
"""
COPY = b"""
COPY analytics.video_analytics (event_id, video_id, user_id, event_type, "timestamp", metadata)
FROM STDIN
"""
# Row by row: a join would decompress all that lies between the first and the last of them.
CHANGE = b"""
UPDATE analytics.video_analytics SET metadata = %b::text::jsonb
WHERE event_id = %b::uuid AND "timestamp" = %b AND event_type = %b
"""
CONTROLS = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})
VIEWERS = b"""
INSERT INTO analytics.video_viewers (video_id, day, viewer)
SELECT * FROM unnest(%b::uuid[], %b::date[], %b::text[])
ON CONFLICT DO NOTHING
"""


Kept = tuple[Row, Metadata]
"""A row, and what is kept beside it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What was new, by type; how many stored events count otherwise now; when each of all these
    happened."""

    fresh: Mapping[str, int] = field(default_factory=dict)
    changed: int = 0
    times: Sequence[datetime] = ()


class Store:
    """One shape of tables, and how long a view of a session stands for its repetitions."""

    def __init__(self, shape: Shape, repeat: timedelta) -> None:
        self._shape = shape
        self._repeat = repeat

    def add(self, conn: Connection[TupleRow], rows: Iterable[Row]) -> Stored:
        """Store what is not stored yet. Has to run in a transaction, which then holds a lock."""
        conn.execute(LOCK)
        fresh = _fresh(conn, rows)
        judged = sessions.judge(conn, fresh, self._repeat)
        kept = [(row, judged.metadata.get(row.event_id, row.metadata)) for row in fresh]
        _copy(conn, kept)
        _add_viewers(conn, [row for row in fresh if row.event_type == VIEW])
        return self._count(conn, kept, judged.changes)

    def recount(self, conn: Connection[TupleRow], again: Collection[Key]) -> Stored:
        """Go through sessions again whose video is better known now."""
        conn.execute(LOCK)
        judged = sessions.judge(conn, (), self._repeat, again)
        return self._count(conn, (), judged.changes)

    def _count(
        self, conn: Connection[TupleRow], fresh: Sequence[Kept], changes: Sequence[Change]
    ) -> Stored:
        _change(conn, [change.row for change in changes])
        if self._shape is Shape.PLAIN:
            _roll_up(conn, fresh, changes)
        times = [*(row.at for row, _ in fresh), *(change.row.at for change in changes)]
        kinds = Counter(row.event_type for row, _ in fresh)
        return Stored(kinds, len(changes), times)


def _fresh(conn: Connection[TupleRow], rows: Iterable[Row]) -> list[Row]:
    """Those that are not stored, each once."""
    by_id: dict[str, Row] = {}
    for row in rows:
        by_id.setdefault(row.event_id, row)
    if not by_id:
        return []
    times = [row.at for row in by_id.values()]
    with conn.cursor(binary=True) as cursor:
        known = cursor.execute(STORED, (list(by_id), min(times), max(times)), prepare=True)
        for (id_,) in known.fetchall():
            del by_id[id_]
    return list(by_id.values())


def _copy(conn: Connection[TupleRow], rows: Sequence[Kept]) -> None:
    if not rows:
        return
    with conn.cursor() as cursor, cursor.copy(COPY) as copy:
        # As text made here: half the cost of psycopg's rows.
        copy.write("".join([_line(row, metadata) for row, metadata in rows]))


def _line(row: Row, metadata: Metadata) -> str:
    """A row in the text format of COPY; ids, types and times hold nothing to be escaped."""
    event_id, video_id, user, kind, at = row[:5]
    told = "\\N" if user is None else _escaped(user)
    kept = _escaped(orjson.dumps(metadata).decode())
    return f"{event_id}\t{video_id}\t{told}\t{kind}\t{at.isoformat()}\t{kept}\n"


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\\\")
    return text if text.isprintable() else text.translate(CONTROLS)


def _add_viewers(conn: Connection[TupleRow], views: Sequence[Row]) -> None:
    viewers = sorted({(row.video_id, row.at.date(), _viewer(row)) for row in views})
    if viewers:
        columns = [list(column) for column in zip(*viewers, strict=True)]
        conn.execute(VIEWERS, columns, prepare=True)


def _viewer(row: Row) -> str:
    return f"session:{row.session}" if row.user_id is None else row.user_id


def _change(conn: Connection[TupleRow], rows: Sequence[Row]) -> None:
    changes = [
        (orjson.dumps(row.metadata).decode(), row.event_id, row.at, row.event_type) for row in rows
    ]
    with conn.cursor() as cursor:
        cursor.executemany(CHANGE, changes)


def _roll_up(conn: Connection[TupleRow], fresh: Sequence[Kept], changes: Sequence[Change]) -> None:
    deltas = Deltas()
    for row, metadata in fresh:
        deltas.add(row.video_id, row.at, row.event_type, metadata, 1)
    for row, before in changes:
        deltas.add(row.video_id, row.at, row.event_type, before, -1)
        deltas.add(row.video_id, row.at, row.event_type, row.metadata, 1)
    deltas.write(conn)

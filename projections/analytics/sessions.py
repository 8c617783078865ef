"""Sessions as the rules remember them, and the way back where an event of one comes late."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow

from projections.analytics.rules import VIEW, Metadata, Row, Session, Video, in_order

Key = tuple[str, str]
"""A video and a session."""

LOAD = b"""
SELECT video_id::text, session::text, first_view, counted_view, last_report, watched, earliest,
       latest
FROM analytics.sessions JOIN unnest(%b::uuid[], %b::uuid[]) AS k(video_id, session)
    USING (video_id, session)
"""
SAVE = b"""
INSERT INTO analytics.sessions
    (video_id, session, first_view, counted_view, last_report, watched, earliest, latest)
SELECT * FROM unnest(%b::uuid[], %b::uuid[], %b::timestamptz[], %b::timestamptz[],
                     %b::timestamptz[], %b::double precision[], %b::timestamptz[],
                     %b::timestamptz[])
ON CONFLICT (video_id, session) DO UPDATE SET
    first_view = excluded.first_view, counted_view = excluded.counted_view,
    last_report = excluded.last_report, watched = excluded.watched,
    earliest = excluded.earliest, latest = excluded.latest
"""
# The bounds of time are given apart as well: with them TimescaleDB leaves other chunks alone.
HISTORY = b"""
SELECT a.event_id::text, a.video_id::text, k.session::text, a.user_id, a.event_type,
       a."timestamp", a.metadata
FROM unnest(%b::uuid[], %b::uuid[]) AS k(video_id, session)
JOIN analytics.video_analytics a
    ON a.metadata->>'session' = k.session::text AND a.video_id = k.video_id
WHERE a.event_type IN ('view', 'watch_time') AND a."timestamp" BETWEEN %b AND %b
"""
VIDEOS = b"""
SELECT video_id::text, owner, duration_seconds FROM analytics.videos
WHERE video_id = ANY (%b::uuid[])
"""


UNKNOWN = Video()


class Change(NamedTuple):
    """Something stored that counts otherwise once more is known."""

    row: Row
    before: Metadata


@dataclass(frozen=True, slots=True)
class Judged:
    """What is kept beside events, by id, and what changes of those that are stored."""

    metadata: dict[str, Metadata]
    changes: Sequence[Change]


@dataclass(slots=True)
class Known:
    """A session, and the times of its first and its last event; both None before there is one."""

    session: Session = field(default_factory=Session)
    earliest: datetime | None = None
    latest: datetime | None = None

    def extend(self, first: datetime, last: datetime) -> None:
        """It has events from the one time to the other, too."""
        if self.earliest is None or first < self.earliest:
            self.earliest = first
        if self.latest is None or last > self.latest:
            self.latest = last


def judge(
    conn: Connection[TupleRow],
    fresh: Iterable[Row],
    repeat: timedelta,
    again: Collection[Key] = (),
) -> Judged:
    """Decide on new events of sessions, and on all events of the sessions `again`.

    Where a new event is not later than all that are known of its session, that session is gone
    through from its beginning.
    """
    new: dict[Key, list[Row]] = defaultdict(list)
    for row in fresh:
        if row.session is not None:
            new[row.video_id, row.session].append(row)
    keys = [*new, *(key for key in again if key not in new)]
    if not keys:
        return Judged({}, ())
    known = _load(conn, keys)
    late = [key for key in keys if key in again or _is_late(known.get(key), new[key])]
    stored = _history(conn, late, known)
    videos = _videos(conn, {video for video, _ in keys})
    found: dict[str, Metadata] = {}
    for key in late:
        known[key].session = Session()
    for key in keys:
        state = known.setdefault(key, Known())
        rows = [*new.get(key, ()), *stored.get(key, ())]
        rows.sort(key=in_order)
        decide, video = state.session.decide, videos.get(key[0], UNKNOWN)
        for row in rows:
            found[row.event_id] = decide(row, video, repeat)
        if rows:
            state.extend(rows[0].at, rows[-1].at)
    _save(conn, known)
    return Judged(found, list(_changes(stored, found)))


def _changes(stored: dict[Key, list[Row]], found: dict[str, Metadata]) -> Iterable[Change]:
    for rows in stored.values():
        for row in rows:
            after = found[row.event_id]
            if after != row.metadata:
                yield Change(row._replace(metadata=after), row.metadata)


def _is_late(known: Known | None, rows: Sequence[Row]) -> bool:
    if known is None or known.latest is None:
        return False
    return any(row.at <= known.latest for row in rows)


def _load(conn: Connection[TupleRow], keys: Sequence[Key]) -> dict[Key, Known]:
    with conn.cursor(binary=True) as cursor:
        found = cursor.execute(LOAD, _columns(keys), prepare=True).fetchall()
    return {
        (video, session): Known(Session(first, counted, report, watched), earliest, latest)
        for video, session, first, counted, report, watched, earliest, latest in found
    }


def _save(conn: Connection[TupleRow], known: dict[Key, Known]) -> None:
    rows = [
        (
            *key,
            state.session.first_view,
            state.session.counted_view,
            state.session.last_report,
            state.session.watched,
            state.earliest,
            state.latest,
        )
        for key, state in sorted(known.items())
    ]
    conn.execute(SAVE, [list(column) for column in zip(*rows, strict=True)], prepare=True)


def _history(
    conn: Connection[TupleRow], keys: Sequence[Key], known: dict[Key, Known]
) -> dict[Key, list[Row]]:
    """What is stored of these sessions, with what is counted of it so far."""
    found: dict[Key, list[Row]] = defaultdict(list)
    if keys:
        since = min(filter(None, (known[key].earliest for key in keys)))
        until = max(filter(None, (known[key].latest for key in keys)))
        with conn.cursor(binary=True) as cursor:
            rows = cursor.execute(HISTORY, (*_columns(keys), since, until)).fetchall()
        for id_, video, session, user, kind, at, metadata in rows:
            reported = 0.0 if kind == VIEW else metadata["reported"]
            row = Row(id_, video, user, kind, at.astimezone(UTC), metadata, session, reported)
            found[video, session].append(row)
    return found


def _videos(conn: Connection[TupleRow], ids: Collection[str]) -> dict[str, Video]:
    with conn.cursor(binary=True) as cursor:
        found = cursor.execute(VIDEOS, (list(ids),), prepare=True).fetchall()
    return {id_: Video(owner, duration) for id_, owner, duration in found}


def _columns(keys: Sequence[Key]) -> list[list[str]]:
    return [[video for video, _ in keys], [session for _, session in keys]]

"""Sessions as the rules remember them, and the way back where an event of one comes late."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from projections.analytics.rules import (
    VIEW,
    WATCH_TIME,
    Decision,
    Metadata,
    Play,
    Row,
    Session,
    Video,
    metadata_of,
)

Key = tuple[UUID, UUID]
"""A video and a session."""

LOAD = b"""
SELECT video_id, session, first_view, counted_view, last_report, watched, earliest, latest
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
SELECT a.event_id, a.video_id, k.session, a.user_id, a.event_type, a."timestamp", a.metadata
FROM unnest(%b::uuid[], %b::uuid[]) AS k(video_id, session)
JOIN analytics.video_analytics a
    ON a.metadata->>'session' = k.session::text AND a.video_id = k.video_id
WHERE a.event_type IN ('view', 'watch_time') AND a."timestamp" BETWEEN %b AND %b
"""
VIDEOS = b"""
SELECT video_id, owner, duration_seconds FROM analytics.videos WHERE video_id = ANY (%b::uuid[])
"""


class Change(NamedTuple):
    """Something stored that counts otherwise once more is known."""

    row: Row
    before: Metadata


@dataclass(frozen=True, slots=True)
class Judged:
    """What counts of new events, by id, and what changes of those that are stored."""

    decisions: dict[UUID, Decision]
    changes: Sequence[Change]


@dataclass(slots=True)
class Known:
    """A session, and the times of its first and its last event; both None before there is one."""

    session: Session = field(default_factory=Session)
    earliest: datetime | None = None
    latest: datetime | None = None


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
        new[row.video_id, row.session].append(row)  # type: ignore[index]
    keys = sorted({*new, *again})
    if not keys:
        return Judged({}, ())
    known = _load(conn, keys)
    late = [key for key in keys if key in again or _is_late(known.get(key), new[key])]
    stored = _history(conn, late, known)
    videos = _videos(conn, {video for video, _ in keys})
    decisions: dict[UUID, Decision] = {}
    for key in late:
        known[key].session = Session()
    for key in keys:
        state = known.setdefault(key, Known())
        plays = sorted(map(_play, [*new.get(key, ()), *(row for row, _ in stored.get(key, ()))]))
        video = videos.get(key[0], Video())
        for play in plays:
            decisions[play.event_id] = state.session.decide(play, video, repeat)
        if plays:
            state.earliest = min(filter(None, (state.earliest, plays[0].at)))
            state.latest = max(filter(None, (state.latest, plays[-1].at)))
    _save(conn, known)
    return Judged(decisions, list(_changes(stored, decisions)))


def _changes(
    stored: dict[Key, list[tuple[Row, Metadata]]], decisions: dict[UUID, Decision]
) -> Iterable[Change]:
    for rows in stored.values():
        for row, before in rows:
            after = metadata_of(row, decisions[row.event_id])
            if after != before:
                yield Change(row._replace(metadata=after), before)


def _is_late(known: Known | None, rows: Sequence[Row]) -> bool:
    if known is None or known.latest is None:
        return False
    return any(row.at <= known.latest for row in rows)


def _play(row: Row) -> Play:
    return Play(row.at, row.event_type == WATCH_TIME, row.event_id, row.user_id, row.reported)


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
) -> dict[Key, list[tuple[Row, Metadata]]]:
    """What is stored of these sessions, with what was counted of it so far."""
    found: dict[Key, list[tuple[Row, Metadata]]] = defaultdict(list)
    if keys:
        since = min(filter(None, (known[key].earliest for key in keys)))
        until = max(filter(None, (known[key].latest for key in keys)))
        with conn.cursor(binary=True) as cursor:
            rows = cursor.execute(HISTORY, (*_columns(keys), since, until)).fetchall()
        for id_, video, session, user, kind, at, metadata in rows:
            reported = 0.0 if kind == VIEW else metadata["reported"]
            row = Row(id_, video, user, kind, at, metadata, session, reported)
            found[video, session].append((row, metadata))
    return found


def _videos(conn: Connection[TupleRow], ids: Collection[UUID]) -> dict[UUID, Video]:
    with conn.cursor(binary=True) as cursor:
        found = cursor.execute(VIDEOS, (list(ids),), prepare=True).fetchall()
    return {id_: Video(owner, duration) for id_, owner, duration in found}


def _columns(keys: Sequence[Key]) -> list[list[UUID]]:
    return [[video for video, _ in keys], [session for _, session in keys]]

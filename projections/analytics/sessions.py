"""Sessions as the rules remember them; one that gets a late event is judged from its beginning."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from psycopg import Connection
from psycopg.rows import TupleRow

from projections.analytics.rules import (
    VIEW,
    Metadata,
    Row,
    Session,
    WatchedVideo,
    by_days,
    in_order,
)

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
# The bounds of time are given apart as well: with them TimescaleDB leaves other chunks alone, of
# which it would lock every one, with all its indexes.
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

UNKNOWN = WatchedVideo()

Kept = tuple[Row, Metadata]
"""A row, and what is kept beside it."""


class Change(NamedTuple):
    """A stored row that counts otherwise now, and its metadata before."""

    row: Row
    before: Metadata


@dataclass(slots=True)
class Known:
    """A session, and the times of its first and its last event; both None before there is one."""

    session: Session = field(default_factory=Session)
    earliest: datetime | None = None
    latest: datetime | None = None

    def is_late(self, rows: Iterable[Row]) -> bool:
        """Return whether one of these rows is not later than all events that are known."""
        latest = self.latest
        return latest is not None and any(row.at <= latest for row in rows)

    def as_before(self, since: datetime, later: Iterable[Row]) -> Session:
        """Return the session as it was before a time; `later` are the rows since then."""
        if self.earliest is None or self.earliest >= since:
            return Session()
        now = self.session
        times = (now.first_view, now.counted_view, now.last_report)
        first, counted, report = (at if at is not None and at < since else None for at in times)
        watched = now.watched - sum(row.metadata.get("seconds", 0.0) for row in later)
        return Session(first, counted, report, max(0.0, watched))

    def extend(self, first: datetime, last: datetime) -> None:
        """Take in that the session has events from the one time to the other."""
        if self.earliest is None or first < self.earliest:
            self.earliest = first
        if self.latest is None or last > self.latest:
            self.latest = last


class Judging:
    """Sessions with new events, or whose video is better known now: loaded, decided on, saved."""

    def __init__(
        self,
        conn: Connection[TupleRow],
        fresh: Iterable[Row],
        again: Iterable[Key] = (),
        *,
        since: datetime,
    ) -> None:
        """Look up what is known of the sessions of `fresh`, and of the sessions `again`.

        The sessions `again`, and those with a late event, are judged from their beginning. What
        happened before `since` changes no more.
        """
        self._since = since
        self._new: dict[Key, list[Row]] = {key: [] for key in again}
        repeated = set(self._new)
        for row in fresh:
            if row.session is not None:
                self._new.setdefault((row.video_id, row.session), []).append(row)
        self._known = _load(conn, list(self._new))
        self._late = {
            key
            for key, known in self._known.items()
            if key in repeated or known.is_late(self._new[key])
        }
        self._stored = _history(conn, self._late, self._known, since)
        self._videos = _videos(conn, {video for video, _ in self._new})
        self._changes: list[Change] = []

    def decide(self, repeat: timedelta) -> Iterator[Kept]:
        """Yield each new event with its metadata; go through it once, to its end."""
        for key, rows in self._new.items():
            state = self._known.setdefault(key, Known())
            decide, video = state.session.decide, self._videos.get(key[0], UNKNOWN)
            if key in self._late:
                yield from self._again(key, state, video, repeat)
                continue
            rows.sort(key=in_order)
            for row in rows:
                yield row, decide(row, video, repeat)
            state.extend(rows[0].at, rows[-1].at)

    def save(self, conn: Connection[TupleRow]) -> Sequence[Change]:
        """Save the sessions; return the stored rows that count otherwise now."""
        _save(conn, self._known)
        return self._changes

    def _again(
        self, key: Key, state: Known, video: WatchedVideo, repeat: timedelta
    ) -> Iterator[Kept]:
        """Yield the new events of a session that begins anew, and note which stored ones change."""
        stored = self._stored.get(key, ())
        state.session = state.as_before(self._since, stored)
        before = {row.event_id for row in stored}
        rows = sorted((*self._new[key], *stored), key=in_order)
        for row in rows:
            after = state.session.decide(row, video, repeat)
            if row.event_id not in before:
                yield row, after
            elif after != row.metadata:
                self._changes.append(Change(row._replace(metadata=after), row.metadata))
        if rows:
            state.extend(rows[0].at, rows[-1].at)


def _load(conn: Connection[TupleRow], keys: Sequence[Key]) -> dict[Key, Known]:
    if not keys:
        return {}
    with conn.cursor(binary=True) as cursor:
        found = cursor.execute(LOAD, _columns(keys), prepare=True).fetchall()
    return {
        (video, session): Known(Session(first, counted, report, watched), earliest, latest)
        for video, session, first, counted, report, watched, earliest, latest in found
    }


def _save(conn: Connection[TupleRow], known: dict[Key, Known]) -> None:
    if not known:
        return
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
    conn: Connection[TupleRow], keys: Collection[Key], known: dict[Key, Known], since: datetime
) -> dict[Key, list[Row]]:
    """Return what is stored of these sessions since then, with what is counted of it so far."""
    found: dict[Key, list[Row]] = defaultdict(list)
    spans = [
        (key, max(state.earliest, since), state.latest)
        for key, state in ((key, known[key]) for key in keys)
        if state.earliest is not None and state.latest is not None and state.latest >= since
    ]
    for together, first, last in by_days(spans):
        with conn.cursor(binary=True) as cursor:
            rows = cursor.execute(HISTORY, (*_columns(together), first, last)).fetchall()
        for id_, video, session, user, kind, at, metadata in rows:
            reported = 0.0 if kind == VIEW else metadata["reported"]
            row = Row(id_, video, user, kind, at.astimezone(UTC), metadata, session, reported)
            found[video, session].append(row)
    return found


def _videos(conn: Connection[TupleRow], ids: Collection[str]) -> dict[str, WatchedVideo]:
    if not ids:
        return {}
    with conn.cursor(binary=True) as cursor:
        found = cursor.execute(VIDEOS, (list(ids),), prepare=True).fetchall()
    return {id_: WatchedVideo(owner, duration) for id_, owner, duration in found}


def _columns(keys: Collection[Key]) -> list[list[str]]:
    return [[video for video, _ in keys], [session for _, session in keys]]

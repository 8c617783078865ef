"""The sessions of viewers as they are kept: loaded, judged by the rules, saved.

A session that gets a late event is judged from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from operator import attrgetter

from psycopg import Connection
from psycopg.rows import TupleRow

from projections.analytics.history import Key, decide_again, stored_since
from projections.analytics.rules import (
    UNKNOWN,
    Change,
    KnownVideos,
    Row,
    Rules,
    Session,
    Verdict,
    WatchedVideo,
    columns,
    in_order,
)

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
FIELDS = attrgetter("first_view", "counted_view", "last_report", "watched", "earliest", "latest")
# The bounds of time are given apart as well: with them TimescaleDB leaves other chunks alone, of
# which it would lock every one, with all its indexes.
HISTORY = b"""
SELECT a.event_id::text, a.video_id::text, a.user_id, a.event_type, a."timestamp", a.metadata,
       k.session::text
FROM unnest(%b::uuid[], %b::uuid[]) AS k(video_id, session)
JOIN analytics.video_analytics a
    ON a.metadata->>'session' = k.session::text AND a.video_id = k.video_id
WHERE a.event_type IN ('view', 'watch_time') AND a."timestamp" BETWEEN %b AND %b
"""


class SessionJudgement:
    """Sessions with new events, or whose video is better known now: loaded, decided on, saved."""

    def __init__(
        self,
        conn: Connection[TupleRow],
        fresh: Iterable[Row],
        again: Iterable[Key],
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
        self._sessions: dict[Key, Session] = {}
        if self._new:
            with conn.cursor(binary=True) as cursor:
                found = cursor.execute(LOAD, columns(self._new), prepare=True).fetchall()
                self._sessions = {(row[0], row[1]): Session(*row[2:]) for row in found}
        self._late = {
            key
            for key, session in self._sessions.items()
            if key in repeated or _is_late(session, self._new[key])
        }
        late = {key: self._sessions[key] for key in self._late}
        self._stored = stored_since(conn, HISTORY, late, since, _key) if late else {}
        self._changes: dict[str, Change] = {}

    def decide(self, videos: KnownVideos, rules: Rules) -> Iterator[Verdict]:
        """Yield each new event with its metadata; go through it once, to its end."""
        for key, rows in self._new.items():
            session = self._sessions.setdefault(key, Session())
            video = videos.get(key[0], UNKNOWN)
            if key in self._late:
                yield from self._decide_again(key, session, video, rules)
                continue
            rows.sort(key=in_order)
            decide = session.decide
            for row in rows:
                yield row, decide(row, video, rules)
            session.extend(rows[0].at, rows[-1].at)

    def save(self, conn: Connection[TupleRow]) -> Sequence[Change]:
        """Save the sessions; return the stored rows that count otherwise now."""
        rows = [(*key, *FIELDS(session)) for key, session in sorted(self._sessions.items())]
        if rows:
            conn.execute(SAVE, columns(rows), prepare=True)
        return list(self._changes.values())

    def _decide_again(
        self, key: Key, known: Session, video: WatchedVideo, rules: Rules
    ) -> Iterator[Verdict]:
        """Yield the new events of a session that begins anew, and note which stored ones change."""
        stored = self._stored.get(key, ())
        session = self._sessions[key] = known.as_before(self._since, stored)
        return decide_again(
            session,
            lambda row, _: session.decide(row, video, rules),
            [(row, row.metadata) for row in self._new[key]],
            stored,
            self._changes,
        )


def _is_late(session: Session, rows: Iterable[Row]) -> bool:
    """Return whether one of these rows is not later than all events that are known."""
    latest = session.latest
    return latest is not None and any(row.at <= latest for row in rows)


def _key(row: Row) -> Key:
    return row.video_id, row.session or ""

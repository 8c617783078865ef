"""Sessions, and the viewers of each video, as they are kept: loaded, judged by the rules, saved.

What one viewer brings to trending depends on what the viewer did on the video before. A session
with a late event is judged from its beginning; so is a viewer who gets one, or of whose stored
events some count otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from operator import attrgetter

from psycopg import Connection
from psycopg.rows import TupleRow

from projections.analytics.calendar import by_days
from projections.analytics.rules import (
    COMMENT,
    LIKE,
    UNKNOWN,
    VIEW,
    WATCH_TIME,
    Change,
    KnownVideos,
    Metadata,
    Participant,
    Row,
    Rules,
    Session,
    Span,
    Verdict,
    WatchedVideo,
    columns,
    in_order,
    spans_since,
)

Key = tuple[str, str]
"""A video, and a session or a viewer who has a name."""

LOAD_SESSIONS = b"""
SELECT video_id::text, session::text, first_view, counted_view, last_report, watched, earliest,
       latest, first_position
FROM analytics.sessions JOIN unnest(%b::uuid[], %b::uuid[]) AS k(video_id, session)
    USING (video_id, session)
"""
SAVE_SESSIONS = b"""
INSERT INTO analytics.sessions
    (video_id, session, first_view, counted_view, last_report, watched, earliest, latest,
     first_position)
SELECT * FROM unnest(%b::uuid[], %b::uuid[], %b::timestamptz[], %b::timestamptz[],
                     %b::timestamptz[], %b::double precision[], %b::timestamptz[],
                     %b::timestamptz[], %b::timestamptz[])
ON CONFLICT (video_id, session) DO UPDATE SET
    first_view = excluded.first_view, counted_view = excluded.counted_view,
    last_report = excluded.last_report, watched = excluded.watched,
    earliest = excluded.earliest, latest = excluded.latest,
    first_position = excluded.first_position
"""
SESSION_FIELDS = attrgetter(
    "first_view", "counted_view", "last_report", "watched", "earliest", "latest", "first_position"
)
# The bounds of time are given apart as well, here and below: with them TimescaleDB leaves other
# chunks alone, of which it would lock every one, with all its indexes.
SESSION_HISTORY = b"""
SELECT a.event_id::text, a.video_id::text, a.user_id, a.event_type, a."timestamp", a.metadata,
       k.session::text
FROM unnest(%b::uuid[], %b::uuid[]) AS k(video_id, session)
JOIN analytics.video_analytics a
    ON a.metadata->>'session' = k.session::text AND a.video_id = k.video_id
WHERE a.event_type IN ('view', 'watch_time') AND a."timestamp" BETWEEN %b AND %b
"""

# What a viewer is remembered by.
REMEMBERED = frozenset((COMMENT, WATCH_TIME))

PARTICIPANT_FIELDS = attrgetter(
    "comments", "seconds", "commented_at", "reported_at", "earliest", "latest"
)
LOAD_PARTICIPANTS = b"""
SELECT video_id::text, viewer, comments, seconds, commented_at, reported_at, earliest, latest
FROM analytics.participants JOIN unnest(%b::uuid[], %b::text[]) AS k(video_id, viewer)
    USING (video_id, viewer)
"""
SAVE_PARTICIPANTS = b"""
INSERT INTO analytics.participants
    (video_id, viewer, comments, seconds, commented_at, reported_at, earliest, latest)
SELECT * FROM unnest(%b::uuid[], %b::text[], %b::bigint[], %b::double precision[],
                     %b::timestamptz[], %b::timestamptz[], %b::timestamptz[], %b::timestamptz[])
ON CONFLICT (video_id, viewer) DO UPDATE SET
    comments = excluded.comments, seconds = excluded.seconds,
    commented_at = excluded.commented_at, reported_at = excluded.reported_at,
    earliest = excluded.earliest, latest = excluded.latest
"""
PARTICIPANT_HISTORY = b"""
SELECT a.event_id::text, a.video_id::text, a.user_id, a.event_type, a."timestamp", a.metadata,
       a.metadata->>'session'
FROM unnest(%b::uuid[], %b::text[]) AS k(video_id, viewer)
JOIN analytics.video_analytics a ON a.video_id = k.video_id AND a.user_id = k.viewer
WHERE a.event_type IN ('like', 'comment', 'watch_time') AND a."timestamp" BETWEEN %b AND %b
"""

# A row tells it only where less counts in trending than elsewhere.
TRENDING = "coalesce(metadata->>'trending', metadata->>'delta', metadata->>'seconds')"
# What each viewer who has a name did on each video since a time, in order; how many comments stood
# after it, and what was watched.
ACTED = f"""
SELECT video_id, user_id AS viewer, event_type, "timestamp" AS at, event_id,
       {TRENDING}::float8 AS trending,
       CASE event_type WHEN 'watch_time' THEN 0 ELSE (metadata->>'delta')::bigint END AS delta,
       CASE WHEN event_type = 'watch_time' AND NOT (metadata->>'own')::boolean
            THEN (metadata->>'seconds')::float8 ELSE 0 END AS seconds,
       coalesce((metadata->>'own')::boolean, user_id = owner, false) AS own
FROM analytics.video_analytics LEFT JOIN told_videos USING (video_id)
WHERE event_type IN ('like', 'comment', 'watch_time') AND user_id IS NOT NULL
  AND "timestamp" >= %(since)s
"""
# What they come to. Of whom more is known than is kept, what went before is what is missing.
PARTICIPATED = f"""
WITH acted AS MATERIALIZED ({ACTED}), base AS (
    SELECT p.video_id, p.viewer, p.comments - sum(delta) FILTER (WHERE event_type = 'comment')
               AS comments, p.seconds - sum(a.seconds) AS seconds
    FROM analytics.participants AS p LEFT JOIN acted AS a USING (video_id, viewer)
    WHERE p.earliest < %(since)s GROUP BY p.video_id, p.viewer
), running AS (
    SELECT a.*, b.video_id IS NOT NULL AS goes_back,
           coalesce(b.comments, 0) + sum(CASE event_type WHEN 'comment' THEN delta ELSE 0 END)
               OVER so_far AS standing,
           greatest(coalesce(b.seconds, 0), 0) + sum(a.seconds) OVER so_far AS watched
    FROM acted AS a LEFT JOIN base AS b USING (video_id, viewer)
    WINDOW so_far AS (PARTITION BY video_id, viewer ORDER BY at, event_type, event_id)
)
SELECT video_id, viewer, bool_or(goes_back) AS goes_back,
       coalesce(sum(delta) FILTER (WHERE event_type = 'comment'), 0) AS comments,
       sum(seconds) AS seconds,
       max(at) FILTER (WHERE event_type = 'comment') AS commented_at,
       max(at) FILTER (WHERE event_type = 'watch_time') AS reported_at,
       min(at) FILTER (WHERE event_type <> 'like') AS earliest,
       max(at) FILTER (WHERE event_type <> 'like') AS latest,
       bool_or(abs(trending - CASE
           WHEN event_type = 'watch_time' AND own THEN trending
           WHEN event_type = 'watch_time' THEN
               least(seconds, greatest(0, %(viewer_seconds)s - (watched - seconds)))
           WHEN own THEN 0
           WHEN event_type = 'like' THEN delta
           ELSE greatest(0, least(standing, %(viewer_comments)s))
                - greatest(0, least(standing - delta, %(viewer_comments)s)) END) > 1e-6) AS wrong
FROM running GROUP BY video_id, viewer
"""
# Of whom nothing went before; what the rest counts is told by their own rows.
DROP_PARTICIPANTS = b"""
DELETE FROM analytics.participants AS p USING unnest(%b::uuid[], %b::text[]) AS k(video_id, viewer)
WHERE p.video_id = k.video_id AND p.viewer = k.viewer AND p.earliest >= %b
"""
PUT_PARTICIPANTS = b"""
INSERT INTO analytics.participants
SELECT a.video_id, a.user_id,
       coalesce(sum((metadata->>'delta')::bigint) FILTER (WHERE event_type = 'comment'), 0),
       coalesce(sum((metadata->>'seconds')::float8) FILTER (WHERE NOT (metadata->>'own')::boolean),
                0),
       max("timestamp") FILTER (WHERE event_type = 'comment'),
       max("timestamp") FILTER (WHERE event_type = 'watch_time'), min("timestamp"), max("timestamp")
FROM unnest(%b::uuid[], %b::text[]) AS k(video_id, viewer)
JOIN analytics.video_analytics AS a ON a.video_id = k.video_id AND a.user_id = k.viewer
WHERE event_type IN ('like', 'comment', 'watch_time') AND "timestamp" >= %b
GROUP BY a.video_id, a.user_id
ON CONFLICT DO NOTHING
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
                found = cursor.execute(LOAD_SESSIONS, columns(self._new), prepare=True).fetchall()
                self._sessions = {(row[0], row[1]): Session(*row[2:]) for row in found}
        self._late = {
            key
            for key, session in self._sessions.items()
            if key in repeated or _is_late(session, self._new[key])
        }
        late = {key: self._sessions[key] for key in self._late}
        self._stored = stored_since(conn, SESSION_HISTORY, late, since, _session_of)
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
        rows = [(*key, *SESSION_FIELDS(each)) for key, each in sorted(self._sessions.items())]
        if rows:
            conn.execute(SAVE_SESSIONS, columns(rows), prepare=True)
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


def _session_of(row: Row) -> Key:
    return row.video_id, row.session or ""


class ParticipantJudgement:
    """Viewers with new events, or some of whose stored ones count otherwise: loaded, decided on,
    saved.
    """

    def __init__(
        self,
        conn: Connection[TupleRow],
        fresh: Iterable[Verdict],
        changes: Iterable[Change],
        again: Iterable[Key],
        videos: KnownVideos,
        *,
        since: datetime,
    ) -> None:
        """Look up what is known of the viewers of `fresh`, of those of `changes`, and `again`.

        The latter two, and those with a late event, are judged from their beginning. What happened
        before `since` changes no more.
        """
        self._since, self._videos = since, videos
        self._changes = {change.row.event_id: change for change in changes}
        self._alone: list[Verdict] = []
        self._new: dict[Key, list[Verdict]] = {key: [] for key in again}
        for row, _ in self._changes.values():
            if row.user_id is not None and row.event_type != VIEW:
                self._new[row.video_id, row.user_id] = []
        repeated = set(self._new)
        # Those whose new events may not be in order; those of one session are.
        self._mixed: set[Key] = set()
        for verdict in fresh:
            row = verdict[0]
            kind, viewer = row.event_type, row.user_id
            # By a like only until the owner is known, who may be the viewer.
            remembered = kind in REMEMBERED or (kind == LIKE and row.video_id not in videos)
            if remembered and viewer is not None:
                key = (row.video_id, viewer)
                verdicts = self._new.setdefault(key, [])
                if verdicts and row.at <= verdicts[-1][0].at:
                    self._mixed.add(key)
                verdicts.append(verdict)
            else:
                self._alone.append(verdict)
        self._participants: dict[Key, Participant] = {}
        if self._new:
            with conn.cursor(binary=True) as cursor:
                cursor.execute(LOAD_PARTICIPANTS, columns(self._new), prepare=True)
                found = cursor.fetchall()
            self._participants = {(row[0], row[1]): Participant(*row[2:]) for row in found}
        self._late = {
            key: participant
            for key, participant in self._participants.items()
            if key in repeated or any(participant.is_late(row) for row, _ in self._new[key])
        }
        self._stored = stored_since(conn, PARTICIPANT_HISTORY, self._late, since, _viewer_of)

    def decide(self, rules: Rules) -> Iterator[Verdict]:
        """Yield each new event with its metadata; go through it once, to its end."""
        for row, metadata in self._alone:
            if row.event_type == LIKE and row.user_id is not None:
                video = self._videos[row.video_id]
                yield row, Participant().decide(row, metadata, video, rules)
            else:
                yield row, metadata
        for key, verdicts in self._new.items():
            video = self._videos.get(key[0], UNKNOWN)
            participant = self._participants.setdefault(key, Participant())
            if key in self._late:
                yield from self._decide_again(key, participant, rules)
                continue
            if key in self._mixed:
                verdicts.sort(key=_time_order)
            decide = participant.decide
            for row, metadata in verdicts:
                yield row, decide(row, metadata, video, rules)
            if verdicts:
                participant.extend(verdicts[0][0].at, verdicts[-1][0].at)

    def save(self, conn: Connection[TupleRow]) -> Sequence[Change]:
        """Save the viewers; return the stored rows that count otherwise now."""
        rows = [(*key, *PARTICIPANT_FIELDS(each)) for key, each in self._participants.items()]
        kept = [row for row in rows if row[-1] is not None]
        if kept:
            conn.execute(SAVE_PARTICIPANTS, columns(kept), prepare=True)
        return [each for each in self._changes.values() if each.row.metadata != each.before]

    def _decide_again(self, key: Key, known: Participant, rules: Rules) -> Iterator[Verdict]:
        """Yield the new events of a viewer who begins anew, and note which stored ones change."""
        stored = self._stored.get(key, ())
        participant = self._participants[key] = known.as_before(self._since, stored)
        video = self._videos.get(key[0], UNKNOWN)
        return decide_again(
            participant,
            lambda row, metadata: participant.decide(row, _elsewhere(metadata), video, rules),
            self._new[key],
            stored,
            self._changes,
        )


def _elsewhere(metadata: Metadata) -> Metadata:
    """Return what counts elsewhere than in trending."""
    return {name: value for name, value in metadata.items() if name != "trending"}


def _viewer_of(row: Row) -> Key:
    return row.video_id, row.user_id or ""


def count_participants(conn: Connection[TupleRow], keys: Collection[Key], since: datetime) -> None:
    """Make what is known of these viewers what their rows since a time come to, unless they have
    been there before it.
    """
    given = (*columns(keys), since)
    conn.execute(DROP_PARTICIPANTS, given)
    conn.execute(PUT_PARTICIPANTS, given)


def stored_since(
    conn: Connection[TupleRow],
    history: bytes,
    known: Mapping[Key, Span],
    since: datetime,
    key_of: Callable[[Row], Key],
) -> dict[Key, list[Row]]:
    """Return what is stored of these keys since a time, with what is counted of it so far.

    `history` asks for the rows of keys (two columns) between two times: id, video, user, kind,
    time, metadata and session of each.
    """
    found: dict[Key, list[Row]] = defaultdict(list)
    for together, first, last in by_days(spans_since(known, since)):
        with conn.cursor(binary=True) as cursor:
            rows = cursor.execute(history, (*columns(together), first, last)).fetchall()
        for id_, video, user, kind, at, metadata, session in rows:
            told = metadata.get("reported", 0.0), metadata.get("position")
            row = Row(id_, video, user, kind, at.astimezone(UTC), metadata, session, *told)
            found[key_of(row)].append(row)
    return found


def decide_again(
    known: Span,
    decide: Callable[[Row, Metadata], Metadata],
    fresh: Iterable[Verdict],
    stored: Sequence[Row],
    changes: dict[str, Change],
) -> Iterator[Verdict]:
    """Yield the new events with what counts of them, decided in order among the stored ones.

    `known` is as it was before all of them. `changes` has stored rows, by event id, that count
    otherwise already, and gets those that do now.
    """
    before = {row.event_id: row.metadata for row in stored}
    now = (changes[row.event_id].row if row.event_id in changes else row for row in stored)
    verdicts = sorted((*fresh, *((row, row.metadata) for row in now)), key=_time_order)
    for row, metadata in verdicts:
        after = decide(row, metadata)
        if row.event_id not in before:
            yield row, after
        elif after != before[row.event_id] or row.event_id in changes:
            change = Change(row._replace(metadata=after), before[row.event_id])
            changes[row.event_id] = change
    if verdicts:
        known.extend(verdicts[0][0].at, verdicts[-1][0].at)


def _time_order(verdict: Verdict) -> tuple[datetime, str, str]:
    return in_order(verdict[0])

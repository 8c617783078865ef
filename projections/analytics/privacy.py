"""What the analytics hold about persons, and how a viewer goes out of them while all numbers stay.

What a viewer did on one video becomes what nobody did in one session, which is new: so the viewer
of that video is still one, on each day and over all, and nobody can tell who that was, nor that
the one of another video was the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple
from uuid import UUID, uuid4

from psycopg import Connection
from psycopg.rows import TupleRow

from engine.personal_data import Blanked, Deleted, Left, Pace, PersonalTable, Rewritten
from infra.advisory_locks import Lock, lock_in_transaction
from projections.analytics.ingest import NO_LIMIT
from projections.analytics.rules import columns
from projections.analytics.schema import Shape, state

# By video: what happened on one goes at once, so that whoever is interrupted leaves whole viewers.
DONE_BY = b"""
SELECT video_id, event_id, "timestamp", event_type, metadata->>'session'
FROM analytics.video_analytics WHERE user_id = %b AND (metadata ? 'session' OR %b)
ORDER BY video_id
"""
# No viewer is counted by what has no session, so that it goes in any order, and never comes here.
WITHOUT_SESSION = b"""
WITH nameless AS (
    UPDATE analytics.video_analytics SET user_id = NULL, metadata = metadata - 'channel'
    WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM analytics.video_analytics
        WHERE user_id = %(viewer)b AND NOT metadata ? 'session' LIMIT %(batch)b))
      AND user_id = %(viewer)b
    RETURNING video_id),
dropped AS (
    DELETE FROM analytics.participants AS p USING (SELECT DISTINCT video_id FROM nameless) AS n
    WHERE p.video_id = n.video_id AND p.viewer = %(viewer)b)
SELECT count(*) FROM nameless
"""
VIEWED_BY = b"SELECT DISTINCT video_id FROM analytics.video_viewers WHERE viewer = %b"
NAMELESS = """
UPDATE analytics.video_analytics AS a
SET user_id = NULL, metadata = CASE WHEN a.metadata ? 'session'
    THEN jsonb_set(a.metadata, '{session}', to_jsonb(g.session::text))
    ELSE a.metadata - 'channel' END
"""
# Of plain tables many rows at once; of TimescaleDB's that would decompress all that lies between.
MANY = (
    NAMELESS
    + """
FROM unnest(%b::uuid[], %b::timestamptz[], %b::uuid[]) AS g(event_id, at, session)
WHERE a.event_id = g.event_id AND a."timestamp" = g.at AND a.user_id IS NOT NULL
"""
).encode()
ONE = (
    NAMELESS
    + """
FROM (SELECT %b::uuid AS session) AS g
WHERE a.event_id = %b::uuid AND a."timestamp" = %b AND a.event_type = %b AND a.user_id IS NOT NULL
"""
).encode()
DROP_SESSIONS = b"""
DELETE FROM analytics.sessions AS s USING unnest(%b::uuid[], %b::uuid[]) AS g(video_id, session)
WHERE s.video_id = g.video_id AND s.session = g.session
"""
# What is stored of them counts as it was judged.
DROP_PARTICIPANTS = b"""
DELETE FROM analytics.participants WHERE video_id = ANY (%b::uuid[]) AND viewer = %b
"""
RENAME_VIEWER = b"""
UPDATE analytics.video_viewers AS v SET viewer = 'session:' || g.session
FROM unnest(%b::uuid[], %b::uuid[]) AS g(video_id, session)
WHERE v.video_id = g.video_id AND v.viewer = %b
"""
# By their keys, whatever the planner thinks of the tables' sizes: else each batch reads them whole.
PLANNING = b"""
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
       set_config('enable_mergejoin', 'off', true)
"""
ROWS_AT_ONCE = 2_000
WITH_ROWS = Left("made nameless with the rows of `analytics.video_analytics`")


class DoneRow(NamedTuple):
    """What a viewer did once; `session` is that in which they watched."""

    video_id: UUID
    event_id: UUID
    at: object
    event_type: str
    session: str | None


def forget_viewer(conn: Connection[TupleRow], viewer: str, pace: Pace) -> int:
    """Make nobody's what a viewer did, and return how many rows that are; raise psycopg.Error.

    Sums, and counts of viewers, stay as they are. Consumers store meanwhile, between batches.
    """
    found = state(conn)
    if found is None:
        return 0
    is_plain = found.shape is Shape.PLAIN
    stored = conn.execute(DONE_BY, (viewer, not is_plain)).fetchall()
    done = [DoneRow(*row) for row in stored]
    by_video = {video: list(rows) for video, rows in groupby(done, lambda row: row.video_id)}
    for (video,) in conn.execute(VIEWED_BY, (viewer,)).fetchall():
        # Of these the rows are gone, by their age.
        by_video.setdefault(video, [])
    for videos in _batches(by_video):
        with pace(), _storing_nothing(conn):
            if not is_plain:
                conn.execute(NO_LIMIT)
            sessions = {video: uuid4() for video in videos}
            rows = [row for video in videos for row in by_video[video]]
            _make_nameless(conn, found.shape, rows, sessions)
            conn.execute(DROP_PARTICIPANTS, (videos, viewer))
            conn.execute(RENAME_VIEWER, (*columns(sessions.items()), viewer))
    return len(done) + (_forget_without_session(conn, viewer, pace) if is_plain else 0)


@contextmanager
def _storing_nothing(conn: Connection[TupleRow]) -> Iterator[None]:
    """A transaction in which no consumer stores."""
    with conn.transaction():
        conn.execute(PLANNING)
        lock_in_transaction(conn, Lock.ANALYTICS_ROWS)
        yield


def _forget_without_session(conn: Connection[TupleRow], viewer: str, pace: Pace) -> int:
    gone, went = 0, ROWS_AT_ONCE
    while went == ROWS_AT_ONCE:
        with pace(), _storing_nothing(conn):
            given = {"viewer": viewer, "batch": ROWS_AT_ONCE}
            ((went,),) = conn.execute(WITHOUT_SESSION, given).fetchall()
        gone += went
    return gone


def _make_nameless(
    conn: Connection[TupleRow], shape: Shape, rows: list[DoneRow], sessions: dict[UUID, UUID]
) -> None:
    if not rows:
        return
    if shape is Shape.PLAIN:
        given = columns((row.event_id, row.at, sessions[row.video_id]) for row in rows)
        conn.execute(MANY, given)
    else:
        with conn.cursor() as cursor:
            cursor.executemany(
                ONE,
                [(sessions[row.video_id], row.event_id, row.at, row.event_type) for row in rows],
            )
    if watched := {(row.video_id, row.session) for row in rows if row.session is not None}:
        conn.execute(DROP_SESSIONS, columns(sorted(watched)))


def _batches(by_video: dict[UUID, list[DoneRow]]) -> Iterator[list[UUID]]:
    """Yield videos, as many at a time as have about so many rows."""
    videos: list[UUID] = []
    rows = 0
    for video, done in by_video.items():
        videos.append(video)
        rows += max(1, len(done))
        if rows >= ROWS_AT_ONCE:
            yield videos
            videos, rows = [], 0
    if videos:
        yield videos


TERM = "ANALYTICS_RETENTION_DAYS"
PERSONAL = (
    PersonalTable(
        name="analytics.video_analytics",
        holds="views, watch time, shares, likes and comments as they are counted, one by one",
        kept="so many days",
        setting=TERM,
        table="analytics.video_analytics",
        columns=("user_id",),
        analytics=True,
        forget=Rewritten(forget_viewer, "named by nobody: all numbers stay"),
    ),
    PersonalTable(
        name="analytics.video_viewers",
        holds="who viewed which video on which day",
        kept="so many days",
        setting=TERM,
        table="analytics.video_viewers",
        columns=("viewer",),
        analytics=True,
        forget=WITH_ROWS,
    ),
    PersonalTable(
        name="analytics.sessions",
        holds="what the rules remember of each session of watching",
        kept="so many days after its last event",
        setting=TERM,
        table="analytics.sessions",
        where="session::text IN (SELECT metadata->>'session' FROM analytics.video_analytics "
        "WHERE user_id = %(subject)s)",
        analytics=True,
        forget=WITH_ROWS,
    ),
    PersonalTable(
        name="analytics.participants",
        holds="what the rules remember of a viewer on a video: comments, seconds watched",
        kept="so many days after the last event",
        setting=TERM,
        table="analytics.participants",
        columns=("viewer",),
        analytics=True,
        # Those whose rows are gone by their age.
        forget=Deleted(),
    ),
    PersonalTable(
        name="analytics.videos",
        holds="whose videos there are, with category and length",
        kept="follows the event log",
        table="analytics.videos",
        columns=("owner",),
        analytics=True,
        forget=Blanked("owner = ''", "that there was a video stays"),
    ),
)

"""Compares one day of the analytics, or the videos, with what they should be, and mends them.

Each function works in the caller's transaction. PostgreSQL compares, so that this process needs no
memory however much differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from engine.comparison import (
    CHANGES,
    NAMED_KEYS,
    SESSION,
    Difference,
    DifferentKey,
    Kind,
    TableDifference,
)
from infra.advisory_locks import Lock, lock_in_transaction
from infra.http.shapes import rfc3339
from projections.analytics import audience
from projections.analytics.calendar import DAY
from projections.analytics.ingest import COLUMNS, NO_LIMIT, Store
from projections.analytics.ingest import COUNTS as WHOLE
from projections.analytics.ingest import SECONDS as PARTS
from projections.analytics.judgement import PARTICIPATED, TRENDING, Key, count_participants
from projections.analytics.rules import Rules
from projections.analytics.schema import Shape
from projections.analytics.staging_tables import telemetry_rows
from projections.analytics.viewers import COUNTED, FLOOR

SUMS = {"video_hourly": "counted_hourly", "video_daily": "counted_daily"}

DAILY = ", ".join(
    [
        *(f"sum({name})::bigint AS {name}" for name in WHOLE),
        *(f"sum({name}) AS {name}" for name in PARTS),
    ]
)

TABLES = f"""
CREATE TEMPORARY TABLE wrong ("table" text NOT NULL, kind text NOT NULL, event_id uuid,
    video_id uuid, at timestamptz, viewer text COLLATE "C", changes jsonb) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE counted_hourly (LIKE analytics.video_hourly) ON COMMIT DELETE ROWS;
CREATE TEMPORARY VIEW counted_daily AS
    SELECT date_trunc('day', bucket, 'UTC') AS bucket, video_id, {DAILY}
    FROM counted_hourly GROUP BY 1, 2;
CREATE TEMPORARY TABLE counted_audience (LIKE analytics.audience_hourly) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE wrong_videos (video_id uuid PRIMARY KEY);
CREATE TEMPORARY TABLE miscounted_videos (video_id uuid PRIMARY KEY);
CREATE TEMPORARY TABLE misjudged (video_id uuid, viewer text COLLATE "C",
    PRIMARY KEY (video_id, viewer))
""".encode()

KIND = """
CASE WHEN {kept} IS NULL THEN 'missing' WHEN {right} IS NULL THEN 'extra' ELSE 'different' END
"""
OF_DAY = """ "timestamp" >= %(since)s AND "timestamp" < %(until)s """

# What is not stored is missing once its sink has passed it; what is stored was told by some
# event, unless that can't be read now.
WRONG_ROWS = f"""
INSERT INTO wrong ("table", kind, event_id, at, changes)
SELECT 'video_analytics', {KIND.format(kept="kept.video_id", right="told.video_id")}, event_id,
       "timestamp", {CHANGES.format(one="kept", two="told")}
FROM (SELECT * FROM told_rows WHERE {OF_DAY}) AS told
FULL JOIN (SELECT event_id, video_id,
                  CASE WHEN user_id NOT IN (SELECT person FROM told_forgotten) THEN user_id END
                      AS user_id, event_type, "timestamp", metadata - 'trending' AS metadata
           FROM analytics.video_analytics
           WHERE event_type IN ('like', 'comment') AND {OF_DAY}) AS kept
    USING (event_id, "timestamp")
WHERE (kept.video_id, kept.user_id, kept.event_type, kept.metadata)
      IS DISTINCT FROM (told.video_id, told.user_id, told.event_type, told.metadata)
  AND (kept.video_id IS NOT NULL OR told.position <= %(due)s)
  AND NOT EXISTS (SELECT FROM told_unreadable AS u WHERE u.event_id = kept.event_id)
""".encode()

# The rows as they should be: where some are wrong, the sums of the others are right.
RIGHT_ROWS = f"""
SELECT video_id, user_id, event_type, "timestamp", metadata
FROM analytics.video_analytics AS kept
WHERE event_type IN ('view', 'like', 'comment', 'watch_time', 'share') AND {OF_DAY}
  AND NOT EXISTS (SELECT FROM wrong AS w
                  WHERE w.event_id = kept.event_id AND w.at = kept."timestamp")
UNION ALL
SELECT told.video_id, user_id, event_type, "timestamp", metadata
FROM told_rows AS told JOIN wrong AS w ON w.event_id = told.event_id
WHERE w.kind <> 'extra' AND w.at = told."timestamp" AND {OF_DAY}
"""
COUNT = f"""
INSERT INTO counted_hourly (bucket, video_id, {COLUMNS})
SELECT date_trunc('hour', "timestamp", 'UTC'), video_id,
       count(*) FILTER (WHERE event_type = 'view' AND (metadata->>'counts')::boolean),
       count(*) FILTER (WHERE event_type = 'view' AND (metadata->>'counts')::boolean
                          AND NOT (metadata->>'own')::boolean),
       coalesce(sum((metadata->>'delta')::bigint) FILTER (WHERE event_type = 'like'), 0),
       coalesce(sum({TRENDING}::bigint) FILTER (WHERE event_type = 'like'), 0),
       coalesce(sum((metadata->>'delta')::bigint) FILTER (WHERE event_type = 'comment'), 0),
       coalesce(sum({TRENDING}::bigint) FILTER (WHERE event_type = 'comment'), 0),
       count(*) FILTER (WHERE event_type = 'share'),
       coalesce(sum((metadata->>'seconds')::double precision)
           FILTER (WHERE event_type = 'watch_time'), 0),
       coalesce(sum({TRENDING}::double precision)
           FILTER (WHERE event_type = 'watch_time' AND NOT (metadata->>'own')::boolean), 0)
FROM ({RIGHT_ROWS}) AS r GROUP BY 1, 2
""".encode()

# Sums of doubles depend on the order of their addends.
SECONDS = " OR ".join(
    f"abs(kept.{name} - counted.{name}) > 1e-6 + 1e-9 * abs(counted.{name})" for name in PARTS
)
WRONG_SUMS = f"""
INSERT INTO wrong ("table", kind, video_id, at, changes)
SELECT '{{table}}', {KIND.format(kept="kept.views", right="counted.views")}, video_id, bucket,
       {CHANGES.format(one="kept", two="counted")}
FROM {{counted}} AS counted
FULL JOIN (SELECT * FROM analytics.{{table}}
           WHERE bucket >= %(since)s AND bucket < %(until)s) AS kept USING (video_id, bucket)
WHERE ({", ".join(f"kept.{name}" for name in WHOLE)})
      IS DISTINCT FROM ({", ".join(f"counted.{name}" for name in WHOLE)})
   OR {SECONDS}
"""
DROP_SUMS = """
DELETE FROM analytics.{table} AS kept USING wrong AS w
WHERE w."table" = '{table}' AND kept.video_id = w.video_id AND kept.bucket = w.at
"""
PUT_SUMS = """
INSERT INTO analytics.{table} (bucket, video_id, {columns})
SELECT bucket, video_id, {columns} FROM {counted} JOIN wrong AS w USING (video_id)
WHERE w.at = bucket AND w."table" = '{table}' AND w.kind <> 'extra'
"""

COUNT_AUDIENCE = f"""
INSERT INTO counted_audience (bucket, video_id, sessions, milliseconds)
{audience.COUNTED.format(rows=f"({RIGHT_ROWS}) AS right_rows")}
""".encode()
# Zeros at the end, and hours of nothing, may be there or not.
WRONG_AUDIENCE = f"""
INSERT INTO wrong ("table", kind, video_id, at)
SELECT 'audience_hourly', {KIND.format(kept="kept.sessions", right="counted.sessions")}, video_id,
       bucket
FROM counted_audience AS counted
FULL JOIN (SELECT * FROM analytics.audience_hourly
           WHERE bucket >= %(since)s AND bucket < %(until)s) AS kept USING (video_id, bucket)
WHERE coalesce(kept.sessions, 0) <> coalesce(counted.sessions, 0)
   OR EXISTS (SELECT FROM unnest(kept.milliseconds, counted.milliseconds) AS u(a, b)
              WHERE coalesce(a, 0) <> coalesce(b, 0))
""".encode()

VIEWED = f"""
SELECT video_id, coalesce(user_id, 'session:' || (metadata->>'session')) AS viewer,
       max(date_trunc('hour', "timestamp", 'UTC')) AS hour
FROM ({RIGHT_ROWS}) AS r WHERE event_type = 'view' GROUP BY 1, 2
"""
DIGEST = """
count(*), coalesce(sum(hashtextextended(viewer, uuid_hash_extended(
    video_id, extract(epoch FROM hour)::bigint))), 0)
"""
VIEWERS_BY_DAY = f"SELECT day, {DIGEST} FROM analytics.video_viewers GROUP BY day".encode()
VIEWERS_OF_DAY = f"SELECT {DIGEST} FROM ({VIEWED}) AS viewed".encode()
WRONG_VIEWERS = f"""
INSERT INTO wrong ("table", kind, video_id, at, viewer)
SELECT 'video_viewers', {KIND.format(kept="kept.hour", right="viewed.hour")}, video_id,
       coalesce(viewed.hour, kept.hour), viewer
FROM ({VIEWED}) AS viewed
FULL JOIN (SELECT * FROM analytics.video_viewers WHERE day = %(day)s) AS kept
    USING (video_id, viewer)
WHERE kept.hour IS DISTINCT FROM viewed.hour
""".encode()
DROP_VIEWERS = b"""
DELETE FROM analytics.video_viewers AS kept USING wrong AS w
WHERE w."table" = 'video_viewers' AND w.kind = 'extra' AND kept.day = %(day)s
  AND kept.video_id = w.video_id AND kept.viewer = w.viewer
"""
PUT_VIEWERS = b"""
INSERT INTO analytics.video_viewers (video_id, viewer, day, hour)
SELECT video_id, viewer, %(day)s, at FROM wrong
WHERE "table" = 'video_viewers' AND kind <> 'extra'
ON CONFLICT (video_id, viewer, day) DO UPDATE SET hour = excluded.hour
"""

# An hour of nobody may be there or not.
WRONG_COUNTS = f"""
INSERT INTO wrong ("table", kind, video_id, at, changes)
SELECT 'viewers_hourly', {KIND.format(kept="kept.viewers", right="counted.viewers")}, video_id,
       bucket, {CHANGES.format(one="kept", two="counted")}
FROM ({COUNTED.format(these=f"hour >= {FLOOR}")}) AS counted
FULL JOIN (SELECT * FROM analytics.viewers_hourly
           WHERE bucket >= {FLOOR} AND (viewers, latest) <> (0, 0)) AS kept
    USING (video_id, bucket)
WHERE (kept.viewers, kept.latest) IS DISTINCT FROM (counted.viewers, counted.latest)
""".encode()
KEEP_MISCOUNTED = b"INSERT INTO miscounted_videos SELECT DISTINCT video_id FROM wrong"
FORGET_MISCOUNTED = b"TRUNCATE miscounted_videos"

WRONG_PARTICIPANTS = f"""
INSERT INTO wrong ("table", kind, video_id, viewer)
SELECT 'participants', {KIND.format(kept="kept.earliest", right="told.video_id")}, video_id, viewer
FROM ({PARTICIPATED}) AS told FULL JOIN analytics.participants AS kept USING (video_id, viewer)
WHERE told.wrong
   OR kept.earliest IS NULL AND told.earliest IS NOT NULL
   OR kept.commented_at IS DISTINCT FROM coalesce(told.commented_at, kept.commented_at)
   OR kept.reported_at IS DISTINCT FROM coalesce(told.reported_at, kept.reported_at)
   OR kept.earliest >= %(since)s
      AND (kept.comments <> coalesce(told.comments, 0)
           OR abs(kept.seconds - coalesce(told.seconds, 0))
                 > 1e-6 + 1e-9 * kept.seconds)
""".encode()
KEEP_MISJUDGED = b"INSERT INTO misjudged SELECT DISTINCT video_id, viewer FROM wrong"
FORGET_MISJUDGED = b"TRUNCATE misjudged"
NEXT_MISJUDGED = b"""
SELECT video_id::text, viewer FROM misjudged WHERE (video_id, viewer) > (%b::uuid, %b)
ORDER BY video_id, viewer LIMIT %b
"""

# Whatever lies under the id of an event of the log is what its row has become.
DROP_ROWS = f"""
DELETE FROM analytics.video_analytics AS kept USING wrong AS w
WHERE kept.event_id = w.event_id AND kept."timestamp" = w.at AND {OF_DAY}
""".encode()
PUT_ROWS = f"""
INSERT INTO analytics.video_analytics
    (event_id, video_id, user_id, event_type, "timestamp", metadata)
SELECT event_id, told.video_id, user_id, event_type, "timestamp", metadata
FROM told_rows AS told JOIN wrong AS w USING (event_id)
WHERE w.kind <> 'extra' AND w.at = "timestamp" AND {OF_DAY}
""".encode()
FORGET_ROWS = b"DELETE FROM wrong WHERE event_id IS NOT NULL"

WRONG_VIDEOS = f"""
INSERT INTO wrong ("table", kind, video_id, changes)
SELECT 'videos', {KIND.format(kept="kept.owner", right="told.owner")}, video_id,
       {CHANGES.format(one="kept", two="told")}
FROM told_videos AS told FULL JOIN analytics.videos AS kept USING (video_id)
WHERE kept IS DISTINCT FROM told
""".encode()
KEEP_VIDEOS = b"INSERT INTO wrong_videos SELECT video_id FROM wrong ON CONFLICT DO NOTHING"

COUNT_WRONG = b'SELECT kind, count(*) FROM wrong WHERE "table" = %b GROUP BY kind'
NAME_WRONG = b"""
SELECT DISTINCT kind, event_id, video_id, at, changes FROM wrong WHERE "table" = %b
ORDER BY at, event_id, video_id LIMIT %b
"""

ROWS, VIEWERS, VIDEOS = "video_analytics", "video_viewers", "videos"
AUDIENCE = "audience_hourly"
COUNTS, PARTICIPANTS = "viewers_hourly", "participants"

Digest = tuple[int, int]
"""How many viewers, and a hash of them all."""

MANY = 1_000
VIDEOS_AT_ONCE = 500

# What was mended has to outlast a crash, unlike what is taken in again by itself.
DURABLE = b"SET LOCAL synchronous_commit = on"

EXTRA = b"""
SELECT event_id FROM wrong WHERE kind = 'extra' AND event_id > %b ORDER BY event_id LIMIT %b
"""

NEXT_VIDEOS = "SELECT video_id FROM {table} WHERE video_id > %b ORDER BY video_id LIMIT %b"
# Sessions were judged by the owner and the length; who it was goes without a new judgement.
MISJUDGED = b"""
SELECT video_id FROM told_videos AS told FULL JOIN analytics.videos AS kept USING (video_id)
WHERE video_id = ANY (%b)
  AND (CASE WHEN told.owner = '' THEN kept.owner ELSE told.owner END, told.duration_seconds)
      IS DISTINCT FROM (kept.owner, kept.duration_seconds)
"""
DROP_VIDEOS = b"""
DELETE FROM analytics.videos AS kept WHERE video_id = ANY (%b)
  AND NOT EXISTS (SELECT FROM told_videos AS told WHERE told.video_id = kept.video_id)
"""
PUT_VIDEOS = b"""
INSERT INTO analytics.videos SELECT * FROM told_videos WHERE video_id = ANY (%b)
ON CONFLICT (video_id) DO UPDATE SET owner = excluded.owner, category = excluded.category,
    completed_at = excluded.completed_at, removed = excluded.removed,
    duration_seconds = excluded.duration_seconds, listed = excluded.listed
"""
SESSIONS = b"""
SELECT video_id::text, session::text FROM analytics.sessions
WHERE video_id = ANY (%b) AND (video_id, session) > (%b::uuid, %b::uuid)
ORDER BY video_id, session LIMIT %b
"""
NOBODY = UUID(int=0)

Day = dict[str, Any]
"""What a statement about a day is given."""


def day_of(since: datetime, due: int) -> Day:
    """Return a day (UTC), whose events have to be there up to a position of the log."""
    return {"since": since, "until": since + DAY, "day": since.date(), "due": due}


def nothing_differs() -> Difference:
    """Return the difference to begin with: nothing was found yet."""
    return Difference("analytics", "events")


def compare_rows(conn: Connection[TupleRow], day: Day, found: Difference) -> None:
    """Compare likes and comments with what the event log tells."""
    conn.execute(WRONG_ROWS, day)
    _tell(conn, ROWS, found)


def compare_derived(
    conn: Connection[TupleRow], day: Day, found: Difference, viewers: Digest
) -> None:
    """Compare sums and viewers with the rows as they should be; `viewers` is the kept digest."""
    conn.execute(COUNT, day)
    for table, counted in SUMS.items():
        conn.execute(WRONG_SUMS.format(table=table, counted=counted).encode(), day)
        _tell(conn, table, found)
    conn.execute(COUNT_AUDIENCE, day)
    conn.execute(WRONG_AUDIENCE, day)
    _tell(conn, AUDIENCE, found)
    count, digest = conn.execute(VIEWERS_OF_DAY, day).fetchone() or (0, 0)
    if (count, int(digest)) != viewers:
        conn.execute(WRONG_VIEWERS, day)
        _tell(conn, VIEWERS, found)


def compare_videos(conn: Connection[TupleRow], found: Difference) -> None:
    """Compare the videos with what the event log tells, and note those that are to be mended."""
    conn.execute(WRONG_VIDEOS)
    conn.execute(KEEP_VIDEOS)
    _tell(conn, VIDEOS, found)


def compare_counts(conn: Connection[TupleRow], found: Difference) -> None:
    """Compare the counts of viewers with the viewers, and note the videos that are miscounted."""
    conn.execute(FORGET_MISCOUNTED)
    conn.execute(WRONG_COUNTS)
    conn.execute(KEEP_MISCOUNTED)
    _tell(conn, COUNTS, found)


def compare_participants(
    conn: Connection[TupleRow], rules: Rules, since: datetime, found: Difference
) -> None:
    """Compare what is known of the viewers of each video, and what of theirs counts in trending,
    with their rows since a time; note those of whom something differs.
    """
    conn.execute(FORGET_MISJUDGED)
    caps = {"viewer_comments": rules.viewer_comments, "viewer_seconds": rules.viewer_seconds}
    conn.execute(WRONG_PARTICIPANTS, {"since": since, **caps})
    conn.execute(KEEP_MISJUDGED)
    _tell(conn, PARTICIPANTS, found)


def viewers_by_day(conn: Connection[TupleRow]) -> dict[date, Digest]:
    """Return a digest of the viewers of each day, in one pass over their table."""
    return {day: (count, int(digest)) for day, count, digest in conn.execute(VIEWERS_BY_DAY)}


def merged(found: Iterable[Difference]) -> Difference:
    """Return several differences as one: the sums per table, and the first keys."""
    whole = nothing_differs()
    tables: dict[str, TableDifference] = {}
    for each in found:
        for table in each.tables:
            total = tables.setdefault(table.table, TableDifference(table.table))
            total.missing += table.missing
            total.extra += table.extra
            total.different += table.different
        whole.keys += each.keys[: NAMED_KEYS - len(whole.keys)]
    whole.tables = [tables[name] for name in sorted(tables)]
    return whole


def _tell(conn: Connection[TupleRow], table: str, found: Difference) -> None:
    """Add to what was found how much is wrong in a table, and name the first of it."""
    difference = TableDifference(table)
    for kind, count in conn.execute(COUNT_WRONG, (table,)).fetchall():
        setattr(difference, kind, count)
    if not difference.total:
        return
    found.tables.append(difference)
    named = conn.execute(NAME_WRONG, (table, NAMED_KEYS)).fetchall()
    for kind, event_id, video_id, at, changes in named:
        # Viewers are counted and not named: they are people.
        key: dict[str, str | None]
        key = {"event_id": str(event_id)} if event_id else {"video_id": str(video_id)}
        if at is not None:
            key["timestamp" if event_id else "bucket"] = rfc3339(at)
        found.keys.append(DifferentKey(table, key, Kind(kind), None, None, changes or {}))


@contextmanager
def alone(conn: Connection[TupleRow], shape: Shape) -> Iterator[None]:
    """Open a transaction in which no consumer stores."""
    with conn.transaction():
        conn.execute(SESSION)
        conn.execute(DURABLE)
        if shape is Shape.TIMESCALE:
            conn.execute(NO_LIMIT)
        lock_in_transaction(conn, Lock.ANALYTICS_ROWS)
        yield


def mend_rows(
    conn: Connection[TupleRow], log_conn: Connection[TupleRow], store: Store, day: Day
) -> list[datetime]:
    """Make likes and comments what the event log tells; return the times whose counts change.

    Remove rows of which the log tells nothing; count them again where they are telemetry.
    """
    conn.execute(DROP_ROWS, day)
    conn.execute(PUT_ROWS, day)
    times: list[datetime] = []
    last = NOBODY
    while extra := [id_ for (id_,) in conn.execute(EXTRA, (last, MANY)).fetchall()]:
        last = extra[-1]
        times += store.add(conn, telemetry_rows(log_conn, extra)).times
    conn.execute(FORGET_ROWS)
    return times


def mend_derived(conn: Connection[TupleRow], shape: Shape, day: Day) -> None:
    """Make viewers, the audience, and sums in plain tables, what the rows come to."""
    conn.execute(DROP_VIEWERS, day)
    conn.execute(PUT_VIEWERS, day)
    _mend_sums(conn, AUDIENCE, "counted_audience", "sessions, milliseconds")
    if shape is Shape.PLAIN:
        for table, counted in SUMS.items():
            _mend_sums(conn, table, counted, COLUMNS)


def _mend_sums(conn: Connection[TupleRow], table: str, counted: str, columns: str) -> None:
    conn.execute(DROP_SUMS.format(table=table).encode())
    conn.execute(PUT_SUMS.format(table=table, counted=counted, columns=columns).encode())


def wrong_videos(conn: Connection[TupleRow]) -> Iterator[list[UUID]]:
    """Yield the videos that differ, in batches."""
    return _batches(conn, "wrong_videos")


def miscounted_videos(conn: Connection[TupleRow]) -> Iterator[list[UUID]]:
    """Yield the videos whose viewers are counted wrongly, in batches."""
    return _batches(conn, "miscounted_videos")


def _batches(conn: Connection[TupleRow], table: str) -> Iterator[list[UUID]]:
    query, last = NEXT_VIDEOS.format(table=table).encode(), NOBODY
    while rows := conn.execute(query, (last, VIDEOS_AT_ONCE)).fetchall():
        found = [video_id for (video_id,) in rows]
        yield found
        last = found[-1]


def misjudged_participants(conn: Connection[TupleRow]) -> Iterator[list[Key]]:
    """Yield the viewers of videos of whom something differs, in batches."""
    last = (str(NOBODY), "")
    while rows := conn.execute(NEXT_MISJUDGED, (*last, MANY)).fetchall():
        found = [(video, viewer) for video, viewer in rows]
        yield found
        last = found[-1]


def mend_participants(
    conn: Connection[TupleRow], store: Store, keys: list[Key], since: datetime
) -> Sequence[datetime]:
    """Judge these viewers again, by their rows since a time; return the times that change."""
    count_participants(conn, keys, since)
    return store.recount(conn, (), keys).times


def mend_videos(conn: Connection[TupleRow], store: Store, ids: list[UUID]) -> list[datetime]:
    """Make these videos what the event log tells, and judge their sessions again.

    Return the times whose counts change.
    """
    misjudged = [id_ for (id_,) in conn.execute(MISJUDGED, (ids,)).fetchall()]
    conn.execute(DROP_VIDEOS, (ids,))
    conn.execute(PUT_VIDEOS, (ids,))
    times: list[datetime] = []
    last = (str(NOBODY), str(NOBODY))
    while keys := conn.execute(SESSIONS, (misjudged, *last, MANY)).fetchall():
        times += store.recount(conn, [(video, session) for video, session in keys]).times
        last = keys[-1]
    return times

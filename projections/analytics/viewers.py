"""Who viewed a video on which day, and how many these are by the hour of their last view.

Stats end now, so the viewers since an hour are those whose last view is not before it. Each hour
of `viewers_hourly` has two counts: `viewers` whose last view of the day was then, and of these the
`latest`, who came on no later day. The sum of `viewers` over a day, or over the rest of it, is how
many viewed it then; the sum of `latest` since an hour is how many viewed it since, each once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import date, datetime
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from projections.analytics.calendar import start_of_hour
from projections.analytics.rules import Row

# What lies before it may be there still, and counts no more; other hours do not depend on it.
FLOOR = "(SELECT floor FROM analytics.retention)"

# All parts of a statement see the tables as they were before it.
ADD = b"""
WITH given AS MATERIALIZED (
    SELECT g.*, (SELECT v.hour FROM analytics.video_viewers AS v
                 WHERE v.video_id = g.video_id AND v.viewer = g.viewer AND v.day = g.day) AS before
    FROM unnest(%b::uuid[], %b::text[], %b::date[], %b::timestamptz[])
        AS g(video_id, viewer, day, hour)
), later AS MATERIALIZED (
    SELECT * FROM given WHERE before IS NULL OR before < hour
), stored AS (
    INSERT INTO analytics.video_viewers (video_id, viewer, day, hour)
    SELECT video_id, viewer, day, hour FROM later
    ON CONFLICT (video_id, viewer, day) DO UPDATE SET hour = excluded.hour
), latest AS MATERIALIZED (
    SELECT video_id, max(hour) AS hour,
           (SELECT v.hour FROM analytics.video_viewers AS v
            WHERE v.video_id = later.video_id AND v.viewer = later.viewer
            ORDER BY v.day DESC LIMIT 1) AS before
    FROM later GROUP BY video_id, viewer
), moved AS (
    SELECT * FROM latest WHERE before IS NULL OR before < hour
), deltas (video_id, bucket, viewers, latest) AS (
    SELECT video_id, hour, 1, 0 FROM later
    UNION ALL SELECT video_id, before, -1, 0 FROM later WHERE before IS NOT NULL
    UNION ALL SELECT video_id, hour, 0, 1 FROM moved
    UNION ALL SELECT video_id, before, 0, -1 FROM moved WHERE before IS NOT NULL
)
INSERT INTO analytics.viewers_hourly AS r (video_id, bucket, viewers, latest)
SELECT video_id, bucket, sum(viewers), sum(latest) FROM deltas
GROUP BY video_id, bucket HAVING sum(viewers) <> 0 OR sum(latest) <> 0
ON CONFLICT (video_id, bucket) DO UPDATE
SET viewers = r.viewers + excluded.viewers, latest = r.latest + excluded.latest
"""

COUNTED = """
SELECT video_id, hour AS bucket, count(*)::int AS viewers,
       count(*) FILTER (WHERE is_latest)::int AS latest
FROM (SELECT video_id, hour,
             lead(day) OVER (PARTITION BY video_id, viewer ORDER BY day) IS NULL AS is_latest
      FROM analytics.video_viewers WHERE {these}) AS viewed
GROUP BY video_id, hour
"""
DROP = b"DELETE FROM analytics.viewers_hourly WHERE video_id = ANY (%b)"
COUNT = f"""
INSERT INTO analytics.viewers_hourly (video_id, bucket, viewers, latest)
{COUNTED.format(these="video_id = ANY (%b)")}
""".encode()


def add_viewers(conn: Connection[TupleRow], views: Iterable[Row]) -> None:
    """Count who viewed; run it where nobody else does. Views that are known change nothing."""
    last: dict[tuple[str, str, date], datetime] = {}
    for row in views:
        key = row.video_id, _viewer(row), row.at.date()
        last[key] = max(row.at, last.get(key, row.at))
    if last:
        columns = zip(*((*key, start_of_hour(last[key])) for key in sorted(last)), strict=True)
        conn.execute(ADD, [list(column) for column in columns], prepare=True)


def recount_viewers(conn: Connection[TupleRow], videos: Collection[UUID]) -> None:
    """Make the counts of these videos what their viewers come to; run it where nobody stores."""
    if videos:
        conn.execute(DROP, (list(videos),))
        conn.execute(COUNT, (list(videos),))


def _viewer(row: Row) -> str:
    return f"session:{row.session}" if row.user_id is None else row.user_id

"""Which seconds of a video are watched: what reports with a position come to, by the hour.

A report says where in the video the seconds began that it reports. As many of these as count lie
from there on, in places: 120 of a second each, then 60 of two seconds, 60 of four, and so on. So a
place depends on nothing but the position, whatever the length of the video, which may not be known
yet; the counts are a function of the reports; and a video of any length is told in 60 to 120
points. Lengths are whole milliseconds, whose sums don't depend on the order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from infra.postgres.connection import column
from projections.analytics.calendar import start_of_hour
from projections.analytics.rules import (
    LONGEST_SECONDS,
    Change,
    Metadata,
    Row,
    Verdict,
    columns,
)

# A place of a second each; a doubled length has half as many of the next.
FINEST = 120
# Where the length of a video is not known, the curve ends with the last place that was watched by
# such a part of those who watched the most watched place.
LEAST_SHARE = 0.01

ADD = b"""
INSERT INTO analytics.audience_hourly AS r (bucket, video_id, sessions, milliseconds)
SELECT bucket, video_id, sessions, milliseconds::bigint[]
FROM unnest(%b::timestamptz[], %b::uuid[], %b::bigint[], %b::text[])
    AS g(bucket, video_id, sessions, milliseconds)
ON CONFLICT (video_id, bucket) DO UPDATE
SET sessions = r.sessions + excluded.sessions,
    milliseconds = ARRAY(SELECT coalesce(a, 0) + coalesce(b, 0)
                         FROM unnest(r.milliseconds, excluded.milliseconds) AS u(a, b))
"""

# As `stretch_of` has it.
REPORTS = """
SELECT video_id, "timestamp", metadata ? 'first' AS first, since,
       since + round((metadata->>'seconds')::double precision * 1000)::bigint AS until
FROM {rows} CROSS JOIN LATERAL (
    SELECT round((metadata->>'position')::double precision * 1000)::bigint AS since) AS began
WHERE event_type = 'watch_time' AND metadata ? 'position'
"""
SPREAD = """
SELECT {keys}, place, sum(least(r.until, p.until) - greatest(r.since, p.since))::bigint AS ms
FROM reports AS r JOIN analytics.audience_places AS p ON p.since < r.until AND p.until > r.since
GROUP BY {keys}, place
"""
COUNTED = f"""
WITH reports AS MATERIALIZED (
    SELECT r.*, date_trunc('hour', "timestamp", 'UTC') AS bucket FROM ({REPORTS}) AS r
), spread AS MATERIALIZED ({SPREAD.format(keys="video_id, bucket")}),
places AS (
    SELECT video_id, bucket, generate_series(0, max(place)) AS place
    FROM spread GROUP BY video_id, bucket
), watched AS (
    SELECT video_id, bucket, array_agg(coalesce(ms, 0) ORDER BY place) AS milliseconds
    FROM places LEFT JOIN spread USING (video_id, bucket, place) GROUP BY video_id, bucket
)
SELECT bucket, video_id, count(*) FILTER (WHERE first) AS sessions,
       coalesce(milliseconds, '{{{{}}}}') AS milliseconds
FROM reports LEFT JOIN watched USING (video_id, bucket)
GROUP BY bucket, video_id, milliseconds
"""
"""What all `rows` come to."""

# Hours of which a part is asked for are counted from the reports in them.
READ = f"""
WITH hours AS MATERIALIZED (
    SELECT sessions, milliseconds FROM analytics.audience_hourly
    WHERE video_id = %(video)b AND bucket >= %(since)b AND bucket < %(until)b
      AND bucket <> ALL (%(cut)b::timestamptz[])
), reports AS MATERIALIZED (
    {
    REPORTS.format(
        rows='''unnest(%(cut)b::timestamptz[]) AS hour
        JOIN analytics.video_analytics ON "timestamp" >= hour
            AND "timestamp" < hour + interval '1 hour' '''
    )
}
      AND video_id = %(video)b AND "timestamp" >= %(since)b AND "timestamp" < %(until)b
), watched AS (
    SELECT (number - 1)::int AS place, ms
    FROM hours CROSS JOIN LATERAL unnest(milliseconds) WITH ORDINALITY AS u(ms, number)
    UNION ALL SELECT place, ms FROM ({SPREAD.format(keys="video_id")}) AS s
)
SELECT place, sum(ms)::bigint FROM watched GROUP BY place
UNION ALL
SELECT NULL, (SELECT coalesce(sum(sessions), 0) FROM hours)::bigint
             + (SELECT count(*) FROM reports WHERE first)
""".encode()
LENGTH = b"SELECT duration_seconds FROM analytics.videos WHERE video_id = %b"

Stretch = tuple[int, int]
"""A part of a video, from one millisecond until before another one."""


def place_of(second: int) -> int:
    """Return the place in which a second of a video lies."""
    octave = (second // FINEST).bit_length()
    return FINEST // 2 * octave + (second >> octave)


def start_of(place: int) -> int:
    """Return the second with which a place begins."""
    octave = max(place // (FINEST // 2) - 1, 0)
    return (place - FINEST // 2 * octave) << octave


def stretch_of(metadata: Metadata) -> Stretch:
    """Return what was watched by a report with a position, as it is counted."""
    since = round(metadata["position"] * 1000)
    return since, since + round(metadata["seconds"] * 1000)


def spread(stretch: Stretch) -> Iterator[tuple[int, int]]:
    """Yield the places of a stretch, each with how many milliseconds of it lie there."""
    since, until = stretch[0], min(stretch[1], LONGEST_SECONDS * 1000)
    place = place_of(since // 1000)
    while since < until:
        place += 1
        end = min(start_of(place) * 1000, until)
        yield place - 1, end - since
        since = end


class AudienceDeltas:
    """What a batch changes in the audience of each hour (UTC)."""

    def __init__(self) -> None:
        self._sessions: Counter[tuple[str, datetime]] = Counter()
        self._watched: dict[tuple[str, datetime], Counter[int]] = {}

    def counting(self, verdicts: Iterable[Verdict]) -> Iterator[Verdict]:
        """Yield the events again, and count each as it passes."""
        for row, metadata in verdicts:
            if row.position is not None:
                self._count(row, metadata, 1)
            yield row, metadata

    def correct(self, changes: Iterable[Change]) -> None:
        """Count these events anew, in place of what was counted of them before."""
        for row, before in changes:
            if row.position is not None:
                self._count(row, before, -1)
                self._count(row, row.metadata, 1)

    def write(self, conn: Connection[TupleRow]) -> None:
        """Add the deltas; run it where nobody else does."""
        rows = [
            (hour, video, self._sessions[video, hour], _array(watched))
            for (video, hour), watched in sorted(self._watched.items())
            if self._sessions[video, hour] or any(watched.values())
        ]
        if rows:
            conn.execute(ADD, columns(rows), prepare=True)

    def _count(self, row: Row, metadata: Metadata, sign: int) -> None:
        key = row.video_id, start_of_hour(row.at)
        self._sessions[key] += sign * ("first" in metadata)
        watched = self._watched.setdefault(key, Counter())
        for place, length in spread(stretch_of(metadata)):
            watched[place] += sign * length


def _array(watched: Counter[int]) -> str:
    """Return an array of PostgreSQL, as text: arrays of arrays have to be of one length."""
    last = max((place for place, length in watched.items() if length), default=-1)
    return f"{{{','.join(str(watched[place]) for place in range(last + 1))}}}"


class Point(NamedTuple):
    """From this second of a video on: how long that was watched, as seconds, and by which part of
    the sessions; None where there are none.
    """

    second: int
    watched: float
    share: float | None


class Curve(NamedTuple):
    """What of a video was watched in how many sessions, in points of equal length but the last.

    That of the video itself is None where it is not known.
    """

    duration: float | None
    sessions: int
    step: int
    points: Sequence[Point]


async def read_audience(
    conn: AsyncConnection[TupleRow], video_id: UUID, since: datetime, until: datetime
) -> Curve:
    """Return which seconds of a video were watched between two times."""
    cut = sorted({start_of_hour(at) for at in (since, until) if start_of_hour(at) != at})
    given = {
        "video": video_id,
        "since": since,
        "until": until,
        "cut": column(cut) if cut else "{}",
    }
    found = await (await conn.execute(READ, given)).fetchall()
    (sessions,) = (count for place, count in found if place is None)
    length = await (await conn.execute(LENGTH, (video_id,))).fetchone()
    watched = {place: ms for place, ms in found if place is not None and ms > 0}
    return curve_of(watched, sessions, length[0] if length else None)


def curve_of(watched: Mapping[int, int], sessions: int, duration: float | None) -> Curve:
    """Return the curve of places that were watched for so many milliseconds.

    Its last point goes on to the end of the video, and is at least half as long as the others.
    """
    length = duration or _length_of(watched)
    step = 1
    while step * FINEST < length:
        step *= 2
    count = max(1, round(length / step)) if length else 0
    sums = [0] * count
    for place, ms in watched.items():
        if (second := start_of(place)) < length:
            sums[min(second // step, count - 1)] += ms
    lengths = [float(step)] * (count - 1) + [length - step * (count - 1)] if count else []
    points = [
        Point(step * n, ms / 1000, ms / 1000 / (size * sessions) if sessions else None)
        for n, (ms, size) in enumerate(zip(sums, lengths, strict=True))
    ]
    return Curve(duration, sessions, step, points)


def _length_of(watched: Mapping[int, int]) -> float:
    """Return where the last place ends that was watched by more than a few."""
    density = {place: ms / (start_of(place + 1) - start_of(place)) for place, ms in watched.items()}
    least = LEAST_SHARE * max(density.values(), default=0.0)
    last = max((place for place, dense in density.items() if dense >= least), default=-1)
    return float(start_of(last + 1))

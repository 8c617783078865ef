"""The few videos that can be at the top of a ranking, so that no other is looked at.

Age takes the same share from every video per hour, so that what was settled keeps its order: it is
kept with an index on `sort_key`. The first by it lead, unless a video got enough since to overtake.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from typing import Any, LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from projections.analytics.formula import BASE, LISTED, RECENT_HOUR, narrowed
from projections.analytics.windows import HOUR

# The logarithm of what the settled sums score at any time, but for what is the same for all. A
# video that is not completed yet may be of any age.
SORT_KEY: LiteralString = f"""
CASE WHEN {BASE} > 0 THEN coalesce(
    ln({BASE}) + ln(2::float8) * extract(epoch FROM completed_at)::float8 / 3600
        / greatest(%(half_life_hours)s::float8, 1), 'infinity') END
"""
# With a shorter half-life than this, keys are too large to be exact.
SHORTEST_HALF_LIFE_HOURS = 1.0

LEADING: LiteralString = """
SELECT first.video_id, sort_key
FROM (SELECT video_id, sort_key FROM analytics.trending_sums
      WHERE time_range = %(time_range)s AND sort_key IS NOT NULL
      ORDER BY sort_key DESC LIMIT %(looked_at)s) AS first
JOIN analytics.videos AS video USING (video_id)
WHERE {listed} ORDER BY sort_key DESC LIMIT %(leaders)s
"""
NEXT = b"""
SELECT sort_key FROM analytics.trending_sums
WHERE time_range = %(time_range)s AND sort_key IS NOT NULL
ORDER BY sort_key DESC OFFSET %(looked_at)s LIMIT 1
"""
# Of a few hours: to get so much in all of them, a video has to get its share in one.
RISING = f"""
SELECT DISTINCT video_id FROM analytics.video_hourly
WHERE bucket >= %(settled_until)s AND bucket < %(until)s AND {RECENT_HOUR} >= %(share)s
LIMIT %(most)s
""".encode()

# For each place in the ranking. More leaders are further above the rest, so that fewer rise.
LEADERS = 5
LOOKED_AT = 50
MOST_RISING = 1000
# Above what sums and keys lose in their last digits, and the scores' six decimals.
RELATIVE, ABSOLUTE = 1e-9, 2e-6


@dataclass(frozen=True, slots=True)
class Leaders:
    """The first by what was settled; all others that can be listed have `rest` at most."""

    videos: list[UUID]
    rest: float


async def leading(
    conn: AsyncConnection[TupleRow], limit: int, given: dict[str, Any], half_life_hours: float
) -> Leaders:
    """A few times `limit` videos; `given` has `time_range`, `now`, and what `narrowed` asks."""
    listed = LISTED + narrowed(given)
    given = {**given, "leaders": LEADERS * limit, "looked_at": LOOKED_AT * limit}
    cursor = await conn.execute(LEADING.format(listed=listed).encode(), given)
    rows = await cursor.fetchall()
    last = rows[-1] if len(rows) == LEADERS * limit else None
    if last is None:
        last = await (await conn.execute(NEXT, given)).fetchone()
    decay = log(2) * given["now"].timestamp() / 3600 / half_life_hours
    # Of a key without a bound it has none either.
    rest = exp(min(max(last[-1] - decay, -690), 690)) if last else 0.0
    return Leaders([video_id for video_id, _ in rows], rest)


async def rising(
    conn: AsyncConnection[TupleRow], rest: float, last_score: float, given: dict[str, Any]
) -> list[UUID] | None:
    """Who may have got so much since the settling that `rest` and it are `last_score`, or more.

    None where that can be too many to be looked up one by one. `given` has the formula's weights,
    and the hours that were not settled, from `settled_until` to `until`.
    """
    missing = last_score * (1 - RELATIVE) - rest * (1 + RELATIVE) - ABSOLUTE
    if missing <= 0:
        return None
    share = missing * (1 - RELATIVE) * (HOUR / (given["until"] - given["settled_until"]))
    cursor = await conn.execute(RISING, {**given, "share": share, "most": MOST_RISING + 1})
    rows = await cursor.fetchall()
    return [video_id for (video_id,) in rows] if len(rows) <= MOST_RISING else None

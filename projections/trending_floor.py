"""How much of an old video's points is left: what the site's own views and likes tell of that age.

News is over within hours, and films are watched for years: no floor is right for both.
"""

from __future__ import annotations

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

OLD_SECONDS = 7 * 24 * 3600.0
"""Of this age videos are looked at: they were there for the whole window of a week."""
DEFAULT = 0.1
"""While nothing was measured."""
LEFT = b"SELECT share FROM analytics.attention WHERE age <= %s ORDER BY age DESC LIMIT 1"


async def measured_floor(conn: AsyncConnection[TupleRow]) -> float:
    """Return the share of its points, from 0 to 1, that a video of a week keeps on this site."""
    row = await (await conn.execute(LEFT, (OLD_SECONDS,))).fetchone()
    return DEFAULT if row is None else float(row[0])

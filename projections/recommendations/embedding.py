"""Which videos' texts mean something like those of the videos that a user likes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.errors import UndefinedTable
from psycopg.rows import TupleRow

# The newest say most of what comes next, and each costs a search of the index.
MOST_SEEDS = 5
# How wide the index is searched: among 20,000 videos that found all of the 20 nearest. And it goes
# on behind videos that can't be shown until there are enough, or pgvector's own limit is reached.
SEARCH = b"""
SET LOCAL hnsw.ef_search = 100;
SET LOCAL hnsw.iterative_scan = strict_order
"""
# The limit stands in the text, since the planner has to know it to choose the index.
NEAREST: LiteralString = """
WITH seeds AS MATERIALIZED (
    SELECT embedding FROM analytics.embeddings
    WHERE video_id = ANY (%(videos)s) AND embedding IS NOT NULL
    ORDER BY array_position(%(videos)s, video_id) LIMIT {seeds}),
found AS (
    SELECT near.* FROM seeds CROSS JOIN LATERAL (
        SELECT e.video_id, e.embedding <=> seeds.embedding AS distance
        FROM analytics.embeddings AS e
        WHERE e.video_id <> ALL (%(videos)s)
          AND EXISTS (SELECT FROM analytics.videos AS v WHERE v.video_id = e.video_id
                      AND NOT v.removed AND v.completed_at IS NOT NULL)
        ORDER BY e.embedding <=> seeds.embedding LIMIT {limit}) AS near)
SELECT video_id, greatest(1 - min(distance), 0) AS similarity
FROM found GROUP BY video_id ORDER BY similarity DESC, video_id LIMIT {limit}
"""


async def nearest(
    conn: AsyncConnection[TupleRow], video_ids: Sequence[UUID], *, limit: int
) -> list[tuple[UUID, float]]:
    """At most `limit` other videos, the most similar first, each with its similarity.

    That is the cosine of the angle to the most similar of `video_ids`, and 0 when it is wider than
    90°. Only the first five of them that have an embedding are looked at: give the newest first.
    Nothing is found where embeddings are not kept. Raises psycopg.Error.
    """
    if not video_ids:
        return []
    query = NEAREST.format(seeds=MOST_SEEDS, limit=int(limit)).encode()
    try:
        async with conn.transaction():
            await conn.execute(SEARCH)
            cursor = await conn.execute(query, {"videos": list(video_ids)}, prepare=False)
            return [(video, float(similarity)) for video, similarity in await cursor.fetchall()]
    except UndefinedTable:
        return []

"""What the catalog tells of videos: what a language model reads, and titles in reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from projections.catalog import Catalog
from projections.recommendations.model import Described

# Far more than a prompt has room for; a transcript may be of hours.
DESCRIBE: LiteralString = """
SELECT upload_id AS video_id, title, left(description, 2000) AS description, category,
       left(transcript, 2000) AS transcript, spoken_language
FROM {schema}.uploads WHERE completed_position IS NOT NULL AND upload_id = ANY (%s)
"""


async def describe(
    conn: AsyncConnection[TupleRow], catalog: Catalog, videos: Sequence[UUID]
) -> dict[UUID, Described]:
    """Those of the videos that are there, as they are called now."""
    async with conn.cursor(row_factory=class_row(Described)) as cursor:
        await cursor.execute(catalog.sql(DESCRIBE), (list(videos),))
        return {each.video_id: each for each in await cursor.fetchall()}

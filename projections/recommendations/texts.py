"""What of a video is embedded: its title, category, description, and how its transcript begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString, NamedTuple
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow

from projections.catalog import Catalog

# So many characters are never more tokens than a model takes (8,191): a character has up to four
# bytes, and a token has at least one.
TEXT: LiteralString = """
left(concat_ws(chr(10), title, category, left(description, 600),
               nullif(left(transcript, 1000), '')), 2000)
"""
DIGEST: LiteralString = f"sha256(convert_to({TEXT}, 'UTF8'))"
PAGE: LiteralString = f"""
SELECT completed_position AS position, upload_id AS video_id, {DIGEST} AS digest
FROM {{schema}}.uploads WHERE completed_position > %s
ORDER BY completed_position LIMIT %s
"""
THESE: LiteralString = f"""
SELECT upload_id AS video_id, {TEXT} AS text, {DIGEST} AS digest
FROM {{schema}}.uploads WHERE completed_position IS NOT NULL AND upload_id = ANY (%s::uuid[])
ORDER BY completed_position
"""


class Digested(NamedTuple):
    """A video as the catalog orders it, and the SHA-256 of its text."""

    position: int
    video_id: UUID
    digest: bytes


class Text(NamedTuple):
    """A video's text, which may be cut, and its SHA-256."""

    video_id: UUID
    text: str
    digest: bytes


def page(
    conn: Connection[TupleRow], catalog: Catalog, after: int, limit: int
) -> Sequence[Digested]:
    """The videos that were completed after that position, the oldest first."""
    return [Digested(*row) for row in conn.execute(catalog.sql(PAGE), (after, limit)).fetchall()]


def texts_of(
    conn: Connection[TupleRow], catalog: Catalog, videos: Sequence[UUID]
) -> Sequence[Text]:
    """The texts of those that are there, the oldest first."""
    return [Text(*row) for row in conn.execute(catalog.sql(THESE), (list(videos),)).fetchall()]

"""The embeddings of one model: their texts, their table in pgvector, and the nearest videos.

An embedding is stored as halfvec: a row and its place in the index lie on one page, and the loss
is far below what separates two texts. The table is made here and not by a migration: the model
says how wide its vectors are, and another model's table begins empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import structlog
from psycopg import AsyncConnection, Connection
from psycopg.errors import InsufficientPrivilege, UndefinedTable
from psycopg.rows import TupleRow

from engine.projection import columns
from projections.analytics.videos import listed
from projections.catalog import PUBLIC, Catalog

log = structlog.get_logger(__name__)

# So many characters are never more tokens than a model takes (8,191): a character has up to four
# bytes, and a token has at least one.
TEXT: LiteralString = """
left(concat_ws(chr(10), title, category, left(description, 600),
               nullif(left(transcript, 1000), '')), 2000)
"""
DIGEST: LiteralString = f"sha256(convert_to({TEXT}, 'UTF8'))"
PAGE: LiteralString = f"""
SELECT completed_position AS position, upload_id AS video_id, {DIGEST} AS digest
FROM {{schema}}.uploads WHERE completed_position > %s AND {PUBLIC}
ORDER BY completed_position LIMIT %s
"""
THESE: LiteralString = f"""
SELECT upload_id AS video_id, {TEXT} AS text, {DIGEST} AS digest
FROM {{schema}}.uploads
WHERE completed_position IS NOT NULL AND {PUBLIC} AND upload_id = ANY (%s::uuid[])
ORDER BY completed_position
"""

# Since this one an index is searched on until enough is found that may be shown.
OLDEST = (0, 8)
EXTENSION = b"""
SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'vector'),
       coalesce((SELECT extversion FROM pg_extension WHERE extname = 'vector'),
                (SELECT default_version FROM pg_available_extensions WHERE name = 'vector')),
       to_regtype('halfvec') IS NOT NULL
"""
SPACE = b"""
CREATE TABLE IF NOT EXISTS analytics.embedding_space (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    model text NOT NULL,
    dimensions int NOT NULL)
"""
PRESENT = b"""
SELECT model, dimensions FROM analytics.embedding_space
WHERE to_regclass('analytics.embeddings') IS NOT NULL
"""
# The index leaves out what has no embedding: texts that the provider rejected. Titles come in
# clusters, between which pgvector's own width of construction leaves some that are not found.
MAKE: LiteralString = """
DROP TABLE IF EXISTS analytics.embeddings;
CREATE TABLE analytics.embeddings (
    video_id uuid PRIMARY KEY,
    digest bytea NOT NULL,
    embedding halfvec({dimensions}),
    rejected text,
    at timestamptz NOT NULL,
    CHECK ((embedding IS NULL) = (rejected IS NOT NULL)));
CREATE INDEX embeddings_nearest ON analytics.embeddings
    USING hnsw (embedding halfvec_cosine_ops) WITH (ef_construction = 128)
"""
OCCUPY = b"""
INSERT INTO analytics.embedding_space (model, dimensions) VALUES (%s, %s)
ON CONFLICT (single) DO UPDATE SET model = excluded.model, dimensions = excluded.dimensions
"""
STATE = b"""
SELECT model, dimensions, (SELECT count(embedding) FROM analytics.embeddings),
       (SELECT count(rejected) FROM analytics.embeddings)
FROM analytics.embedding_space
"""
KEPT = b"SELECT to_regclass('analytics.embeddings') IS NOT NULL"
OUTDATED = b"""
SELECT asked.video_id FROM unnest(%b::uuid[], %b::bytea[]) AS asked (video_id, digest)
LEFT JOIN analytics.embeddings AS e USING (video_id)
WHERE e.digest IS DISTINCT FROM asked.digest
  AND NOT EXISTS (SELECT FROM analytics.videos AS v
                  WHERE v.video_id = asked.video_id AND (v.removed OR NOT v.listed))
"""
PUT = b"""
INSERT INTO analytics.embeddings (video_id, digest, embedding, rejected, at)
SELECT video_id, digest, embedding::halfvec, rejected, now()
FROM unnest(%b::uuid[], %b::bytea[], %b::text[], %b::text[])
    AS given (video_id, digest, embedding, rejected)
ON CONFLICT (video_id) DO UPDATE
SET digest = excluded.digest, embedding = excluded.embedding, rejected = excluded.rejected,
    at = excluded.at
"""
FORGET = b"""
DELETE FROM analytics.embeddings AS e USING analytics.videos AS v
WHERE v.video_id = e.video_id AND (v.removed OR NOT v.listed)
"""

# The newest say most of what comes next, and each costs a search of the index.
MOST_SEEDS = 5
# How wide the index is searched: among 20,000 videos that found all of the 20 nearest. And it goes
# on behind videos that can't be shown until there are enough, or pgvector's own limit is reached.
SEARCH = b"""
SET LOCAL hnsw.ef_search = 100;
SET LOCAL hnsw.iterative_scan = strict_order
"""
# The limit stands in the text, since the planner has to know it to choose the index.
NEAREST: LiteralString = f"""
WITH seeds AS MATERIALIZED (
    SELECT embedding FROM analytics.embeddings
    WHERE video_id = ANY (%(videos)s) AND embedding IS NOT NULL
    ORDER BY array_position(%(videos)s, video_id) LIMIT {{seeds}}),
found AS (
    SELECT near.* FROM seeds CROSS JOIN LATERAL (
        SELECT e.video_id, e.embedding <=> seeds.embedding AS distance
        FROM analytics.embeddings AS e
        WHERE e.video_id <> ALL (%(videos)s)
          AND EXISTS (SELECT FROM analytics.videos AS v WHERE v.video_id = e.video_id
                      AND {listed("v")})
        ORDER BY e.embedding <=> seeds.embedding LIMIT {{limit}}) AS near)
SELECT video_id, greatest(1 - min(distance), 0) AS similarity
FROM found GROUP BY video_id ORDER BY similarity DESC, video_id LIMIT {{limit}}
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
    """Return the public videos that were completed after that position, the oldest first."""
    return [Digested(*row) for row in conn.execute(catalog.sql(PAGE), (after, limit)).fetchall()]


def texts_of(
    conn: Connection[TupleRow], catalog: Catalog, videos: Sequence[UUID]
) -> Sequence[Text]:
    """Return the texts of those that are there and public, the oldest first."""
    return [Text(*row) for row in conn.execute(catalog.sql(THESE), (list(videos),)).fetchall()]


class EmbeddingState(NamedTuple):
    """Whose embeddings are there, and how many texts have one or were rejected."""

    model: str
    dimensions: int
    embedded: int
    rejected: int

    def __str__(self) -> str:
        space = f"{self.model}, {self.dimensions} dimensions"
        return f"{space}: {self.embedded} texts embedded, {self.rejected} rejected"


class Embedded(NamedTuple):
    """What became of a text: its vector, or why the provider does not take it."""

    video_id: UUID
    digest: bytes
    vector: Sequence[float] | None
    rejected: str | None = None


def lack(conn: Connection[Any]) -> str | None:
    """Return what the database lacks for embeddings; None where it can have them, or has."""
    made, version, visible = conn.execute(EXTENSION).fetchone() or (False, None, False)
    if version is None:
        return "the server of the analytics' database has no pgvector"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"pgvector {version} is too old: version {'.'.join(map(str, OLDEST))} or newer"
    if made and not visible:
        return "pgvector lies in a schema that is not on the search_path"
    return None


def prepare(conn: Connection[TupleRow], model: str, dimensions: int) -> str | None:
    """Make the table of this model, empty after another model's; return what is lacking, if so.

    To be used by one process at a time. Raise psycopg.Error.
    """
    lacking = lack(conn)
    if lacking is not None:
        return lacking
    try:
        conn.execute(b"CREATE EXTENSION IF NOT EXISTS vector")
    except InsufficientPrivilege:
        return "a superuser has to say CREATE EXTENSION vector in the analytics' database, once"
    with conn.transaction():
        conn.execute(SPACE)
        present = conn.execute(PRESENT).fetchone()
        if present != (model, dimensions):
            conn.execute(MAKE.format(dimensions=dimensions).encode())
            conn.execute(OCCUPY, (model, dimensions))
            log.info("embeddings_begun", model=model, dimensions=dimensions, before=present)
    return None


def state(conn: Connection[Any]) -> EmbeddingState | None:
    """Return what is there now; None where nothing is."""
    try:
        row = conn.execute(STATE).fetchone()
    except UndefinedTable:
        return None
    return EmbeddingState(*row) if row else None


def outdated(conn: Connection[TupleRow], videos: Sequence[Digested]) -> set[UUID]:
    """Return those whose present text has no embedding and was not rejected either."""
    given = ([each.video_id for each in videos], [each.digest for each in videos])
    return {video for (video,) in conn.execute(OUTDATED, given).fetchall()}


def put(conn: Connection[TupleRow], batch: Sequence[Embedded]) -> None:
    """Store what became of these texts: all of them or none."""
    # Half precision keeps nothing behind the seventh digit.
    rows = [
        (
            each.video_id,
            each.digest,
            each.vector and f"[{','.join(f'{number:.7f}' for number in each.vector)}]",
            each.rejected,
        )
        for each in batch
    ]
    conn.execute(PUT, columns(rows))


def forget_unlisted(conn: Connection[TupleRow]) -> int:
    """Drop the embeddings of videos that were removed, or are not public; return how many."""
    return conn.execute(FORGET).rowcount


async def are_kept(conn: AsyncConnection[TupleRow]) -> bool:
    """Return whether there are embeddings at all; raise psycopg.Error."""
    row = await (await conn.execute(KEPT)).fetchone()
    return row is not None and bool(row[0])


async def nearest(
    conn: AsyncConnection[TupleRow], video_ids: Sequence[UUID], *, limit: int
) -> list[tuple[UUID, float]]:
    """Return at most `limit` other videos, the most similar first, each with its similarity.

    That is the cosine of the angle to the most similar of `video_ids`, and 0 when it is wider than
    90°. Only the first five of them that have an embedding are looked at: give the newest first.
    Nothing is found where embeddings are not kept. Raise psycopg.Error.
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

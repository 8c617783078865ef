"""What viewers do beside deciding: views, watch time, shares. Not aggregates, but never lost.

Acknowledged once committed; many arrive, so they are inserted in batches. `seq` counts them in the
order in which they become visible, so that whoever follows it can't skip one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import orjson
import psycopg
from psycopg import AsyncConnection, Connection, Cursor
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from infra.batching import Batcher

VIEWED = "video.viewed"
WATCH_TIME = "video.watch_time"
SHARED = "video.shared"

# The lock: CREATE … IF NOT EXISTS races with itself when several processes start at once.
TABLES: tuple[LiteralString, ...] = (
    "SELECT pg_advisory_xact_lock(7104878, 1)",
    """CREATE TABLE IF NOT EXISTS backlot_telemetry (
        event_id uuid PRIMARY KEY,
        topic text NOT NULL,
        video_id uuid NOT NULL,
        user_id text,
        happened_at timestamptz NOT NULL,
        details jsonb NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS backlot_views (
        video_id uuid PRIMARY KEY,
        views bigint NOT NULL) WITH (fillfactor = 70)""",
    """ALTER TABLE backlot_telemetry
        ADD COLUMN IF NOT EXISTS seq bigint GENERATED ALWAYS AS IDENTITY,
        ADD COLUMN IF NOT EXISTS correlation_id text""",
    "CREATE UNIQUE INDEX IF NOT EXISTS backlot_telemetry_seq ON backlot_telemetry (seq)",
    # Whether somebody has watched a video.
    """CREATE INDEX IF NOT EXISTS backlot_telemetry_viewed ON backlot_telemetry (user_id, video_id)
        WHERE topic = 'video.viewed' AND user_id IS NOT NULL""",
    # Under a lock that is held until the commit: what has a lower `seq` is visible by then.
    """CREATE OR REPLACE FUNCTION backlot_take_telemetry(ids uuid[], topics text[], videos uuid[],
        users text[], times timestamptz[], details text[], correlations text[]) RETURNS void
    LANGUAGE plpgsql AS $body$
    BEGIN
        PERFORM pg_advisory_xact_lock(7104878, 2);
        WITH taken AS (
            INSERT INTO backlot_telemetry
                (event_id, topic, video_id, user_id, happened_at, details, correlation_id)
            SELECT id, topic, video, "user", at, detail::jsonb, correlation
            FROM unnest(ids, topics, videos, users, times, details, correlations)
                WITH ORDINALITY AS e(id, topic, video, "user", at, detail, correlation, place)
            ORDER BY place
            ON CONFLICT DO NOTHING
            RETURNING backlot_telemetry.topic, video_id)
        INSERT INTO backlot_views AS v (video_id, views)
        SELECT video_id, count(*) FROM taken WHERE taken.topic = 'video.viewed' GROUP BY video_id
        ORDER BY video_id
        ON CONFLICT (video_id) DO UPDATE SET views = v.views + excluded.views;
        PERFORM pg_notify('backlot_telemetry', '');
    END
    $body$""",
)

CHANNEL = "backlot_telemetry"

INSERT = """
SELECT backlot_take_telemetry(%b::uuid[], %b::text[], %b::uuid[], %b::text[], %b::timestamptz[],
                              %b::text[], %b::text[])
"""

HEAD = "SELECT coalesce(max(seq), 0) FROM backlot_telemetry"
VIEWS = "SELECT video_id, views FROM backlot_views WHERE video_id = ANY(%b)"


class TelemetryEvent(NamedTuple):
    """One thing that a viewer did; `details` hold the rest of the published value.

    `correlation_id` names the request that told it.
    """

    event_id: UUID
    topic: str
    video_id: UUID
    user_id: str | None
    happened_at: datetime
    details: Mapping[str, Any]
    correlation_id: str | None = None


class Telemetry:
    """Takes telemetry into PostgreSQL, each event once by its id."""

    def __init__(self, database_url: str, *, max_batch: int = 1_000) -> None:
        self._pool = ConnectionPool(
            database_url,
            min_size=1,
            max_size=1,
            open=False,
            timeout=5.0,
            kwargs={"autocommit": True},
            check=ConnectionPool.check_connection,
        )
        self._batcher: Batcher[TelemetryEvent, None] = Batcher(
            self._insert, name="telemetry", max_batch=max_batch, max_waiting=50_000
        )

    def open(self) -> None:
        self._pool.open()

    async def record(self, event: TelemetryEvent) -> None:
        """Return once the event is durable. Raises psycopg.Error when the database is away."""
        await self._batcher.submit(event)

    async def close(self) -> None:
        await self._batcher.close()
        self._pool.close()

    def _insert(self, events: Sequence[TelemetryEvent]) -> Sequence[BaseException | None]:
        try:
            with self._pool.connection() as conn:
                conn.execute(INSERT, _columns(events), prepare=True)
        except psycopg.DataError as error:
            # What can't be stored must not take its batch with it.
            return [error] if len(events) == 1 else [self._insert([one])[0] for one in events]
        return [None] * len(events)


def _columns(events: Sequence[TelemetryEvent]) -> tuple[list[Any], ...]:
    return (
        [event.event_id for event in events],
        [event.topic for event in events],
        [event.video_id for event in events],
        [event.user_id for event in events],
        [event.happened_at for event in events],
        [orjson.dumps(event.details).decode() for event in events],
        [event.correlation_id for event in events],
    )


def install(conn: Connection[Any]) -> None:
    """Create the tables where they are missing."""
    with conn.transaction():
        for statement in TABLES:
            conn.execute(statement)


def head(cursor: Cursor[TupleRow]) -> int:
    """The position of the newest event; all of lower positions can be read by then."""
    ((newest,),) = cursor.execute(HEAD, prepare=True).fetchall()
    return int(newest)


class Views:
    """How often videos were viewed."""

    async def views(self, conn: AsyncConnection[Any], video_ids: Sequence[UUID]) -> dict[UUID, int]:
        """Views by video; videos that nobody viewed are missing."""
        cursor = await conn.execute(VIEWS, (list(video_ids),))
        return {row[0]: row[1] for row in await cursor.fetchall()}

    def of(self, cursor: Cursor[Any], video_ids: Sequence[UUID]) -> dict[UUID, int]:
        """The same, for the command bus."""
        cursor.execute(VIEWS, (list(video_ids),), prepare=True)
        return dict(cursor.fetchall())

"""What tests of the rebuilding of the analytics share: a recorded history, taken in by sinks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from threading import Event, Thread
from typing import Any
from uuid import UUID

import psycopg

from engine.connections import connect
from engine.installation import ENGINE, migrate
from engine.replay.records import tell_nobody
from projections.analytics.ingest import Store
from projections.analytics.rebuild import AnalyticsMeans, Found, Rebuild
from projections.analytics.schema import Shape, refresh
from tests.integration.analytics_sinks import keeping, record
from tests.integration.analytics_support import RULES, history
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer, origin
from tests.support import eventually

VIEWED = ("video.viewed", "video.watch_time", "video.shared")
TABLES = (
    "video_analytics", "video_hourly", "video_daily", "video_viewers", "viewers_hourly", "videos",
    "sessions", "participants", "audience_hourly",
)  # fmt: skip

# An hour of nobody may be told or not, zeros at the end of an hour's places, and who liked a video
# before it was known.
CONTENTS = {
    "audience_hourly": """
        SELECT bucket, video_id, sessions, place, ms
        FROM analytics.audience_hourly
        CROSS JOIN LATERAL unnest(milliseconds) WITH ORDINALITY AS u(ms, place) WHERE ms <> 0
    """,
    "viewers_hourly": "SELECT * FROM analytics.viewers_hourly WHERE viewers > 0",
    "participants": """
        SELECT video_id, viewer, comments, seconds, commented_at, reported_at
        FROM analytics.participants WHERE commented_at IS NOT NULL OR reported_at IS NOT NULL
    """,
}


@dataclass
class Site:
    """The event log and the analytics of one test, which may lie in one database."""

    log_url: str
    url: str
    shape: Shape
    writer: Writer
    videos: list[UUID] = field(default_factory=list)

    def tell(self, seed: int) -> None:
        """Record likes, comments and what is known of videos, with views around them."""
        random, writer = Random(seed), self.writer
        mine = [writer.video(owner, category=owner) for owner in ("ann", "bob", "eve")]
        mine[1].transcribe("en", "rain", 90.0, "m", origin("bob"))
        mine[2].remove(origin("eve"))
        writer.save(*mine[1:])
        self.videos += [video.id for video in mine]
        for video in self.videos:
            writer.like(video, "ann", "bob", "eve")
            writer.unlike(video, random.choice(["ann", "bob"]))
            comment = writer.comment(video)
            writer.comment(video)
            comment.delete(origin("bob"))
            writer.save(comment)
        asyncio.run(record(self.log_url, self._views(seed)))

    def take_in(self) -> None:
        """Have sinks take in all there is."""
        asyncio.run(self._take_in())

    @contextmanager
    def taking_in(self) -> Iterator[None]:
        """Sinks at work meanwhile."""
        ended = Event()

        async def keep() -> None:
            async with keeping(self.log_url, url=self.url):
                await asyncio.to_thread(ended.wait)

        thread = Thread(target=asyncio.run, args=[keep()], name="keeping")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def recount(self) -> None:
        """Judge all sessions again by what is known of the videos now."""
        with connect(self.url, "test") as conn:
            found = conn.execute("SELECT video_id::text, session::text FROM analytics.sessions")
            keys = [(video, session) for video, session in found.fetchall()]
            with conn.transaction():
                stored = Store(self.shape, RULES).recount(conn, keys)
            if self.shape is Shape.TIMESCALE:
                refresh(conn, stored.times, datetime.now(UTC))

    def rollups(self) -> dict[str, str]:
        """The tables in which the sums lie."""
        if self.shape is Shape.PLAIN:
            return {"hourly": "analytics.video_hourly", "daily": "analytics.video_daily"}
        query = """
            SELECT view_name, materialization_hypertable_schema || '.'
                   || materialization_hypertable_name
            FROM timescaledb_information.continuous_aggregates
        """
        return {str(name).removeprefix("video_"): table for name, table in rows(self.url, query)}

    def _views(self, seed: int) -> list[Any]:
        told = history(Random(seed))
        names = dict(zip(map(str, told.videos), map(str, self.videos[-3:]), strict=True))
        return [
            (topic, id_, value | {"videoId": names[value["videoId"]]})
            for topic, id_, value in told.events
            if topic in VIEWED
        ]

    async def _take_in(self) -> None:
        async with keeping(self.log_url, url=self.url):
            await asyncio.to_thread(eventually, self._taken_in)

    def _taken_in(self) -> bool:
        heads = {
            "events": rows(self.log_url, "SELECT max(notification_id) FROM backlot_events"),
            "telemetry": rows(self.log_url, "SELECT max(seq) FROM backlot_telemetry"),
        }
        wanted = {(name, position) for name, ((position,),) in heads.items()}
        found = rows(
            self.url, "SELECT source, position FROM backlot_checkpoints WHERE kind = 'consumer'"
        )
        return set(found) == wanted and len(found) == 3

    @contextmanager
    def rebuilding(
        self, means: AnalyticsMeans | None = None, stopping: Event | None = None
    ) -> Iterator[Rebuild]:
        with (
            closing(connect(self.log_url, "test")) as log_conn,
            closing(connect(self.url, "test")) as conn,
        ):
            yield Rebuild(
                log_conn,
                conn,
                means or AnalyticsMeans(self.url, RULES, arrival_seconds=5, settle_seconds=1),
                report=tell_nobody,
                stopping=stopping or Event(),
            )

    def verify(self) -> dict[str, tuple[int, int, int]]:
        """How many are missing, extra and different, per table that differs."""
        with self.rebuilding() as rebuild:
            return counts(rebuild.compare())

    def replay(self) -> dict[str, tuple[int, int, int]]:
        """What differed, and is mended now."""
        with self.rebuilding() as rebuild:
            found = rebuild.compare()
            assert rebuild.mend(found) == 0
            return counts(found)

    def sql(self, statement: str) -> int:
        """Alter the analytics as no event did; how many rows that were."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            return conn.execute(statement.encode()).rowcount

    def contents(self) -> dict[str, list[Any]]:
        """All that is stored, with sums of seconds but for their last digits."""
        found = {}
        for table in TABLES:
            every = rows(self.url, CONTENTS.get(table, f"SELECT * FROM analytics.{table}"))
            found[table] = sorted(str([_rounded(value) for value in row]) for row in every)
        return found


def counts(found: Found) -> dict[str, tuple[int, int, int]]:
    tables = found.difference.tables
    return {each.table: (each.missing, each.extra, each.different) for each in tables}


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


@contextmanager
def site(log_url: str, url: str, shape: Shape, writer: Writer) -> Iterator[Site]:
    """With a history that was taken in."""
    with psycopg.connect(url, autocommit=True) as conn:
        migrate(conn, ENGINE)
    opened = Site(log_url, url, shape, writer)
    opened.tell(1)
    opened.take_in()
    yield opened


Copies = Callable[[], AbstractContextManager[Site]]


@contextmanager
def copies(
    copy_of: Callable[[str], AbstractContextManager[str]], template: str
) -> Iterator[Copies]:
    """Makes sites with the same history, which is recorded and taken in once."""
    with copy_of(template) as url:
        with closing(Writer(url)) as writer, site(url, url, Shape.PLAIN, writer) as told:
            pass

        @contextmanager
        def copy() -> Iterator[Site]:
            with (
                copy_of(url.partition("?")[0].rpartition("/")[2]) as mine,
                closing(Writer(mine)) as own,
            ):
                own.likes, own.head = deepcopy(writer.likes), writer.head
                yield Site(mine, mine, Shape.PLAIN, own, [*told.videos])

        yield copy

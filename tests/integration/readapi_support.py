"""The read API as it runs: projections following a real log, queries over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg
from fakeredis import FakeServer
from fastapi import FastAPI

from backlot.features import FEATURES, read_models
from backlot.http import OF_QUERIES
from domain.upload import Upload
from engine.checkpoints import Pool, Waiting
from engine.tail import LogTail
from infra.cache import Lifetimes
from infra.http.app import HttpApp
from infra.http.auth import Authenticator, mint_token
from infra.http.keys import OneKey
from infra.http.shapes import encode_position
from infra.objects.folder import FolderStore
from infra.postgres.connection import make_pool
from infra.pseudonyms import OwnNames
from infra.redis import connect_redis, embedded_redis
from infra.settings import Settings, load_settings
from projections.analytics.queries import (
    COUNTS_CONSUMER,
    ENGAGED_CONSUMER,
    VIDEOS_CONSUMER,
    AnalyticsQueries,
)
from projections.analytics.schema import migrate
from projections.catalog import Catalog
from projections.comments import Comments
from projections.dismissals import Dismissals
from projections.like_counters import AsyncCounters
from projections.likes import Likes
from projections.recommendations.recommender import Recommender
from projections.trending import Formula, Trending, TrendingCache
from readapi.comment_cache import CommentCache
from readapi.likes import LikeCounts
from readapi.live import LiveVideos
from readapi.queries import Queries
from readapi.translation import TranslationRequests
from readapi.video_cache import VideoCache
from tests.integration.projection_support import Writer, hosting
from tests.support import eventually
from workers import consumers as ledger

SECRET = "a secret of the tests, long enough for HS256"
COUNTER_TTL = 600
UNSETTLED = timedelta(seconds=0.2)
T = TypeVar("T")


class Site:
    """A read API, the log that it shows, and an object store; used from one event loop."""

    def __init__(
        self,
        database_url: str,
        folder: Path,
        redis_url: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or load_settings({})
        self.database_url = database_url
        self.redis_url = redis_url
        self.writer = Writer(database_url)
        ttl = timedelta(hours=1)
        self.objects = FolderStore(folder, SECRET.encode(), ttl, lambda: datetime.now(UTC))
        self._conn = psycopg.connect(database_url, autocommit=True)
        migrate(self._conn)
        # Whether consumers are pretended to have taken in what was written.
        self.counting = True
        self._loop = asyncio.Runner()
        self.queries = self.run(self._open())
        self.app = make_app(self.queries)
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def _open(self) -> Queries:
        pool = make_pool(self.database_url, max_size=4)
        await pool.open()
        self.redis = connect_redis(self.redis_url) if self.redis_url else None
        counters = AsyncCounters(self.redis, COUNTER_TTL) if self.redis else None
        counts = LikeCounts(counters)
        tail = LogTail(pool, (each.schema for each in read_models().all()))
        cache = VideoCache(
            *(pool, tail, OwnNames(), Likes()),
            ranking_seconds=0.0,
            offer_seconds=self.settings.recommendations.invalidate_seconds,
        )
        comments = CommentCache(pool, tail, OwnNames(), Likes())
        waiting = Waiting(pool, read_models().all())
        self.wake = asyncio.Event()
        return Queries(
            pool=pool,
            models=read_models(),
            waiting=waiting,
            counts=counts,
            live=LiveVideos(pool, tail, cache, comments, waiting, self.wake),
            tail=tail,
            cache=cache,
            comment_cache=comments,
            objects=self.objects,
            analytics=(analytics := await self._open_analytics(pool)),
            recommendations=Recommender(
                self.settings.recommendations,
                self.settings.llm,
                self.rankings,
                pool,
                analytics,
                likes=Likes(),
                catalog=Catalog(),
                dismissals=Dismissals(),
                described=cache.described,
            ),
            requests=TranslationRequests(self.rankings, self.settings.translation),
        )

    async def _open_analytics(self, log_pool: Pool) -> AnalyticsQueries:
        self.analytics_pool = make_pool(self.database_url, max_size=2)
        await self.analytics_pool.open()
        self.rankings = self.redis or embedded_redis(FakeServer(version=(7, 4)))
        cache = TrendingCache(self.rankings, Lifetimes(timedelta(minutes=5), UNSETTLED))
        return AnalyticsQueries(self.analytics_pool, log_pool, Trending(Formula()), cache)

    def forget(self) -> None:
        """Drop what is in memory, as in a process that has just begun."""
        self.queries.tail.begin(self.queries.tail.position)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(work)

    def close(self) -> None:
        self.run(self.client.aclose())
        self.run(self.queries.live.close())
        self.run(self.queries.recommendations.aclose())
        self.run(self.rankings.aclose())
        self.run(self.analytics_pool.close())
        self.run(self.queries.pool.close())
        self._loop.close()
        self._conn.close()
        self.writer.close()

    def get(
        self,
        path: str,
        user: str | None = None,
        *,
        admin: bool = False,
        roles: Sequence[str] = (),
        fresh: bool = True,
        headers: dict[str, str] | None = None,
        **params: Any,
    ) -> httpx.Response:
        """A query that includes everything written so far (unless not `fresh`)."""
        sent = dict(headers or {})
        if fresh:
            if self.counting:
                self.take_in(self.writer.head)
            sent.setdefault("Backlot-Min-Position", encode_position(self.writer.head))
        if user is not None:
            token = mint_token(SECRET, user, ["admin"] if admin else roles)
            sent["Authorization"] = f"Bearer {token}"

        def ask() -> httpx.Response | None:
            found = self.run(self.client.get(path, headers=sent, params=params))
            behind = found.status_code == 503 and found.json()["type"] == "read-model-behind"
            return None if behind and patient else found

        # A busy machine may take longer than any query waits, unless a test says how long.
        patient = fresh and "Backlot-Timeout-Ms" not in sent
        answer = eventually(ask)
        assert answer is not None
        return answer

    def take_in(self, position: int, telemetry: int = 0) -> None:
        """Say of every consumer of the analytics that it has come so far."""
        places = {("events", 0): position, ("telemetry", 0): telemetry}
        for name in (COUNTS_CONSUMER, VIDEOS_CONSUMER, ENGAGED_CONSUMER):
            ledger.settle(self._conn, name, (), (), places)

    def view(self, video: Upload, times: int) -> None:
        self._conn.execute("INSERT INTO backlot_views VALUES (%s, %s)", (video.id, times))


def make_app(queries: Queries) -> FastAPI:
    app = HttpApp(
        title="queries",
        authenticator=Authenticator(OneKey(SECRET, ["HS256"])),
        body_limit=1024,
        translate=OF_QUERIES,
    )
    app.state.queries = queries
    # As `backlot.http` does it.
    app.router.routes.extend(
        route for feature in FEATURES for router in feature.queries for route in router.routes
    )
    return app


@contextmanager
def serving(database_url: str, folder: Path) -> Iterator[Site]:
    """A site whose projections run."""
    site = Site(database_url, folder)
    try:
        with hosting(database_url, Catalog(), Likes(), Comments()):
            yield site
    finally:
        site.close()

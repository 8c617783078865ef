"""What the query routes use: a connection that is fresh enough, and the read models."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Header, Request
from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg.rows import TupleRow

from engine.freshness import Freshness, Pool, Waiting
from engine.inspection.index import Audit
from engine.overview import Rates
from engine.projection import Projection, ReadModels
from engine.telemetry import Views
from infra.http.app import add_header
from infra.http.shapes import Position, decode_position, encode_position
from infra.objects.port import ObjectStore
from projections.analytics.queries import AnalyticsQueries
from projections.catalog import Catalog
from projections.comments import Comments
from projections.likes import Likes
from projections.operations import Operations
from projections.recommendations.recommender import Recommender
from readapi.live_counts import LikeCounts, LiveCounts
from readapi.translation import TranslationRequests

DEFAULT_TIMEOUT_MS = 2_000
MAX_TIMEOUT_MS = 30_000
MAX_TOKEN_LENGTH = 200
STALE = b"backlot-stale-position"


class ReadModelUnavailable(Exception):
    """The database of the read models does not answer."""


async def freshness(
    request: Request,
    backlot_min_position: Annotated[
        str | None,
        Header(
            alias="Backlot-Min-Position",
            description="A `Backlot-Position` received before: the answer includes that command. "
            "Where an upgrade keeps it from that, `Backlot-Stale-Position` says how far it is.",
            max_length=MAX_TOKEN_LENGTH,
        ),
    ] = None,
    backlot_timeout_ms: Annotated[
        int,
        Header(
            alias="Backlot-Timeout-Ms",
            description=f"How long to wait for it, at most {MAX_TIMEOUT_MS} ms.",
            ge=0,
        ),
    ] = DEFAULT_TIMEOUT_MS,
) -> Freshness:
    """Return what the headers ask for; raise InvalidPosition."""
    if backlot_min_position is None:
        return Freshness()
    timeout_seconds = min(backlot_timeout_ms, MAX_TIMEOUT_MS) / 1000

    def admit(position: int) -> None:
        # What is read later in the same request is never older, so the first one counts.
        add_header(request.scope, STALE, encode_position(position))

    deadline = time.monotonic() + timeout_seconds
    return Freshness(decode_position(backlot_min_position), deadline, admit)


Fresh = Annotated[Freshness, Depends(freshness)]


@dataclass(frozen=True)
class Queries:
    """The services of the read API, found by its routers in `app.state.queries`."""

    pool: Pool
    models: ReadModels
    waiting: Waiting
    counts: LikeCounts
    live: LiveCounts
    objects: ObjectStore
    views: Views
    analytics: AnalyticsQueries
    recommendations: Recommender
    requests: TranslationRequests
    # Whether everybody sees the stats of every public video.
    stats_public: bool = False
    rates: Rates = field(default_factory=Rates)

    @property
    def catalog(self) -> Catalog:
        return self.models[Catalog]

    @property
    def likes(self) -> Likes:
        return self.models[Likes]

    @property
    def comments(self) -> Comments:
        return self.models[Comments]

    @property
    def operations(self) -> Operations:
        return self.models[Operations]

    @property
    def audit(self) -> Audit:
        return self.models[Audit]

    @property
    def projections(self) -> tuple[Projection, ...]:
        """What videos are shown from."""
        return (self.catalog, self.likes, self.comments)

    @asynccontextmanager
    async def reading(
        self, fresh: Freshness, *projections: Projection
    ) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """Yield a connection, once these projections have come as far as was asked.

        Where no process can feed one of them, the answer is admitted to be older than that.
        Raise ReadModelBehind, and ReadModelUnavailable when the database is away, now or while
        the connection is used.
        """
        try:
            if fresh.is_asked:
                wanted = Position(fresh.position.events)
                schemas = {projection.schema: wanted for projection in projections}
                reached = await self.waiting.until(schemas, fresh.seconds_left)
                if reached is not None:
                    fresh.admit(reached)
            async with self.pool.connection() as conn:
                yield conn
        except (OperationalError, InterfaceError) as error:
            raise ReadModelUnavailable(str(error)) from error


async def _queries(request: Request) -> Queries:
    queries: Queries = request.app.state.queries
    return queries


Read = Annotated[Queries, Depends(_queries)]

"""What the query routes share: fresh connections, the read models, videos as shown, and pages.

A page is a part of a list that stays in order while it grows: its cursor is the position of the
last item.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, TypeVar
from uuid import UUID

from fastapi import Depends, Header, Query, Request
from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg.rows import TupleRow

from domain.upload import NOBODY, VideoViewer
from engine.checkpoints import Freshness, Pool, Waiting
from engine.inspection.index import Audit
from engine.log import END_OF_LOG
from engine.overview import Rates
from engine.projection import Projection, ReadModels
from engine.telemetry import Views
from infra.http.auth import Identity
from infra.http.problems import Problem
from infra.http.requests import add_header
from infra.http.shapes import Position, Video, Wire, decode_position, encode_position
from infra.objects.port import ObjectStore
from projections.analytics.queries import AnalyticsQueries
from projections.catalog import Catalog, VideoRow
from projections.comments import Comments
from projections.likes import Likes
from projections.operations import Operations
from projections.recommendations.recommender import Recommender

if TYPE_CHECKING:
    from readapi.comments import TranslationRequests
    from readapi.likes import LikeCounts, LiveCounts

T = TypeVar("T")

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
            if fresh.position.events:
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


def viewer_of(caller: Identity | None) -> VideoViewer:
    """Return as whom a caller sees videos, who may be unknown."""
    return NOBODY if caller is None else caller.viewer


async def require_video(
    queries: Queries, conn: AsyncConnection[Any], video_id: UUID, caller: Identity | None
) -> VideoRow:
    """Return the video; raise Problem 404 where there is none, or none that the caller may see."""
    row = (await queries.catalog.videos(conn, [video_id])).get(video_id)
    if row is None or not row.visible_to(viewer_of(caller)):
        raise no_such_video()
    return row


def no_such_video() -> Problem:
    """Return what is said of a video that is not there, or not for the caller."""
    return Problem(404, "not-found", "There is no such video.")


async def present(
    queries: Queries, conn: AsyncConnection[Any], rows: Sequence[VideoRow], caller: Identity | None
) -> list[Video]:
    """Return the videos with their counts, in the same order; four queries for however many."""
    ids = [row.video_id for row in rows]
    if not ids:
        return []
    likes = await queries.likes.counts(conn, ids)
    comments = await queries.comments.counts(conn, ids)
    views = await queries.views.views(conn, ids)
    liked = await queries.likes.liked(conn, caller.person, ids) if caller else None
    return [
        Video(
            **row._asdict(),
            owner_id=row.owner,
            created_at=row.completed_at,
            likes=likes.get(row.video_id, 0),
            comments=comments.get(row.video_id, 0),
            views=views.get(row.video_id, 0),
            has_liked=None if liked is None else row.video_id in liked,
        )
        for row in rows
    ]


Cursor = Annotated[
    str | None,
    Query(description="`nextCursor` of the page before; none: the first page.", max_length=100),
]
Limit = Annotated[int, Query(description="How many items at most.", ge=1, le=100)]
DEFAULT_LIMIT = 20


class Page(Wire, Generic[T]):
    """A part of a list; `next_cursor` asks for the following one and is missing on the last."""

    items: list[T]
    next_cursor: str | None = None


def storable(text: str | None) -> str | None:
    """Return the text; raise ValueError for the NUL character, which PostgreSQL does not store."""
    if text is not None and "\x00" in text:
        raise ValueError("can't contain the NUL character")
    return text


class InvalidCursor(ValueError):
    """The cursor was not given out for this list."""

    def __init__(self) -> None:
        super().__init__("`cursor` is not one of this list; send back `nextCursor` as received.")


def encode_cursor(kind: str, position: int) -> str:
    """Return an opaque name of a place in a list of one kind."""
    return base64.urlsafe_b64encode(f"{kind}:{position}".encode()).decode().rstrip("=")


def decode_cursor(kind: str, cursor: str | None, first: int = END_OF_LOG) -> int:
    """Return the position behind which the page begins; raise InvalidCursor.

    Without a cursor it is `first`, which is the newest.
    """
    if cursor is None:
        return first
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        decoded = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, UnicodeError) as error:
        raise InvalidCursor from error
    name, _, number = decoded.partition(":")
    if name != kind or not number.isdigit() or len(number) > 18:
        raise InvalidCursor
    return int(number)


class PageRequest(NamedTuple):
    """Which page of a list a client asks for: what comes behind a cursor, so many items at most."""

    cursor: str | None
    limit: int

    @property
    def rows(self) -> int:
        """How many rows to read: one more, so that the last page knows that it is the last."""
        return self.limit + 1

    async def read(
        self,
        kind: str,
        read: Callable[[int, int], Awaitable[Sequence[T]]],
        position: Callable[[T], int],
        first: int = END_OF_LOG,
    ) -> tuple[Sequence[T], str | None]:
        """Return the rows of the page, and the cursor of the next page if there is one.

        `read` gets the position behind which the page begins (`first` is that of the first page)
        and a number of rows. Raise InvalidCursor.
        """
        return self.cut(
            kind, await read(decode_cursor(kind, self.cursor, first), self.rows), position
        )

    def cut(
        self, kind: str, rows: Sequence[T], position: Callable[[T], int]
    ) -> tuple[Sequence[T], str | None]:
        """Return the rows of the page, and the cursor of the next page if there is one."""
        if len(rows) <= self.limit:
            return rows, None
        shown = rows[: self.limit]
        return shown, encode_cursor(kind, position(shown[-1]))


async def _page_request(cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT) -> PageRequest:
    return PageRequest(cursor, limit)


Paged = Annotated[PageRequest, Depends(_page_request)]

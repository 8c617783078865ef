"""What the query routes share: how fresh a client asks an answer to be, and videos as shown."""

from __future__ import annotations

import time
from collections.abc import (
    AsyncIterator,
    Collection,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from uuid import UUID

from fastapi import Depends, Header, Request
from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg.rows import TupleRow
from starlette.types import Scope

from domain.upload import NOBODY, VideoViewer
from engine.checkpoints import Freshness, Pool, ReadModelBehind, Waiting
from engine.inspection.index import Audit
from engine.log import topics_of
from engine.overview import Rates
from engine.projection import Projection, ReadModels
from engine.tail import LogTail
from infra.batcher import Batches
from infra.http.auth import Identity, maybe_identity
from infra.http.problems import Problem
from infra.http.requests import ADDED, add_header, header
from infra.http.shapes import BEGINNING, Position, encode_position, latest_position
from infra.metrics import counter
from infra.objects.port import ObjectStore
from projections.analytics.queries import AnalyticsQueries
from projections.catalog import Catalog, VideoRow
from projections.comments import Comments
from projections.feedback.reports import key_of_lists
from projections.likes import LikedVideo, Likes
from projections.operations import Operations
from projections.recommendations.recommender import Recommender
from projections.trending import Ranking, Window
from readapi.comment_cache import CommentCache, CommentPage
from readapi.exclusions import Recommendable, left_out
from readapi.video_cache import TELEMETRY, CachedVideo, VideoCache

if TYPE_CHECKING:
    from readapi.likes import LikeCounts
    from readapi.live import LiveVideos
    from readapi.translation import TranslationRequests


DEFAULT_TIMEOUT_MS, MAX_TIMEOUT_MS = 2_000, 30_000
MAX_TOKEN_LENGTH = 1_000
MIN_POSITION, TIMEOUT_MS = b"backlot-min-position", b"backlot-timeout-ms"
REACHED, STALE = b"backlot-position", b"backlot-stale-position"

STALE_ANSWERS = counter(
    "backlot_stale_answers",
    "Answers older than what was recorded before: a read model stands still, or comes too late.",
)


class ReadModelUnavailable(Exception):
    """The database of the read models does not answer."""


@dataclass(frozen=True)
class Queries:
    """The services of the read API, found by its routers in `app.state.queries`."""

    pool: Pool
    models: ReadModels
    waiting: Waiting
    counts: LikeCounts
    live: LiveVideos
    tail: LogTail
    cache: VideoCache
    comment_cache: CommentCache
    objects: ObjectStore
    analytics: AnalyticsQueries
    recommendations: Recommender
    requests: TranslationRequests
    # Whether everybody sees the stats of every public video.
    stats_public: bool = False
    rates: Rates = field(default_factory=Rates)
    # That of lists of recommendations, once it was read.
    signing_keys: list[bytes] = field(default_factory=list)

    @cached_property
    def catalog(self) -> Catalog:
        return self.models[Catalog]

    @cached_property
    def likes(self) -> Likes:
        return self.models[Likes]

    @cached_property
    def comments(self) -> Comments:
        return self.models[Comments]

    @property
    def operations(self) -> Operations:
        return self.models[Operations]

    @property
    def audit(self) -> Audit:
        return self.models[Audit]

    @cached_property
    def projections(self) -> tuple[Projection, ...]:
        """What videos are shown from."""
        return (self.catalog, self.likes, self.comments)

    @asynccontextmanager
    async def reading(
        self, fresh: Freshness, *projections: Projection, confirmed: bool = False
    ) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """Yield a connection, once these projections know all that was acknowledged by now.

        Or by the time when the request was `confirmed`, if it was. Where no process can feed one of
        them, the answer is admitted to be older than that; where it takes too long, too, if no
        position was asked for. Raise ReadModelBehind, and ReadModelUnavailable when the database is
        away, now or while the connection is used.
        """
        with outage_as_unavailable():
            if not confirmed:
                await self._confirm(fresh, projections)
            last = {each.schema: self.tail.last_of(topics_wanted(each)) for each in projections}
            await self._reach(fresh, last)
            async with self.pool.connection() as conn:
                yield conn

    async def show(
        self, fresh: Freshness, ids: Sequence[UUID], person: str | None = None
    ) -> ShownVideos:
        """Return those of the videos that are there, whoever may see them, as they are now.

        With which of them a person likes. Raise as `reading` does.
        """
        await self.confirm(fresh, *self.projections)
        return await self.shown(fresh, ids, person)

    async def require(
        self, fresh: Freshness, video_id: UUID, caller: Identity | None
    ) -> CachedVideo:
        """Return the video; raise Problem 404 where there is none, or none that the caller may see.

        Its numbers may be older than what was asked for.
        """
        await self.confirm(fresh, self.catalog)
        videos = await self.shown(fresh, (video_id,), parts=(self.catalog,))
        return videos.require(caller)

    async def shown(
        self,
        fresh: Freshness,
        ids: Sequence[UUID],
        person: str | None = None,
        parts: Iterable[Projection] | None = None,
    ) -> ShownVideos:
        """Return the same for a request that has confirmed how far the log is.

        What is told of the videos comes from these `parts`; all of them, if that is not said.
        """
        with outage_as_unavailable():
            wanted = {each.schema for each in parts or self.projections}
            shown, lacking = await self._look(ids, person, wanted)
            if lacking:
                await self._reach(fresh, lacking)
                shown, _ = await self._look(ids, person, wanted)
            return shown

    async def confirm(self, fresh: Freshness, *projections: Projection) -> None:
        """Have what is in memory know all that was acknowledged by now.

        Wait for a position that the log has not come to, and raise ReadModelBehind then; raise
        ReadModelUnavailable.
        """
        with outage_as_unavailable():
            await self._confirm(fresh, projections)

    async def likes_of(
        self, fresh: Freshness, person: str, before: int, limit: int
    ) -> Sequence[LikedVideo]:
        """Return a person's likes given before a position, newest first.

        Raise as `reading` does.
        """
        await self.confirm(fresh, *self.projections)
        with outage_as_unavailable():
            likes = await self.cache.liked.all(person)
            if likes is not None and likes.behind:
                await self._reach(fresh, likes.behind)
                likes = await self.cache.liked.all(person)
        if likes is None:
            async with self.reading(fresh, self.likes, confirmed=True) as conn:
                return await self.likes.liked_page(conn, person, before, limit)
        found = (LikedVideo(*like) for like in likes.things.items() if like[1] < before)
        return list(islice(found, limit))

    async def ranking(
        self,
        window: Window,
        limit: int,
        category: str | None,
        fresh: Freshness,
        without: Collection[UUID],
    ) -> tuple[Ranking, bool]:
        """Return what trends, as `AnalyticsQueries.ranking` does.

        One that was just told is told again while the catalog does not change.
        """
        if without or fresh.is_asked:
            return await self.analytics.ranking(
                window, limit, category, fresh=fresh, without=without
            )
        key, changes = (window, limit, category), self.cache.rankings.changes
        found = self.cache.rankings.get(key)
        if found is None:
            ranking, cached = await self.analytics.ranking(window, limit, category, fresh=fresh)
            self.cache.rankings.put(key, ranking, changes)
            return ranking, cached
        return found, True

    async def newest_comments(self, fresh: Freshness, video_id: UUID) -> CommentPage:
        """Return the newest comments of a video; confirm first. Raise as `reading` does."""
        with outage_as_unavailable():
            page = await self.comment_cache.newest(video_id)
            if page.is_behind:
                wanted = {self.comments.schema: page.wanted}
                await self._reach(fresh, wanted)
                page = await self.comment_cache.newest(video_id)
            return page

    async def liked_comments(
        self, fresh: Freshness, caller: Identity | None, comments: Collection[UUID]
    ) -> Container[UUID] | None:
        """Return which of these comments the caller likes, None where nobody knows who that is.

        Confirm first. Raise as `reading` does.
        """
        person = person_of(caller)
        if person is None or not comments:
            return None if person is None else ()
        with outage_as_unavailable():
            liked = await self.comment_cache.liked.among(person, comments)
            if liked.behind:
                await self._reach(fresh, liked.behind)
                liked = await self.comment_cache.liked.among(person, comments)
            return liked.things

    async def key_of_lists(self) -> bytes:
        """Return the key with which lists of recommendations are signed."""
        if not self.signing_keys:
            with outage_as_unavailable():
                async with self.pool.connection() as conn:
                    self.signing_keys.append(await key_of_lists(conn))
        return self.signing_keys[0]

    async def left_out(self, user_id: str, videos: Sequence[UUID]) -> set[UUID]:
        """Return which videos are not to be recommended to a user; raise ReadModelUnavailable.

        All who ask meanwhile share a statement.
        """
        with outage_as_unavailable():
            return await self._left_out.ask(Recommendable(user_id, videos))

    @cached_property
    def _left_out(self) -> Batches[Recommendable, set[UUID]]:
        async def look_up(asked: Sequence[Recommendable]) -> Sequence[set[UUID]]:
            async with self.pool.connection() as conn:
                return await left_out(conn, asked)

        return Batches(look_up)

    def knows_all(self, projection: Projection) -> bool:
        """Return whether a read model was seen to have all that it wants of what is confirmed."""
        last = self.tail.last_of(topics_wanted(projection))
        return self.waiting.covers({projection.schema: Position(last)})

    async def _look(
        self, ids: Sequence[UUID], person: str | None, parts: Collection[str]
    ) -> tuple[ShownVideos, dict[str, int]]:
        """Return what is known of the videos, and up to where which part has to come for it."""
        found = await self.cache.videos(ids)
        lacking: dict[str, int] = {}
        liked = None
        if person is not None:
            likes = await self.cache.liked.among(person, ids)
            liked, lacking = likes.things, dict(likes.behind)
        videos = []
        for each in found:
            if isinstance(each, CachedVideo):
                videos.append(each)
                continue
            if each.video is not None:
                videos.append(each.video)
            for schema, position in each.behind.items():
                if schema in parts or schema == TELEMETRY:
                    lacking[schema] = max(position, lacking.get(schema, 0))
        return ShownVideos(videos, liked, not lacking), lacking

    async def _confirm(self, fresh: Freshness, projections: Iterable[Projection]) -> None:
        now = await self.tail.confirm()
        fresh.tell(now)
        if fresh.position.events > now.events:
            wanted = Position(fresh.position.events)
            schemas = {each.schema: wanted for each in projections}
            await self.waiting.until(schemas, fresh.seconds_left)
            now = await self.tail.confirm()
            if not schemas and not now.covers(wanted):
                raise ReadModelBehind({"log": wanted}, {"log": now})

    async def _reach(self, fresh: Freshness, last: Mapping[str, int]) -> None:
        """Wait until read models have come so far: for what was asked for, and what is known.

        Raise ReadModelBehind for what was asked for; tell where the rest does not come in time.
        """
        wanted = {name: Position(at) for name, at in last.items() if name != TELEMETRY}
        if fresh.is_asked:
            most = fresh.position.events
            asked = {name: Position(min(at.events, most)) for name, at in wanted.items()}
            reached = await self.waiting.until(asked, fresh.seconds_left)
            if reached is not None:
                fresh.admit(reached)
                return
        reached = await self.waiting.settle(wanted, fresh.seconds_left) if wanted else None
        if reached is not None:
            fresh.fall_behind(reached)


class ShownVideos(NamedTuple):
    """Videos in the order in which they were asked for; the likes of a person, if of one.

    `exact` unless something was read that may be older than what was confirmed.
    """

    videos: Sequence[CachedVideo]
    liked: Container[UUID] | None
    exact: bool = True

    def told(self, video: CachedVideo) -> bytes:
        """Return one of the videos as JSON, as it stands in lists."""
        return video.told(self.has_liked(video))

    def has_liked(self, video: CachedVideo) -> bool | None:
        """Return whether the person that was asked about likes the video."""
        return None if self.liked is None else video.row.video_id in self.liked

    def listed_for(self, viewer: VideoViewer) -> Iterator[bytes]:
        """Yield those that a list shows to this viewer, as JSON."""
        return (self.told(each) for each in self.videos if each.row.listed_for(viewer))

    def require(self, caller: Identity | None) -> CachedVideo:
        """Return the one video; raise Problem 404 where there is none that the caller may see."""
        if not self.there_for(caller):
            raise no_such_video()
        return self.videos[0]

    def there_for(self, caller: Identity | None) -> bool:
        """Return whether the one video is there, and the caller may see it."""
        return bool(self.videos) and self.videos[0].visible_to(viewer_of(caller))


@cache
def topics_wanted(projection: Projection) -> tuple[str, ...]:
    """Return the topics of the events that a projection wants."""
    return tuple(topic for event in projection.events for topic in topics_of(event))


@contextmanager
def outage_as_unavailable() -> Iterator[None]:
    """Raise ReadModelUnavailable where the database does not answer."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise ReadModelUnavailable(str(error)) from error


async def freshness(
    request: Request,
    backlot_min_position: Annotated[
        str | None,
        Header(
            alias="Backlot-Min-Position",
            description="A `Backlot-Position` received before, or several with commas: the answer "
            "includes those commands. Where an upgrade keeps it from that, "
            "`Backlot-Stale-Position` says how far it is.",
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
    return _freshness(request.scope, backlot_min_position, backlot_timeout_ms)


def freshness_of(scope: Scope) -> Freshness | None:
    """Return the same without the framework; None where that has to look at the headers."""
    token = header(scope, MIN_POSITION)
    if header(scope, TIMEOUT_MS) is not None or len(token or "") > MAX_TOKEN_LENGTH:
        return None
    return _freshness(scope, token, DEFAULT_TIMEOUT_MS)


def _freshness(scope: Scope, token: str | None, timeout_ms: int) -> Freshness:
    told: Position | None = None
    counted = False

    def tell(position: Position) -> None:
        # Of what one request reads, the oldest counts.
        nonlocal told
        if told is None or position.events < told.events:
            told = position
            scope.setdefault(ADDED, {})[REACHED] = encode_position(*position).encode()

    def admit(position: int) -> None:
        # What is read later in the same request is never older, so the first one counts.
        add_header(scope, STALE, encode_position(position))
        fall_behind(position)

    def fall_behind(position: int) -> None:
        nonlocal counted
        if not counted:
            counted = True
            STALE_ANSWERS.inc()
        tell(Position(position))

    wanted = BEGINNING if token is None else latest_position(token)
    deadline = time.monotonic() + min(timeout_ms, MAX_TIMEOUT_MS) / 1000
    return Freshness(wanted, deadline, admit, fall_behind, tell)


async def _queries(request: Request) -> Queries:
    queries: Queries = request.app.state.queries
    return queries


Read = Annotated[Queries, Depends(_queries)]
Fresh = Annotated[Freshness, Depends(freshness)]


class Asked(NamedTuple):
    """What a hot route knows of a request, as others get it from the framework."""

    queries: Queries
    fresh: Freshness
    caller: Identity | None


async def asked(request: Request) -> Asked | None:
    """Return who asks whom; None where the framework has to look at the headers.

    Raise Problem and InvalidPosition.
    """
    fresh = freshness_of(request.scope)
    if fresh is None:
        return None
    return Asked(request.app.state.queries, fresh, await maybe_identity(request))


def person_of(caller: Identity | None) -> str | None:
    """Return whose likes an answer tells: those of a caller who is known."""
    return None if caller is None else caller.person


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

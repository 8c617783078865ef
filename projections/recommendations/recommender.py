"""The recommendations of a user: by a language model, else by the blend, else what trends.

As long as the database answers, the answer comes within the time limit, and names its source. The
blend orders candidates by how near they are to the user, and by what trends. A language model's
answer is fused with this order; without a model this order is the answer. Recommendations are
cached in Redis for an hour, until the user engages with more; `readapi/recommendations.py` shows
them as the videos and the user are now.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import LiteralString, NamedTuple
from uuid import UUID

import structlog
from psycopg import Error as DatabaseError
from pydantic import TypeAdapter
from redis.asyncio import Redis

from domain.feedback import Signal
from domain.upload import NOBODY
from engine.checkpoints import WHATEVER_THERE_IS, Freshness, Pool
from engine.log import END_OF_LOG
from infra.batcher import Batches
from infra.cache import (
    CachedValue,
    Generations,
    Lifetimes,
    OptionalRedis,
    ReadThroughCache,
    Requirement,
    quick_json,
)
from infra.llm.errors import BudgetSpent, LanguageModelError
from infra.metrics import counter
from infra.postgres.connection import fetch_as
from infra.settings.adapters import LanguageModelSettings
from infra.settings.features import RecommendationSettings
from projections.analytics.queries import (
    COUNTS_CONSUMER,
    ENGAGED_CONSUMER,
    VIDEOS_CONSUMER,
    AnalyticsQueries,
    AnalyticsUnavailable,
)
from projections.catalog import PUBLIC, Catalog
from projections.dismissals import Dismissals
from projections.likes import Likes
from projections.recommendations.attention import Attention, AttentionCache
from projections.recommendations.blend import (
    TELLING,
    WEIGHTS,
    BlendVariant,
    blend,
    experiment_of,
    interest,
    source_of,
    with_new,
)
from projections.recommendations.candidates import (
    ENGAGED_WITH,
    NO_TRENDS,
    Trends,
    engaged_with,
    material_of,
    question_of,
    read_around,
)
from projections.recommendations.embeddings import are_kept, nearest
from projections.recommendations.model import (
    Candidate,
    DescribedVideo,
    Material,
    Profile,
    RankedRecommendations,
    RankedVideo,
    RecommendationSource,
    Weighing,
)
from projections.recommendations.profiles import (
    MOST_DISMISSED,
    Own,
    UserDecisions,
    decisions_of,
    own_of,
)
from projections.recommendations.ranker import Ranker, fuse, make_ranker
from projections.recommendations.video_facts import FactStore, Vicinity, WantedFacts
from projections.trending import Window

log = structlog.get_logger(__name__)

# Far more than a prompt has room for; a transcript may be of hours. Nobody tells of what is not
# public, not even to those who have watched it.
DESCRIBE: LiteralString = f"""
SELECT upload_id AS video_id, title, left(description, 2000) AS description, category,
       left(transcript, 2000) AS transcript
FROM {{schema}}.uploads
WHERE completed_position IS NOT NULL AND {PUBLIC} AND upload_id = ANY (%s)
"""

MOST = 50
"""So many are shown at most; more are made, for those that are seen or removed meanwhile."""
MOST_SIMILAR = 20
MOST_PAGES = 5
"""Of the catalog, to look for what is new."""
NEW = "New"

PREFIX = "user:recommendations:"
ENGAGED_PREFIX = "recommendations:engaged:"
"""Before a user's id: a key that holds another value each time the user engages with something."""
# How long an answer is cached that lacks what failed.
LACKING_SECONDS = 30

MEMORY_SECONDS = 10.0
"""So long at most a process has in memory what is the same for all users; what is a user's own is
read each time."""

Describe = Callable[[Sequence[UUID]], Awaitable[dict[UUID, DescribedVideo]]]

FORM: TypeAdapter[CachedValue[RankedRecommendations]] = TypeAdapter(
    CachedValue[RankedRecommendations]
)

RECOMMENDATION_LOOKUPS = counter(
    "backlot_recommendation_lookups",
    "Recommendations that were asked for: from the cache, made, or shared with their maker.",
    ("outcome",),
)
RECOMMENDATION_CACHE_FAILURES = counter(
    "backlot_recommendation_cache_failures",
    "Times that Redis did not answer for their cache, or held what can't be read.",
)
RECOMMENDATIONS_MADE = counter(
    "backlot_recommendations_made",
    "Recommendations of one user that were made, by what ordered them (llm, blend, trending).",
    ("source",),
)
RECOMMENDATION_FAILURES = counter(
    "backlot_recommendation_failures",
    "Times that a database did not answer, so that what trends was recommended.",
)


class RecommendationInvalidation:
    """Tells all processes whose profile has changed; to be used from one event loop."""

    def __init__(self, redis: Redis, settings: RecommendationSettings) -> None:
        # Forgotten after whatever was computed before it.
        lifetime = timedelta(seconds=2 * settings.cache_ttl_seconds)
        self._generations = Generations(_optional(redis), lifetime)

    async def touch(self, users: Collection[str]) -> None:
        """Begin a generation of these users' recommendations; to be called after each commit.

        Recommendations older than RECOMMENDATIONS_INVALIDATE_SECONDS are then computed anew when
        they are asked for: a user who goes from video to video has that done now and then only.
        One round trip; never raises RedisError.
        """
        await self._generations.renew([ENGAGED_PREFIX + user for user in users])


class UserRecommendations(NamedTuple):
    """Recommendations as they may be shown now, and what of them is cached.

    `with_newest` tells whether they end with what is newest, so that a new video changes them.
    """

    made: RankedRecommendations
    kept: CachedValue[RankedRecommendations]
    cached: bool
    with_newest: bool


class Recommender:
    """Makes recommendations, which this process and its peers cache; for one event loop."""

    def __init__(
        self,
        settings: RecommendationSettings,
        llm: LanguageModelSettings,
        redis: Redis,
        pool: Pool,
        analytics: AnalyticsQueries,
        *,
        likes: Likes,
        catalog: Catalog,
        dismissals: Dismissals,
        described: Describe | None = None,
    ) -> None:
        """`pool` leads to the read models. Close this before the connections that it is given.

        `described` tells titles and categories of public videos from memory, where a process has
        them. Raise SettingsError.
        """
        self._pool, self._analytics = pool, analytics
        self._likes, self._catalog, self._dismissals = likes, catalog, dismissals
        self._ranker = make_ranker(settings, llm, redis)
        # A language model reads more than what is in memory.
        self._described = described if self._ranker is None and described else self._describe
        self._seconds, self._new_share = settings.timeout_seconds, settings.new_share
        self._variants = [BlendVariant(WEIGHTS, Weighing.from_settings(settings))]
        if settings.variant_b:
            self._variants.append(self._variants[0].changed(settings.variant_b))
        weighing = self._variants[0].weighing
        self._attention = AttentionCache(weighing)
        self.experiment = experiment_of(self._variants)
        ttl, outdated = settings.cache_ttl_seconds, settings.invalidate_seconds
        self._memory_seconds = min(outdated, MEMORY_SECONDS)
        self._facts = FactStore(weighing.half_life_seconds, self._memory_seconds)
        self._questions: Batches[WantedFacts, Vicinity] = Batches(self._load)
        self._decisions: Batches[str, UserDecisions] = Batches(self._decisions_of)
        self._own: Batches[UserDecisions, Own] = Batches(self._own_of)
        self._trends = NO_TRENDS
        self._trends_until = self._unembedded_until = float("-inf")
        whole = Lifetimes(timedelta(seconds=ttl), timedelta(seconds=outdated))
        short = min(ttl, LACKING_SECONDS)
        lacking = Lifetimes(timedelta(seconds=short), timedelta(seconds=min(short, outdated)))
        self._cache: ReadThroughCache[RankedRecommendations] = ReadThroughCache(
            _optional(redis),
            FORM,
            lambda made: whole if made.whole else lacking,
            lookups=RECOMMENDATION_LOOKUPS,
            unreadable=RECOMMENDATION_CACHE_FAILURES,
            dump=quick_json,
        )

    async def get(self, user_id: str, fresh: Freshness = WHATEVER_THERE_IS) -> UserRecommendations:
        """Return a user's recommendations, and whether they were cached.

        Concurrent callers share one computation. Some videos may be seen or removed by now: that
        is for `display` to tell. New videos have their places among them; where there are few, the
        newest follow. Both are as they are now. Raise ReadModelBehind, and never RedisError.
        """
        kept, cached = await self._cache.get(
            PREFIX + user_id,
            ENGAGED_PREFIX + user_id,
            lambda _: self._make(user_id, fresh),
            Requirement(position=fresh.position),
        )
        if len(kept.value.items) >= MOST and not self._new_share:
            return UserRecommendations(kept.value, kept, cached, with_newest=False)
        newest = await self._newest(user_id)

        def filled(items: Sequence[RankedVideo]) -> Iterable[RankedVideo]:
            return with_new(items, newest, self._new_share, user_id)

        return UserRecommendations(kept.value.reordered(filled), kept, cached, with_newest=True)

    async def explain(
        self, user_id: str, fresh: Freshness = WHATEVER_THERE_IS
    ) -> tuple[RankedRecommendations, Sequence[Candidate], Sequence[UUID]]:
        """Return what `get` does, the candidates with all that speaks for them, and what trends.

        There are no candidates while a database is away. Raise ReadModelBehind.
        """
        found, trends = await self.get(user_id, fresh), await self._trending(fresh)
        trending = [UUID(bytes=video) for video in trends.shares]
        try:
            material, *_ = await self._materials(user_id, trends, fresh)
        except DatabaseError as error:
            _failed(error)
            return found.made, (), trending
        return found.made, material.candidates, trending

    async def holds(self, user_id: str, found: UserRecommendations) -> bool:
        """Return whether `get` would find the same in Redis still."""
        return await self._cache.holds(PREFIX + user_id, ENGAGED_PREFIX + user_id, found.kept)

    async def _make(self, user_id: str, fresh: Freshness) -> RankedRecommendations:
        """Return videos for a user; few, or none, where little has happened yet.

        Raise ReadModelBehind.
        """
        trends = await self._trending(fresh)
        deadline = time.monotonic() + self._seconds
        whole = True
        try:
            materials = await self._materials(user_id, trends, fresh)
        except DatabaseError as error:
            _failed(error)
            candidates = [
                Candidate(UUID(bytes=video), None, trending=share)
                for video, share in trends.shares.items()
            ]
            materials, whole = [Material(Profile(user_id), candidates)], False
        material = materials[0]
        blended, *rivals = [
            tuple(blend(each, limit=len(each.candidates), weights=variant.weights))
            for each, variant in zip(materials, self._variants, strict=False)
        ]
        told = {video: (each.title, each.category) for video, each in material.described.items()}
        made = RankedRecommendations(source_of(material), blended, whole, told)
        if rivals:
            made = replace(made, rival=rivals[0], experiment=self.experiment)
        if whole and self._ranker is not None and blended:
            made = await _in_order_of(self._ranker, material, made, deadline)
        RECOMMENDATIONS_MADE.labels(made.source.value).inc()
        return made

    async def _trending(self, fresh: Freshness) -> Trends:
        if not fresh.is_asked and time.monotonic() < self._trends_until:
            return self._trends
        until = time.monotonic() + self._memory_seconds
        try:
            await self._analytics.wait(fresh, ENGAGED_CONSUMER, COUNTS_CONSUMER, VIDEOS_CONSUMER)
            ranking, _ = await self._analytics.ranking(Window.MONTH, MOST, None, fresh=fresh)
        except AnalyticsUnavailable:
            return NO_TRENDS
        self._trends, self._trends_until = Trends.of(ranking.value), until
        return self._trends

    async def _newest(self, user_id: str) -> list[RankedVideo]:
        """Return MOST or more videos with nothing to recommend them but being new, newest first.

        Fewer where there are not so many, or where the user has seen what came of late.
        """
        found: list[UUID] = []
        before = END_OF_LOG
        try:
            async with self._pool.connection() as conn:
                latest = await self._dismissals.latest(conn, user_id, MOST_DISMISSED)
            dismissed = {each.video_id for each in latest}
            for _ in range(MOST_PAGES):
                async with self._pool.connection() as conn:
                    rows = await self._catalog.page(
                        conn, NOBODY, owner=None, category=None, before=before, limit=MOST
                    )
                asked = [row.video_id for row in rows if row.owner != user_id]
                known = dismissed | await self._engaged_with(user_id, asked)
                found += [video for video in asked if video not in known]
                if len(found) >= MOST or len(rows) < MOST:
                    break
                before = rows[-1].completed_position
        except DatabaseError as error:
            _failed(error)
        return [RankedVideo(video, 0.0, NEW, signal=Signal.NEW) for video in found]

    async def aclose(self) -> None:
        """Cancel the calls of the language model, and close its connections."""
        if self._ranker is not None:
            await self._ranker.aclose()

    async def _materials(self, user_id: str, trends: Trends, fresh: Freshness) -> list[Material]:
        """Return what is known of the user, and the candidates of each variant.

        Raise psycopg.Error.
        """
        own = await self._own.ask(await self._decisions.ask(user_id))
        videos = own.profile.newest()
        similar = await self._similar(videos, fresh) if videos else []
        attention = self._attention.cached or await self._read_attention()
        materials: list[Material] = []
        for number, variant in enumerate(self._variants):
            if number and variant.weighing == self._variants[0].weighing:
                materials.append(materials[0])
                continue
            weighing = variant.weighing
            asked = question_of(own.profile, trends, similar, weighing)
            around = await self._around(asked, fresh)
            engaged = own.engaged
            if engaged is None:
                async with self._analytics.pool.connection() as conn:
                    engaged = await engaged_with(conn, user_id, around)
            materials.append(
                material_of(
                    own.profile,
                    around,
                    engaged,
                    trends,
                    attention,
                    similar=similar,
                    without=own.dismissed,
                    weighing=weighing,
                )
            )
        telling = own.dismissed[:TELLING]
        offered = (each.video_id for one in materials for each in one.candidates)
        asked_about = [*videos, *telling, *offered]
        described = await self._described(asked_about)
        # What the catalog no longer lists, the analytics may not have heard of.
        all_are_there = len(described) == len(asked_about)
        return [
            replace(
                one,
                candidates=one.candidates
                if all_are_there
                else [each for each in one.candidates if each.video_id in described],
                described=described,
                interest=interest(telling, described),
            )
            for one in materials
        ]

    async def _read_attention(self) -> Attention:
        async with self._analytics.pool.connection() as conn:
            return await self._attention.get(conn)

    async def _around(self, asked: WantedFacts, fresh: Freshness) -> Vicinity:
        """Return what lies around a user; from memory, unless a position was asked for."""
        if fresh.is_asked:
            async with self._analytics.pool.connection() as conn:
                return await read_around(conn, asked, self._variants[0].weighing)
        found = self._facts.surroundings(asked)
        return found if found is not None else await self._questions.ask(asked)

    async def _load(self, asked: Sequence[WantedFacts]) -> Sequence[Vicinity]:
        async with self._analytics.pool.connection() as conn:
            return await self._facts.load(conn, asked)

    async def _decisions_of(self, users: Sequence[str]) -> Sequence[UserDecisions]:
        async with self._pool.connection() as conn:
            return await decisions_of(conn, self._likes, self._dismissals, users)

    async def _own_of(self, decided: Sequence[UserDecisions]) -> Sequence[Own]:
        async with self._analytics.pool.connection() as conn:
            return await own_of(conn, decided)

    async def _similar(
        self, videos: Sequence[UUID], fresh: Freshness
    ) -> Sequence[tuple[UUID, float]]:
        """Return videos with texts like those; none where no embeddings are kept."""
        if not fresh.is_asked and time.monotonic() < self._unembedded_until:
            return ()
        async with self._analytics.pool.connection() as conn:
            if await are_kept(conn):
                return await nearest(conn, videos, limit=MOST_SIMILAR)
        self._unembedded_until = time.monotonic() + self._memory_seconds
        return ()

    async def _describe(self, videos: Sequence[UUID]) -> dict[UUID, DescribedVideo]:
        async with self._pool.connection() as conn:
            found = await fetch_as(conn, DescribedVideo, self._catalog.sql(DESCRIBE), (videos,))
        return {each.video_id: each for each in found}

    async def _engaged_with(self, user_id: str, videos: Sequence[UUID]) -> set[UUID]:
        """Return those that the user has seen; none while the analytics are away."""
        try:
            async with self._analytics.pool.connection() as conn:
                rows = await conn.execute(ENGAGED_WITH, (user_id, list(videos)))
                return {video for (video,) in await rows.fetchall()}
        except DatabaseError as error:
            _failed(error)
            return set()


def _optional(redis: Redis) -> OptionalRedis:
    return OptionalRedis(redis, "recommendation_cache", RECOMMENDATION_CACHE_FAILURES)


def _failed(error: DatabaseError) -> None:
    RECOMMENDATION_FAILURES.inc()
    log.warning("recommended_by_trend", error=f"{type(error).__name__}: {error}")


async def _in_order_of(
    ranker: Ranker, material: Material, made: RankedRecommendations, deadline: float
) -> RankedRecommendations:
    """Return `made` in the language model's order, if there is one in time."""
    try:
        ranked = await ranker.rank(material, MOST, deadline - time.monotonic())
    except LanguageModelError as error:
        log.info("recommended_without_model", outcome=error.outcome)
        # A budget that is spent today will be so in a minute.
        return replace(made, whole=isinstance(error, BudgetSpent))
    if not ranked:
        return made
    fused = made.reordered(lambda items: fuse(items, ranked))
    return replace(fused, source=RecommendationSource.LLM)

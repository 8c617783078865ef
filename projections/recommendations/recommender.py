"""The recommendations of a user: by a language model, else by the blend, else what trends.

As long as the database answers, the answer comes within the time limit, and names its source.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from typing import LiteralString
from uuid import UUID

import structlog
from psycopg import AsyncConnection
from psycopg import Error as DatabaseError
from psycopg.rows import TupleRow

from engine.freshness import Freshness, Pool
from engine.log import END_OF_LOG
from infra.llm.errors import LanguageModelError
from infra.metrics import counter
from infra.postgres.connection import fetch_as
from projections.catalog import Catalog, VideoRow
from projections.likes import Likes
from projections.recommendations.blend import blend, source_of
from projections.recommendations.budget import BudgetSpent
from projections.recommendations.candidates import candidates_for, engaged_with, falling
from projections.recommendations.embeddings import nearest
from projections.recommendations.model import (
    Candidate,
    Described,
    Engaged,
    Material,
    Profile,
    RankedRecommendations,
    RecommendationSource,
    Recommended,
    Weighing,
)
from projections.recommendations.prompt import MOST_LIKED, MOST_WATCHED
from projections.recommendations.ranker import Ranker, fuse
from projections.trending import Ranked

log = structlog.get_logger(__name__)

WATCHED = b"""
SELECT video_id, at FROM analytics.watched WHERE viewer = %s ORDER BY at DESC, video_id LIMIT %s
"""
LIKED_AT = b"""
SELECT video_id, liked_at FROM analytics.engaged
WHERE viewer = %s AND video_id = ANY (%s) AND liked_at IS NOT NULL
"""

# Far more than a prompt has room for; a transcript may be of hours.
DESCRIBE: LiteralString = """
SELECT upload_id AS video_id, title, left(description, 2000) AS description, category,
       left(transcript, 2000) AS transcript, spoken_language
FROM {schema}.uploads WHERE completed_position IS NOT NULL AND upload_id = ANY (%s)
"""

MOST = 50
"""So many are shown at most; more are made, for those that are seen or removed meanwhile."""
MOST_SIMILAR = 20
MOST_PAGES = 5
"""Of the catalog, to look for what is new."""

NEW = "New"

Conn = AsyncConnection[TupleRow]
Trend = Callable[[Freshness], Awaitable[Sequence[Ranked]]]

RECOMMENDATIONS_MADE = counter(
    "backlot_recommendations_made",
    "Recommendations of one user that were made, by what ordered them (llm, blend, trending).",
    ("source",),
)
RECOMMENDATION_FAILURES = counter(
    "backlot_recommendation_failures",
    "Times that a database did not answer, so that what trends was recommended.",
)


async def profile_of(
    analytics_conn: AsyncConnection[TupleRow],
    likes: Likes,
    main_conn: AsyncConnection[TupleRow],
    user_id: str,
) -> Profile:
    """Return the profile of a user; an empty one of a user of whom nothing is known.

    `main_conn` is to the database of `likes`. A like that the analytics have not seen yet is taken
    to be of now.
    """
    watched = await fetch_as(analytics_conn, Engaged, WATCHED, (user_id, MOST_WATCHED))
    standing = await likes.liked_page(main_conn, user_id, END_OF_LOG, MOST_LIKED)
    times = await _liked_at(analytics_conn, user_id, [like.video_id for like in standing])
    now = datetime.now(UTC)
    liked = [Engaged(like.video_id, times.get(like.video_id, now)) for like in standing]
    return Profile(user_id, watched, liked)


async def _liked_at(
    conn: AsyncConnection[TupleRow], user_id: str, videos: list[UUID]
) -> dict[UUID, datetime]:
    cursor = await conn.execute(LIKED_AT, (user_id, videos))
    return dict(await cursor.fetchall())


async def describe(
    conn: AsyncConnection[TupleRow], catalog: Catalog, videos: Sequence[UUID]
) -> dict[UUID, Described]:
    """Return those of the videos that are there, as they are called now."""
    found = await fetch_as(conn, Described, catalog.sql(DESCRIBE), (list(videos),))
    return {each.video_id: each for each in found}


class Recommender:
    """Makes recommendations; to be used from one event loop.

    `pool` leads to the read models, `analytics` to the analytics; `trend` gives what trends, once
    the analytics are as fresh as was asked.
    """

    def __init__(
        self,
        pool: Pool,
        analytics: Pool,
        *,
        likes: Likes,
        catalog: Catalog,
        trend: Trend,
        ranker: Ranker | None,
        seconds: float,
        weighing: Weighing,
    ) -> None:
        self._pool, self._analytics = pool, analytics
        self._likes, self._catalog = likes, catalog
        self._trend, self._ranker = trend, ranker
        self._seconds, self._weighing = seconds, weighing

    async def recommend(self, user_id: str, fresh: Freshness) -> RankedRecommendations:
        """Videos for a user; few, or none, where little has happened yet.

        Raise ReadModelBehind.
        """
        trending = await self._trend(fresh)
        deadline = time.monotonic() + self._seconds
        material, whole = await self._material(user_id, trending)
        blended = blend(material, limit=len(material.candidates))
        told = {video: (each.title, each.category) for video, each in material.described.items()}
        made = RankedRecommendations(source_of(material), tuple(blended), whole, told)
        if whole and self._ranker is not None and blended:
            made = await self._asked(self._ranker, material, made, deadline)
        RECOMMENDATIONS_MADE.labels(made.source.value).inc()
        return made

    async def newest(self, user_id: str) -> list[Recommended]:
        """MOST or some more that may be recommended for nothing but being new, the newest first.

        Fewer where there are not so many, or where the user has seen what came of late.
        """
        found: list[UUID] = []
        before = END_OF_LOG
        try:
            for _ in range(MOST_PAGES):
                rows = await self._page(before)
                asked = [row.video_id for row in rows if row.owner != user_id]
                known = await self._engaged_with(user_id, asked)
                found += [video for video in asked if video not in known]
                if len(found) >= MOST or len(rows) < MOST:
                    break
                before = rows[-1].completed_position
        except DatabaseError as error:
            self._failed(error)
        return [Recommended(video, 0.0, NEW) for video in found]

    async def _page(self, before: int) -> Sequence[VideoRow]:
        async with self._pool.connection() as conn:
            return await self._catalog.page(
                conn, owner=None, category=None, before=before, limit=MOST
            )

    async def aclose(self) -> None:
        """Cancel the calls of the language model, and close its connections."""
        if self._ranker is not None:
            await self._ranker.aclose()

    async def _asked(
        self, ranker: Ranker, material: Material, made: RankedRecommendations, deadline: float
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
        return replace(made, source=RecommendationSource.LLM, items=tuple(fuse(made.items, ranked)))

    async def _material(self, user_id: str, trending: Sequence[Ranked]) -> tuple[Material, bool]:
        """Return what is known of the user and the candidates; without a database, what trends."""
        try:
            async with self._pool.connection() as conn, self._analytics.connection() as analytics:
                return await self._look(conn, analytics, user_id, trending), True
        except DatabaseError as error:
            self._failed(error)
            return Material(Profile(user_id), _by_trend(trending)), False

    async def _look(
        self, conn: Conn, analytics: Conn, user_id: str, trending: Sequence[Ranked]
    ) -> Material:
        profile = await profile_of(analytics, self._likes, conn, user_id)
        similar = await nearest(analytics, _latest(profile), limit=MOST_SIMILAR)
        candidates = await candidates_for(
            analytics, profile, trending, similar=similar, weighing=self._weighing
        )
        described = await describe(conn, self._catalog, _all(profile, candidates))
        # What the catalog no longer has, the analytics may not have heard of.
        there = [each for each in candidates if each.video_id in described]
        return Material(profile, there, described)

    async def _engaged_with(self, user_id: str, videos: Sequence[UUID]) -> Collection[UUID]:
        """Return those that the user has seen; none while nobody can tell."""
        try:
            async with self._analytics.connection() as conn:
                return await engaged_with(conn, user_id, videos)
        except DatabaseError as error:
            self._failed(error)
            return ()

    def _failed(self, error: DatabaseError) -> None:
        RECOMMENDATION_FAILURES.inc()
        log.warning("recommended_by_trend", error=f"{type(error).__name__}: {error}")


def _latest(profile: Profile) -> list[UUID]:
    """Return the videos of the profile, the newest engagement first."""
    engaged = sorted(chain(profile.liked, profile.watched), key=lambda each: each.at, reverse=True)
    return list(dict.fromkeys(each.video_id for each in engaged))


def _all(profile: Profile, candidates: Sequence[Candidate]) -> list[UUID]:
    known = (each.video_id for each in chain(profile.watched, profile.liked))
    return list(dict.fromkeys(chain((each.video_id for each in candidates), known)))


def _by_trend(trending: Sequence[Ranked]) -> list[Candidate]:
    points = falling([each.video_id for each in trending])
    return [Candidate(video, None, trending=point) for video, point in points.items()]

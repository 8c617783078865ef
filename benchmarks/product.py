"""The product under test: a database filled through its sinks, and asked as its users ask.

Time passes as in the history: an answer is made of what had happened until then.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from itertools import count
from typing import Any, NamedTuple, TypeVar
from uuid import UUID, uuid5

import uvloop
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from benchmarks.history import Event, Film, Kind
from domain.upload import Upload
from engine.connections import SESSION
from engine.messages import IncomingMessage, RawMessage, Sink
from infra.settings import Settings
from projections import integration_events
from projections.likes import LikedVideo, Likes
from projections.recommendations.attention import attention_of
from projections.recommendations.blend import blend
from projections.recommendations.candidates import material_for
from projections.recommendations.co_occurrence import rank_categories
from projections.recommendations.model import (
    DescribedVideo,
    Material,
    RankedVideo,
    Weighing,
)
from projections.recommendations.profiles import profile_of
from projections.recommendations.recommender import MOST
from projections.trending import Formula, Ranked, Trending, Window
from workers.analytics import Analytics, AnalyticsVideos, rules_of
from workers.recommendations import EngagementSink

T = TypeVar("T")

BATCH = 2_000
NAMES = UUID(int=0xB1E)
ANALYZE_AFTER = 1_000
"""Engagements until the tables are analyzed for the first time; then whenever they have doubled."""
TOPICS: Mapping[Kind, tuple[str, str]] = {
    Kind.VIEW: (integration_events.VIDEO_VIEWED, "timestamp"),
    Kind.LIKE: (integration_events.VIDEO_LIKED, "ts"),
    Kind.UNLIKE: (integration_events.VIDEO_UNLIKED, "ts"),
    Kind.COMMENT: (integration_events.COMMENT_CREATED, "ts"),
    Kind.SHARE: (integration_events.VIDEO_SHARED, "timestamp"),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the product makes for a user: its material, what trends, and the blend, best first.

    What trends may be more than was asked for.
    """

    material: Material
    trending: Sequence[Ranked]
    blended: Sequence[RankedVideo]


class Trends(NamedTuple):
    """What trended at a time: the first `most` of the week, and those of the month."""

    at: datetime
    most: int
    week: Sequence[Ranked]
    month: Sequence[Ranked]


class StandingLikes(Likes):
    """The likes of the history that stand, in the place of the read model."""

    def __init__(self) -> None:
        super().__init__()
        self._likes: dict[str, dict[UUID, int]] = {}
        self._positions = count(1)

    def take(self, event: Event) -> None:
        """Take in a like or an unlike."""
        likes = self._likes.setdefault(event.user, {})
        likes.pop(event.video_id, None)
        if event.kind is Kind.LIKE:
            likes[event.video_id] = next(self._positions)

    async def liked_page(
        self, conn: AsyncConnection[TupleRow], viewer: str, before: int, limit: int
    ) -> list[LikedVideo]:
        newest = reversed(self._likes.get(viewer, {}).items())
        return [LikedVideo(*each) for each in newest if each[1] < before][:limit]


class Product:
    """One installation's recommendations; videos and events are given in order of time."""

    def __init__(self, url: str, settings: Settings) -> None:
        """`url` leads to an empty database. Use it as a context."""
        self._url = url
        self._trending = Trending(Formula.from_settings(settings.trending))
        self.weighing = Weighing.from_settings(settings.recommendations)
        rules = rules_of(settings)
        self._videos = AnalyticsVideos(rules)
        self._sinks: list[Sink] = [Analytics(rules), EngagementSink(self.weighing)]
        self._likes = StandingLikes()
        self._described: dict[UUID, DescribedVideo] = {}
        self._uploads: list[IncomingMessage] = []
        self._waiting: list[tuple[datetime, int, IncomingMessage]] = []
        self._numbers = count()
        self._stored = 0
        self._analyze_at = ANALYZE_AFTER
        self._trends: Trends | None = None
        self._open = ExitStack()

    def __enter__(self) -> Product:
        # However busy the machine is: nothing here says that the database is stuck.
        self._conn = self._open.enter_context(Connection.connect(self._url, autocommit=True))
        self._conn.execute(SESSION)
        for sink in (self._videos, *self._sinks):
            sink.prepare(self._conn)
        # A history may be of long ago.
        self._conn.execute(b"UPDATE analytics.retention SET days = 36500")
        self._loop = uvloop.new_event_loop()
        self._open.callback(self._loop.close)
        self._queries = self._run(AsyncConnection.connect(self._url, autocommit=True))
        self._open.callback(lambda: self._run(self._queries.close()))
        return self

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def publish(self, film: Film) -> None:
        """Take in a video, which is begun and completed at once."""
        self._described[film.video_id] = DescribedVideo(
            film.video_id, film.title, category=film.category
        )
        self._uploads += _uploaded(film)

    def take(self, event: Event) -> None:
        """Take in what happened; it is stored when that matters."""
        if event.kind in (Kind.LIKE, Kind.UNLIKE):
            self._likes.take(event)
        for at, message in _messages(event, next(self._numbers)):
            heappush(self._waiting, (at, next(self._numbers), message))
        if len(self._waiting) >= 2 * BATCH:
            self._store(event.at)

    def ask(self, user: str, at: datetime, *, trending: int = MOST) -> Answer:
        """Return what the product recommends to a user at a time, and the first that trend."""
        self._store(at)
        return self._run(self._ask(user, at, max(trending, MOST)))

    async def _ask(self, user: str, at: datetime, most: int) -> Answer:
        conn = self._queries
        trends = self._trends = await self._trends_of(at, most)
        profile = await profile_of(conn, self._likes, conn, user)
        attention = await attention_of(conn, self.weighing)
        found = await material_for(conn, profile, trends.month, attention, weighing=self.weighing)
        material = replace(found, described=self._described)
        return Answer(material, trends.week, blend(material, limit=len(material.candidates)))

    async def _trends_of(self, at: datetime, most: int) -> Trends:
        """Rank, unless the last question was of the same time; with room for those to come."""
        before, conn = self._trends, self._queries
        if before is not None and before.at == at and before.most >= most:
            return before
        if before is not None and before.at == at:
            most *= 2
        return Trends(
            at,
            most,
            await self._trending.rank(conn, Window.WEEK, limit=most, now=at),
            await self._trending.rank(conn, Window.MONTH, limit=MOST, now=at),
        )

    def _store(self, until: datetime) -> None:
        """Store what happened before a time, as the consumers would."""
        uploads, self._uploads = self._uploads, []
        for start in range(0, len(uploads), BATCH):
            _keep(self._conn, self._videos, uploads[start : start + BATCH])
        messages: list[IncomingMessage] = []
        while self._waiting and self._waiting[0][0] < until:
            messages.append(heappop(self._waiting)[-1])
        for start in range(0, len(messages), BATCH):
            for sink in self._sinks:
                _keep(self._conn, sink, messages[start : start + BATCH])
        if uploads or messages:
            self._stored += len(messages)
            rank_categories(self._conn, self.weighing)
            if self._stored >= self._analyze_at:
                self._conn.execute(b"ANALYZE")
                self._analyze_at = 2 * self._stored


def _keep(conn: Connection[TupleRow], sink: Sink, messages: Sequence[IncomingMessage]) -> None:
    wanted = [message for message in messages if message.topic in sink.topics]
    if wanted:
        with conn.transaction():
            sink.store(conn, wanted)


def _uploaded(film: Film) -> Iterator[IncomingMessage]:
    value = {"id": str(film.video_id), "at": film.since.isoformat(), "owner": film.owner}
    for kind in (Upload.Started, Upload.Completed):
        about = {**value, "category": film.category, "duration": None}
        yield _message(kind.TOPIC, str(film.video_id), about)


def _messages(event: Event, number: int) -> Iterator[tuple[datetime, IncomingMessage]]:
    """Yield what is published of an event, and when."""
    topic, time_name = TOPICS[event.kind]
    value = {"videoId": str(event.video_id), "userId": event.user}
    if event.kind is Kind.VIEW:
        value["sessionId"] = str(uuid5(NAMES, f"session {number}"))
    yield event.at, _message(topic, str(number), {**value, time_name: _iso(event.at)})
    if event.seconds:
        # Nobody reports what lies ahead, and then no more counts than the time that has passed.
        ended = min(event.at + timedelta(seconds=event.seconds), datetime.now(UTC))
        after = max(event.at, ended)
        watched = {**value, "timestamp": _iso(after), "seconds": event.seconds}
        yield after, _message(integration_events.VIDEO_WATCH_TIME, str(number), watched)


def _message(topic: str, key: str, value: Mapping[str, Any]) -> IncomingMessage:
    raw = RawMessage(topic, ("history", 0), 0)
    return IncomingMessage(uuid5(NAMES, f"{topic} {key}"), topic, key, value, 0, None, lambda: raw)


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="microseconds")

"""What tests of the analytics share: databases of both shapes, a random history, and an oracle
that counts it in plain Python."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import count
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from engine.connections import connect
from projections.analytics.audience import start_of
from projections.analytics.ingest import Store
from projections.analytics.rules import KINDS, Rules, row_of
from projections.analytics.schema import SchemaState, Shape, migrate
from projections.feeds import TelemetryFeed
from tests.integration.event_log import rows

NOW = datetime.now(UTC)
REPEAT = timedelta(hours=1)
# Of caps that a short history reaches.
RULES = Rules(REPEAT, viewer_comments=1, viewer_seconds=900.0)
TIMESCALE = os.environ.get("BACKLOT_TEST_TIMESCALE_URL")
UNTESTED = (
    "The TimescaleDB shape was NOT tested: BACKLOT_TEST_TIMESCALE_URL names no server that has it"
)
_numbers = count(1)

POSITIONS = (None, 0.0, 30.25, 119.5, 4000.0)
"""That reports say, by the second in which they are made."""

Event = tuple[str, UUID, dict[str, Any]]
"""Topic, id and value of a message."""


@contextmanager
def timescale_database() -> Iterator[str]:
    """An empty database of the server that has TimescaleDB; skips where there is none."""
    if TIMESCALE is None:
        pytest.skip(UNTESTED)
    name = f"backlot_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(TIMESCALE, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield psycopg.conninfo.make_conninfo(TIMESCALE, dbname=name)
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def migrated(url: str) -> SchemaState:
    """Make the tables of the analytics."""
    with connect(url, "test") as conn:
        return migrate(conn)


def stored_from(url: str, topics: frozenset[str]) -> None:
    """Count what the telemetry holds of these topics, as the sink does from the event log."""
    feed = TelemetryFeed(topics, batch_events=1_000)
    with connect(url, "test") as conn, conn.transaction():
        messages = feed.read(conn, 0).messages
        told = [row_of(each.topic, each.id, json.loads(each.value), NOW) for each in messages]
        Store(Shape.PLAIN, RULES).add(conn, told)


@dataclass
class History:
    """What happened, as messages, in order of time; and the videos: owner and length."""

    events: list[Event]
    videos: dict[UUID, tuple[str, float | None]]


def history(random: Random, size: int = 120, days: float = 3.0) -> History:
    """A random one in which sessions view, report too much, come back and belong to owners."""
    videos = {
        uuid4(): (random.choice(["ann", "bob"]), random.choice([None, 90.0, 4000.0]))
        for _ in range(3)
    }
    sessions = [
        (uuid4(), random.choice(list(videos)), random.choice([None, "ann", "bob", "eve"]))
        for _ in range(8)
    ]
    found: list[Event] = []
    for _ in range(size):
        at = NOW - timedelta(seconds=random.randrange(int(days * 86_400)))
        session, video, user = random.choice(sessions)
        near = NOW - timedelta(days=random.randrange(2), seconds=random.randrange(7000))
        found.append(_event(random, random.choice([at, near]), session, video, user))
    return History(sorted(found, key=when), videos)


def _event(random: Random, at: datetime, session: UUID, video: UUID, user: str | None) -> Event:
    id_ = uuid4()
    topic = random.choice(
        ["video.viewed"] * 4
        + ["video.watch_time"] * 6
        + ["video.shared", "video.liked", "video.unliked", "comment.created", "comment.deleted"]
    )
    value: dict[str, Any] = {"id": str(id_), "videoId": str(video), "userId": user}
    if topic in ("video.viewed", "video.watch_time", "video.shared"):
        value["timestamp"] = at.isoformat()
    else:
        value |= {"ts": at.isoformat(), "userId": user or "eve"}
    if topic in ("video.viewed", "video.watch_time"):
        value["sessionId"] = str(session)
    if topic == "video.watch_time":
        value["seconds"] = random.choice([0.5, 30.0, 600.0, 5000.0])
        position = POSITIONS[int(at.timestamp()) % len(POSITIONS)]
        value |= {} if position is None else {"position": position}
    return topic, id_, value


def when(event: Event) -> datetime:
    """The time of a message."""
    return datetime.fromisoformat(event[2].get("ts") or event[2]["timestamp"])


@dataclass
class Counted:
    """What the tables are to say: by hour and video, and who viewed until when."""

    hourly: dict[tuple[datetime, UUID], Counter[str]] = field(
        default_factory=lambda: defaultdict(Counter)
    )
    # The hour of the last view, by video, viewer and day.
    viewers: dict[tuple[UUID, str, date], datetime] = field(default_factory=dict)
    # Sessions, and milliseconds by the second with which a place begins; who has told a position.
    audience: dict[tuple[datetime, UUID], Counter[Any]] = field(
        default_factory=lambda: defaultdict(Counter)
    )
    positioned: set[tuple[str, str]] = field(default_factory=set)

    def watch(
        self, key: tuple[str, str], hour: datetime, position: float | None, seconds: float
    ) -> None:
        """Count where a session watched, by its video and its id."""
        if position is not None and seconds > 0:
            audience = self.audience[hour, UUID(key[0])]
            audience["sessions"] += key not in self.positioned
            self.positioned.add(key)
            audience.update(places(position, position + seconds))

    @property
    def daily(self) -> dict[tuple[datetime, UUID], Counter[str]]:
        found: dict[tuple[datetime, UUID], Counter[str]] = defaultdict(Counter)
        for (hour, video), sums in self.hourly.items():
            day = found[hour.replace(hour=0), video]
            for name, value in sums.items():
                day[name] += value
        return found

    @property
    def viewers_hourly(self) -> dict[tuple[datetime, UUID], Counter[str]]:
        """The viewers of each day by their last hour, and those whose last day that was."""
        found: dict[tuple[datetime, UUID], Counter[str]] = defaultdict(Counter)
        for (video, viewer, day), hour in self.viewers.items():
            days = [d for v, who, d in self.viewers if (v, who) == (video, viewer)]
            found[hour, video] += Counter(viewers=1, latest=int(day == max(days)))
        return found


def oracle(told: History) -> Counted:
    """Counted by the rules as docs/analytics.md has them, one event after another."""
    found = Counted()
    first_view: dict[tuple[str, str], datetime] = {}
    counted: dict[tuple[str, str], datetime] = {}
    reported: dict[tuple[str, str], datetime] = {}
    watched: Counter[tuple[str, str]] = Counter()
    # By video and viewer.
    standing: Counter[tuple[str, str]] = Counter()
    trending: Counter[tuple[str, str]] = Counter()
    for topic, _, value in sorted(
        told.events, key=lambda each: (when(each), KINDS[each[0]][0], str(each[1]))
    ):
        at, video = when((topic, uuid4(), value)), UUID(value["videoId"])
        owner, length = told.videos[video]
        hour = at.replace(minute=0, second=0, microsecond=0)
        sums = found.hourly[hour, video]
        key = (value["videoId"], value.get("sessionId", ""))
        own = value["userId"] == owner
        viewer = value["videoId"], value["userId"] or f"session:{value.get('sessionId')}"
        if topic == "video.viewed":
            found.viewers[video, viewer[1], at.date()] = hour
            first_view.setdefault(key, at)
            if key not in counted or at - counted[key] >= REPEAT:
                counted[key] = at
                sums["views"] += 1
                sums["trending_views"] += not own
        elif topic == "video.watch_time":
            if key in first_view:
                since = max(first_view[key], reported.get(key, first_view[key]))
                seconds = min(value["seconds"], (at - since).total_seconds())
                if length is not None:
                    seconds = min(seconds, length - watched[key])
                watched[key] += seconds
                sums["watch_seconds"] += seconds
                found.watch(key, hour, value.get("position"), seconds)
                if not own:
                    left = RULES.viewer_seconds - trending[viewer]
                    trending[viewer] += min(seconds, left)
                    sums["trending_watch_seconds"] += min(seconds, left)
            reported[key] = at
        elif topic == "video.shared":
            sums["shares"] += 1
        elif topic in ("video.liked", "video.unliked"):
            delta = 1 if topic == "video.liked" else -1
            sums["likes"] += delta
            sums["trending_likes"] += 0 if own else delta
        else:
            delta = 1 if topic == "comment.created" else -1
            sums["comments"] += delta
            before = sorted((0, standing[viewer], RULES.viewer_comments))[1]
            standing[viewer] += delta
            after = sorted((0, standing[viewer], RULES.viewer_comments))[1]
            sums["trending_comments"] += 0 if own else after - before
    return found


def places(since: float, until: float) -> Counter[int]:
    """How many milliseconds lie in each place of a video, by the second with which it begins."""
    found: Counter[int] = Counter()
    second, step, number = 0, 1, 0
    while second < until:
        within = min(second + step, until) - max(second, since)
        if within > 0:
            found[second] = round(within * 1000)
        second, number = second + step, number + 1
        step = step * 2 if number >= 120 and number % 60 == 0 else step
    return found


COLUMNS = (
    "views", "trending_views", "likes", "comments", "shares", "watch_seconds",
    "trending_watch_seconds", "trending_likes", "trending_comments",
)  # fmt: skip


def expect(url: str, wanted: Counted, events: Sequence[Event]) -> None:
    """Compare all tables with what was counted in plain Python."""
    _same(url, "video_hourly", wanted.hourly)
    _same(url, "video_daily", wanted.daily)
    expect_viewers(url, wanted)
    assert audience(url) == wanted.audience
    stored = rows(url, "SELECT event_id FROM analytics.video_analytics")
    assert sorted(stored) == sorted({(id_,) for _, id_, _ in events})


def audience(url: str) -> dict[tuple[datetime, UUID], Counter[Any]]:
    """What is stored of which seconds were watched; hours of nothing may be there or not."""
    found: dict[tuple[datetime, UUID], Counter[Any]] = {}
    for bucket, video, sessions, milliseconds in rows(
        url, "SELECT bucket, video_id, sessions, milliseconds FROM analytics.audience_hourly"
    ):
        counts: Counter[Any] = Counter(
            {start_of(place): ms for place, ms in enumerate(milliseconds)}
        )
        counts["sessions"] = sessions
        if any(counts.values()):
            found[bucket.astimezone(UTC), video] = counts
    return found


def expect_viewers(url: str, wanted: Counted) -> None:
    """Compare who viewed, and their counts, with what was counted in plain Python."""
    viewers = rows(url, "SELECT video_id, viewer, day, hour FROM analytics.video_viewers")
    assert {tuple(key): hour for *key, hour in viewers} == wanted.viewers
    found = rows(url, "SELECT bucket, video_id, viewers, latest FROM analytics.viewers_hourly")
    by_hour = {(at, video): Counter(viewers=n, latest=m) for at, video, n, m in found if n or m}
    assert by_hour == wanted.viewers_hourly


def _same(url: str, table: str, wanted: dict[tuple[datetime, UUID], Counter[str]]) -> None:
    found = rows(url, f"SELECT bucket, video_id, {', '.join(COLUMNS)} FROM analytics.{table}")
    by_key = {(row[0].astimezone(UTC), row[1]): row[2:] for row in found}
    assert len(by_key) == len(found)
    assert by_key.keys() == wanted.keys()
    for key, sums in wanted.items():
        # Sums of seconds depend on the order of their addends in the last digits.
        told = [sums[name] for name in COLUMNS]
        assert by_key[key] == pytest.approx(told, abs=1e-6), (table, key)

"""What 150 accounts of one person reach in trending: with the caps on one viewer, and without."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import uvloop
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from benchmarks.analytics import History, fill_analytics
from benchmarks.bench import Bench, say
from benchmarks.results import Comparison, Side
from projections.analytics.calendar import DAY, HOUR, start_of_hour
from projections.analytics.ingest import Store
from projections.analytics.rules import COMMENT, LIKE, VIEW, WATCH_TIME, Row, Rules
from projections.analytics.schema import Shape
from projections.trending import Formula, Trending, Window

CAPPED = Rules()
UNCAPPED = Rules(viewer_comments=10**9, viewer_seconds=1e12)
# Per account and hour.
COMMENTS, REPORTS = 12, 6
LEVERS = {
    "views": {VIEW},
    "likes": {LIKE},
    "comments": {COMMENT},
    "watching": {VIEW, WATCH_TIME},
    "all of these": {VIEW, LIKE, COMMENT, WATCH_TIME},
}
# A filled history has none of the indexes that storing needs.
INDEXES = b"""
ALTER TABLE analytics.video_analytics ADD UNIQUE (event_id, "timestamp");
CREATE INDEX ON analytics.video_analytics ((metadata->>'session'))
    WHERE event_type IN ('view', 'watch_time');
CREATE INDEX ON analytics.video_analytics (user_id, "timestamp")
"""
TARGET = b"""
INSERT INTO analytics.videos (video_id, owner, completed_at) VALUES (%b, 'puppeteer', %b)
"""
AT_ONCE = 10_000


@dataclass(frozen=True)
class Attack:
    """What the accounts do, all of it for one video of its own; `hours` long, until now."""

    video_id: UUID
    lever: str
    hours: int
    rules: Rules

    @property
    def name(self) -> str:
        return f"{self.lever}, for {'an hour' if self.hours == 1 else 'a day'}"

    def events(self, accounts: int, until: datetime) -> Iterator[Row]:
        """Yield what they do, by account, in order of time."""
        kinds, chance = LEVERS[self.lever], random.Random(self.video_id.int)
        for number in range(accounts):
            user, since = f"puppet-{number}", until - self.hours * HOUR
            if LIKE in kinds:
                yield self._event(chance, user, LIKE, since)
            for hour in range(self.hours):
                yield from self._hour(chance, user, since + hour * HOUR)

    def _hour(self, chance: random.Random, user: str, at: datetime) -> Iterator[Row]:
        kinds, session = LEVERS[self.lever], str(_uuid(chance))
        if VIEW in kinds:
            yield self._event(chance, user, VIEW, at, session)
        for number in range(1, REPORTS + 1 if WATCH_TIME in kinds else 1):
            # Up to the last second of the session's hour.
            later = at + number * HOUR / REPORTS - timedelta(seconds=1)
            yield self._event(chance, user, WATCH_TIME, later, session)
        for number in range(COMMENTS if COMMENT in kinds else 0):
            yield self._event(chance, user, COMMENT, at + number * HOUR / COMMENTS)

    def _event(
        self, chance: random.Random, user: str, kind: str, at: datetime, session: str | None = None
    ) -> Row:
        metadata = {} if session else {"delta": 1}
        id_, seconds = str(_uuid(chance)), HOUR.total_seconds() / REPORTS
        return Row(id_, str(self.video_id), user, kind, at, metadata, session, seconds)


def run(bench: Bench) -> list[Comparison]:
    """Points in the ranking of seven days, and the place in it, of a video that nobody else knows.

    It was completed a day ago, among 10,000 videos with 200,000 events of a week, some far more
    popular than others. Noted are the requests of one account.
    """
    accounts = bench.size(150, 5)
    now = start_of_hour(datetime.now(UTC)) - timedelta(seconds=1)
    history = History(bench.size(200_000, 2_000), 7, bench.size(10_000, 100), now, raw=False)
    url = bench.database()
    fill_analytics(url, history)
    chance = random.Random(7)
    attacks = [
        Attack(_uuid(chance), lever, hours, rules)
        for lever in LEVERS
        for hours in (1, 24)
        for rules in (CAPPED, UNCAPPED)
    ]
    requests: dict[UUID, int] = {}
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(INDEXES)
        for each in attacks:
            say(f"{each.name}, {'capped' if each.rules is CAPPED else 'without caps'}")
            conn.execute(TARGET, (each.video_id, now - DAY))
            rows = list(each.events(accounts, now))
            requests[each.video_id] = len(rows) // accounts
            store(conn, each.rules, rows)
    sides = [
        Side(each.name, [score], {"place": place, "requests": requests[each.video_id]})
        for each, (score, place) in zip(attacks, uvloop.run(ranked(url, attacks, now)), strict=True)
    ]
    pairs = zip(sides[::2], sides[1::2], strict=True)
    return [
        Comparison("puppets", "points", ours, Side("without caps", free.rounds, free.notes))
        for ours, free in pairs
    ]


def store(conn: Connection[TupleRow], rules: Rules, rows: Sequence[Row]) -> None:
    """Count these as the sink does."""
    counting = Store(Shape.PLAIN, rules)
    for start in range(0, len(rows), AT_ONCE):
        with conn.transaction():
            counting.add(conn, rows[start : start + AT_ONCE])


async def ranked(url: str, attacks: Sequence[Attack], now: datetime) -> list[tuple[float, int]]:
    """Return the score and the place of each attack's video, each without the others."""
    trending, every = Trending(Formula()), [each.video_id for each in attacks]
    found: list[tuple[float, int]] = []
    async with await AsyncConnection.connect(url, autocommit=True) as conn:
        for video_id in every:
            others = [each for each in every if each != video_id]
            listed = await trending.rank(
                conn, Window.WEEK, limit=1_000_000, now=now, without=others
            )
            found.extend((each.score, each.rank) for each in listed if each.video_id == video_id)
    return found


def _uuid(chance: random.Random) -> UUID:
    return UUID(int=chance.getrandbits(128), version=4)

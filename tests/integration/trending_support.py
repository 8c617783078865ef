"""Histories of what viewers did, in the tables of the analytics and as plain Python values."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import log2
from uuid import UUID, uuid4

import orjson
import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from engine import installation
from engine.installation import ENGINE
from projections.analytics.schema import Shape, migrate, refresh, state
from projections.trending import LENGTHS, Formula, Window
from tests.integration.analytics_support import timescale_database

NOW = datetime(2026, 3, 14, 15, 26, 53, tzinfo=UTC)
HOUR = timedelta(hours=1)
OLD = timedelta(days=400)
# When what is left of a video comes to a tenth, after a half-life of a week.
CROSSING = log2(10) * timedelta(weeks=1)

# What the rollups are by their definition, computed anew from every event.
ROLL_UP = """
INSERT INTO analytics.{table}
SELECT date_trunc('{unit}', "timestamp", 'UTC'), video_id,
       count(*) FILTER (WHERE event_type = 'view' AND (metadata->>'counts')::boolean),
       count(*) FILTER (WHERE event_type = 'view' AND (metadata->>'counts')::boolean
                        AND NOT (metadata->>'own')::boolean),
       coalesce(sum((metadata->>'delta')::bigint) FILTER (WHERE event_type = 'like'), 0),
       coalesce(sum((metadata->>'delta')::bigint) FILTER (WHERE event_type = 'comment'), 0),
       count(*) FILTER (WHERE event_type = 'share'),
       coalesce(sum((metadata->>'seconds')::float8), 0),
       coalesce(sum(coalesce(metadata->>'trending', metadata->>'seconds')::float8)
                FILTER (WHERE event_type = 'watch_time' AND NOT (metadata->>'own')::boolean), 0),
       coalesce(sum(coalesce(metadata->>'trending', metadata->>'delta')::bigint)
                FILTER (WHERE event_type = 'like'), 0),
       coalesce(sum(coalesce(metadata->>'trending', metadata->>'delta')::bigint)
                FILTER (WHERE event_type = 'comment'), 0)
FROM analytics.video_analytics GROUP BY 1, 2
"""
VIEWERS = """
INSERT INTO analytics.video_viewers
SELECT video_id, ("timestamp" AT TIME ZONE 'UTC')::date,
       max(date_trunc('hour', "timestamp", 'UTC')),
       coalesce(user_id, 'session:' || (metadata->>'session'))
FROM analytics.video_analytics WHERE event_type = 'view' GROUP BY 1, 2, 4
"""
VIEWERS_HOURLY = """
INSERT INTO analytics.viewers_hourly
SELECT hour, video_id, count(*), count(*) FILTER (WHERE NOT EXISTS (
    SELECT FROM analytics.video_viewers AS later
    WHERE later.video_id = v.video_id AND later.viewer = v.viewer AND later.day > v.day))
FROM analytics.video_viewers AS v GROUP BY 1, 2
"""


@dataclass(frozen=True)
class Film:
    """A video as the analytics know it."""

    video_id: UUID
    completed_at: datetime | None
    category: str | None = None
    removed: bool = False


@dataclass(frozen=True)
class Deed:
    """One event; `value` is the delta of a like or comment, or the seconds watched, and `trending`
    what of it counts in trending, where that is less.
    """

    film: Film
    kind: str
    at: datetime
    value: float = 1
    user: str | None = "ann"
    own: bool = False
    counts: bool = True
    trending: float | None = None

    @property
    def metadata(self) -> dict[str, object]:
        match self.kind:
            case "like" | "comment":
                return {"delta": int(self.value)} | self._capped(int)
            case "watch_time":
                return {"seconds": self.value, "own": self.own} | self._capped(float)
            case "view":
                return {"counts": self.counts, "own": self.own, "session": "s"}
            case _:
                return {"channel": "mail"}

    def _capped(self, kind: type[int] | type[float]) -> dict[str, object]:
        return {} if self.trending is None else {"trending": kind(self.trending)}


def write(conn: Connection[TupleRow], films: Sequence[Film], deeds: Sequence[Deed]) -> None:
    """Have the tables hold these and nothing else."""
    found = state(conn)
    plain = found is not None and found.shape is Shape.PLAIN
    conn.execute("TRUNCATE analytics.videos, analytics.video_analytics, analytics.video_viewers")
    conn.execute("TRUNCATE analytics.viewers_hourly")
    if plain:
        conn.execute("TRUNCATE analytics.video_hourly, analytics.video_daily")
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO analytics.videos (video_id, owner, category, completed_at, removed)"
            " VALUES (%s, 'owner', %s, %s, %s)",
            [(film.video_id, film.category, film.completed_at, film.removed) for film in films],
        )
        cursor.executemany(
            "INSERT INTO analytics.video_analytics VALUES (%s, %s, %s, %s, %s, %s::jsonb)",
            [
                (uuid4(), d.film.video_id, d.user, d.kind, d.at, orjson.dumps(d.metadata).decode())
                for d in deeds
            ],
        )
        for table, unit in (("video_hourly", "hour"), ("video_daily", "day")) if plain else ():
            cursor.execute(ROLL_UP.format(table=table, unit=unit).encode())
        cursor.execute(VIEWERS)
        cursor.execute(VIEWERS_HOURLY)
    if not plain:
        # As the sink does: a policy may have drawn the watermark past these times by now.
        refresh(conn, [deed.at for deed in deeds], datetime.now(UTC))


def random_history(seed: int, now: datetime = NOW) -> tuple[list[Film], list[Deed]]:
    """A few videos of all ages, some equal, and what happened to them until now."""
    rng = random.Random(seed)
    films = [_film(rng, now) for _ in range(rng.randint(1, 12))]
    deeds = [_deed(rng, rng.choice(films), now) for _ in range(rng.randint(0, 200))]
    return films, deeds


def _film(rng: random.Random, now: datetime) -> Film:
    # Of few ages and categories, so that some scores are equal.
    age = rng.choice([-1 * HOUR, HOUR, 72 * HOUR, CROSSING - HOUR / 4, CROSSING + HOUR / 4, OLD])
    completed_at = None if rng.random() < 0.1 else now - age
    category = rng.choice([None, "art", "nature"])
    return Film(UUID(int=rng.getrandbits(128)), completed_at, category, rng.random() < 0.15)


def _deed(rng: random.Random, film: Film, now: datetime) -> Deed:
    at = now - rng.choice([HOUR, 24 * HOUR, 168 * HOUR, 720 * HOUR, 2000 * HOUR]) * rng.random()
    if rng.random() < 0.2:
        # At the very bounds.
        at = now.replace(minute=0, second=0) - rng.choice([0, 1, 24, 25, 168, 169, 720, 721]) * HOUR
    kind = rng.choice(["view", "like", "comment", "watch_time", "share"])
    value = rng.choice([1.0, -1.0]) if kind in ("like", "comment") else rng.randint(1, 600) / 4
    user = rng.choice([None, "ann", "bob", "eve"])
    trending = rng.choice([None, None, 0.0])
    return Deed(film, kind, at, value, user, rng.random() < 0.2, rng.random() < 0.8, trending)


def expected_ranking(
    films: Sequence[Film],
    deeds: Sequence[Deed],
    window: Window,
    formula: Formula,
    now: datetime = NOW,
    category: str | None = None,
) -> list[tuple[UUID, float]]:
    """The formula in plain Python, from the events themselves."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    since = hour - LENGTHS[window] if window in LENGTHS else datetime(1970, 1, 1, tzinfo=UTC)
    recent = hour - formula.recent_hours * HOUR
    base: dict[UUID, float] = defaultdict(float)
    views: dict[UUID, float] = defaultdict(float)
    for deed in deeds:
        if since <= deed.at < hour + HOUR:
            points = points_of(deed, formula)
            times = formula.recent_boost if deed.at >= recent else 1
            base[deed.film.video_id] += points * times
            views[deed.film.video_id] += points if deed.kind == "view" else 0
    found = []
    for film in films:
        if film.removed or film.completed_at is None or base[film.video_id] <= 0:
            continue
        if category is not None and film.category != category:
            continue
        age = max((now - film.completed_at) / HOUR, 0)
        left = max(formula.age_floor or 0, 2 ** -(age / formula.half_life_hours))
        score = base[film.video_id] * left
        found.append((-round(score, 6), -views[film.video_id], film.video_id, score))
    return [(video_id, score) for _, _, video_id, score in sorted(found)]


def points_of(deed: Deed, formula: Formula) -> float:
    """What an event is worth before boost and age."""
    value = deed.value if deed.trending is None else deed.trending
    match deed.kind:
        case "view":
            return formula.view_weight if deed.counts and not deed.own else 0
        case "like":
            return formula.like_weight * value
        case "comment":
            return formula.comment_weight * value
        case "watch_time":
            return 0 if deed.own else formula.watch_minute_weight * value / 60
        case _:
            return 0


def analytics_database(database_url: str) -> Connection[TupleRow]:
    """A connection to a database with empty tables of the analytics."""
    conn = psycopg.connect(database_url, autocommit=True)
    installation.migrate(conn, ENGINE)
    migrate(conn)
    return conn


@contextmanager
def analytics_of(shape: str, request: pytest.FixtureRequest) -> Iterator[Connection[TupleRow]]:
    """The tables in one shape; skips where there is no server for it."""
    if shape == Shape.PLAIN:
        with analytics_database(request.getfixturevalue("database_url")) as conn:
            yield conn
    else:
        with timescale_database() as url, analytics_database(url) as conn:
            assert (found := state(conn)) is not None
            assert found.shape is Shape.TIMESCALE
            # Two refreshes at once don't go, and a policy would begin one at any time.
            conn.execute("SELECT _timescaledb_functions.stop_background_workers()")
            yield conn

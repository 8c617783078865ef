"""How much of what is watched next the ranking shows: trending against simple lists.

At the beginning of each day (UTC) twenty videos are ranked by what had happened until then. The
measure is the share of that day's first views, of a viewer of a video, that goes to these twenty.
The history is a made-up community's, or that of a site, in a file that RECOMMENDATIONS_HISTORY
names.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from heapq import nlargest
from math import log2
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import uvloop
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from benchmarks.bench import Bench, Scale, say
from benchmarks.community import Shape, make_community
from benchmarks.history import Event, History, Kind
from benchmarks.history_files import read_history
from benchmarks.recommendations import SEEDS, SMALL
from benchmarks.results import Comparison, Side
from infra.errors import OperatorError
from infra.settings import load_settings
from projections.analytics.calendar import DAY, start_of_day, start_of_hour
from projections.analytics.schema import migrate
from projections.recommendations.attention import measure
from projections.recommendations.model import Weighing
from projections.trending import Formula, Trending, Window

SHOWN = 20
HISTORY = "RECOMMENDATIONS_HISTORY"
BEFORE = 7 * DAY
"""So much of a history is there before the first ranking."""
UNIT = "% of first views"
TRENDING, AGELESS = "trending 7d", "trending 7d without age"
TENTH = "trending 7d, a tenth left at any site"

Weights = Mapping[UUID, float]
Ranking = Callable[[Sequence[Event], datetime], Weights]
"""Gives each video its weight at a time, from the views before it."""

LIKES = {Kind.LIKE: 1, Kind.UNLIKE: -1}
HOURLY = b"""
COPY analytics.video_hourly (
    bucket, video_id, views, trending_views, likes, trending_likes, comments, trending_comments,
    shares, watch_seconds, trending_watch_seconds)
FROM STDIN
"""
DAILY = b"""
INSERT INTO analytics.video_daily
SELECT date_trunc('day', bucket, 'UTC'), video_id, sum(views), sum(trending_views), sum(likes),
       sum(comments), sum(shares), sum(watch_seconds), sum(trending_watch_seconds),
       sum(trending_likes), sum(trending_comments)
FROM analytics.video_hourly GROUP BY 1, 2
"""
VIEWS = b"""
COPY analytics.video_analytics (event_id, video_id, user_id, event_type, "timestamp", metadata)
FROM STDIN
"""
COUNTED = Jsonb({"counts": True, "own": False})
VIDEOS = b"""
INSERT INTO analytics.videos (video_id, owner, category, completed_at) VALUES (%s, %s, %s, %s)
"""


@dataclass(frozen=True, slots=True)
class Day:
    """What had happened before it began, and who attracted how many first views on it."""

    at: datetime
    past: Sequence[Event]
    first_views: Mapping[UUID, int]


@dataclass(frozen=True, slots=True)
class Attracted:
    """What rankings attracted: the share of all first views, in percent; and the mean NDCG@20."""

    share: float
    ndcg: float


def days_of(history: History) -> list[Day]:
    """Return the days with first views, but for the beginning of the history and its last day."""
    views = [event for event in history.events if event.kind is Kind.VIEW]
    if not views:
        return []
    first_views: defaultdict[datetime, Counter[UUID]] = defaultdict(Counter)
    seen, begins = set[tuple[str, UUID]](), dict[datetime, int]()
    for number, view in enumerate(views):
        day = start_of_day(view.at)
        begins.setdefault(day, number)
        if (view.user, view.video_id) not in seen:
            seen.add((view.user, view.video_id))
            first_views[day][view.video_id] += 1
    first, last = views[0].at + BEFORE, start_of_day(views[-1].at)
    return [
        Day(day, views[: begins[day]], first_views[day])
        for day in sorted(first_views)
        if first <= day < last
    ]


def popular(length: timedelta) -> Ranking:
    """Rank by the views of so long a time."""

    def weigh(past: Sequence[Event], at: datetime) -> Weights:
        counts: Counter[UUID] = Counter()
        for view in reversed(past):
            if view.at < at - length:
                break
            counts[view.video_id] += 1
        return counts

    return weigh


def decayed(half_life: timedelta) -> Ranking:
    """Rank by all views, each of which weighs half after each half-life."""

    def weigh(past: Sequence[Event], at: datetime) -> Weights:
        weights: defaultdict[UUID, float] = defaultdict(float)
        for view in past:
            weights[view.video_id] += 2 ** -((at - view.at) / half_life)
        return weights

    return weigh


SIMPLE: Mapping[str, Ranking] = {
    **{f"popular of {days} days": popular(days * DAY) for days in (1, 7, 30)},
    **{f"half-life of {days} days": decayed(days * DAY) for days in (1, 7, 30)},
}


def shown_by(ranking: Ranking, days: Iterable[Day]) -> list[list[UUID]]:
    """Return the first twenty of each day; equal ones in the order of their ids."""
    found = []
    for day in days:
        weights = ranking(day.past, day.at)
        found.append(nlargest(SHOWN, weights, key=lambda video: (weights[video], video)))
    return found


async def shown_by_trending(url: str, formula: Formula, days: Iterable[Day]) -> list[list[UUID]]:
    """Return what trends at the beginning of each day; a floor that is measured, by what was."""
    trending = Trending(formula)
    found, told = [], 0
    async with await AsyncConnection.connect(url, autocommit=True) as conn:
        for day in days:
            if formula.age_floor is None:
                measure_attention(url, day.past[told:])
                told = len(day.past)
            # The hour into which the time falls counts whole.
            now = day.at - timedelta(microseconds=1)
            ranked = await trending.rank(conn, Window.WEEK, limit=SHOWN, now=now)
            found.append([each.video_id for each in ranked])
    return found


def measure_attention(url: str, views: Iterable[Event]) -> None:
    """Store these views, and measure what goes on for videos of an age, as the sinks do."""
    with psycopg.connect(url) as conn, conn.cursor() as cursor:
        with cursor.copy(VIEWS) as copy:
            for view in views:
                copy.write_row((uuid4(), view.video_id, view.user, "view", view.at, COUNTED))
        measure(conn, Weighing())


def judge(days: Sequence[Day], shown: Sequence[Sequence[UUID]]) -> Attracted:
    """Compare what was shown with what was viewed. A day's NDCG has first views for gains."""
    caught = sum(
        day.first_views.get(video, 0)
        for day, videos in zip(days, shown, strict=True)
        for video in videos
    )
    whole = sum(sum(day.first_views.values()) for day in days)
    ndcg = sum(
        _dcg([day.first_views.get(video, 0) for video in videos])
        / _dcg(nlargest(SHOWN, day.first_views.values()))
        for day, videos in zip(days, shown, strict=True)
    )
    return Attracted(100 * caught / whole, ndcg / len(days))


def _dcg(gains: Iterable[int]) -> float:
    return sum(gain / log2(place + 1) for place, gain in enumerate(gains, 1))


def fill(url: str, history: History) -> None:
    """Write the history into the rollups, as the sinks would have counted it."""
    hours: defaultdict[tuple[datetime, UUID], list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for event in history.events:
        counts = hours[start_of_hour(event.at), event.video_id]
        counts[0] += event.kind is Kind.VIEW
        counts[1] += LIKES.get(event.kind, 0)
        counts[2] += event.seconds or 0.0
    with psycopg.connect(url, autocommit=True) as conn:
        migrate(conn)
    with psycopg.connect(url) as conn, conn.cursor() as cursor:
        films = history.films
        rows = [(film.video_id, film.owner, film.category, film.since) for film in films]
        cursor.executemany(VIDEOS, rows)
        with cursor.copy(HOURLY) as copy:
            for (hour, video), (views, likes, seconds) in hours.items():
                copy.write_row((hour, video, views, views, likes, likes, 0, 0, 0, seconds, seconds))
        cursor.execute(DAILY)


def measured(url: str, history: History, days: Sequence[Day]) -> Mapping[str, Attracted]:
    """Return what each ranking attracted; this empty database gets the history."""
    fill(url, history)
    shown = {name: shown_by(ranking, days) for name, ranking in SIMPLE.items()}
    for name, floor in ((TRENDING, None), (TENTH, 0.1), (AGELESS, 1.0)):
        formula = Formula(age_floor=floor)
        shown[name] = uvloop.run(shown_by_trending(url, formula, days))
    return {name: judge(days, videos) for name, videos in shown.items()}


def run(bench: Bench) -> list[Comparison]:
    """Trending against the best of the simple lists, and against each."""
    shape, seeds = (SMALL, SEEDS[:1]) if bench.scale is Scale.QUICK else (Shape(), SEEDS)
    until = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    found = []
    for seed in seeds:
        history = make_community(seed, shape, until=until).history
        days = days_of(history)
        say(f"seed {seed}: {len(days)} days")
        found.append(measured(bench.database(), history, days))
    path = os.environ.get(HISTORY)
    own = [] if path is None else _compare([_own(bench, Path(path))], "own history")
    return [*_compare(found, "attraction"), *own]


def _own(bench: Bench, path: Path) -> Mapping[str, Attracted]:
    history = read_history(path, load_settings().watch.view_repeat)
    days = days_of(history)
    if not days:
        raise OperatorError(f"{path} is shorter than {BEFORE.days} days and two more.")
    return measured(bench.database(), history, days)


def _compare(found: Sequence[Mapping[str, Attracted]], what: str) -> list[Comparison]:
    def side(name: str) -> Side:
        notes = {"NDCG@20": sum(each[name].ndcg for each in found) / len(found)}
        return Side(name, [each[name].share for each in found], notes)

    others = (*SIMPLE, TENTH, AGELESS)
    best = max(others, key=lambda name: side(name).value)
    return [
        Comparison(what, UNIT, side(TRENDING), side(name), at_least=0.9 if name == best else None)
        for name in others
    ]

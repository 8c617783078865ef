"""The seconds that were watched in a period, by the days of any zone, against plain Python."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow

from projections.analytics.audience import Curve, curve_of, place_of, read_audience, start_of
from projections.analytics.ingest import Store
from projections.analytics.rules import LONGEST_SECONDS, row_of
from projections.analytics.schema import state
from tests.integration.analytics_support import NOW, RULES, Event, places
from tests.integration.event_log import url_of

HOUR = timedelta(hours=1)
VIDEO, OTHER = uuid4(), uuid4()
# Beginnings and ends of periods: whole hours, and midnights of zones that cut an hour.
HOURS = NOW.replace(minute=0, second=0, microsecond=0)
BOUNDS = [HOURS - n * HOUR / 4 for n in (0, 1, 2, 3, 4, 6, 40, 96, 97)]


def sessions(random: Random, video: UUID, count: int) -> tuple[list[Event], list[dict[str, Any]]]:
    """Views that are each followed by reports, and what of these is watched from where."""
    events: list[Event] = []
    watched: list[dict[str, Any]] = []
    for _ in range(count):
        session, at = str(uuid4()), HOURS - timedelta(seconds=random.randrange(100_000))
        common = {"videoId": str(video), "userId": None, "sessionId": session}
        events.append(("video.viewed", uuid4(), common | {"timestamp": at.isoformat()}))
        for number in range(random.randrange(5)):
            seconds, position = random.randint(1, 400) / 4, random.randint(0, 800) / 4
            at += timedelta(seconds=seconds)
            value = common | {"seconds": seconds, "timestamp": at.isoformat()}
            if number or random.random() < 0.7:
                value["position"] = position
                first = session not in {each["session"] for each in watched}
                told = {"at": at, "session": session, "first": first}
                watched.append(told | {"places": places(position, position + seconds)})
            events.append(("video.watch_time", uuid4(), value))
    return events, watched


def store(conn: Connection[TupleRow], events: list[Event]) -> None:
    found = state(conn)
    assert found is not None
    with conn.transaction():
        Store(found.shape, RULES).add(conn, [row_of(*event, NOW) for event in events])


def read(conn: Connection[TupleRow], video: UUID, since: datetime, until: datetime) -> Curve:
    async def ask() -> Curve:
        async with await AsyncConnection.connect(url_of(conn), autocommit=True) as opened:
            return await read_audience(opened, video, since, until)

    return asyncio.run(ask())


def test_places_are_the_same_in_the_database(analytics: Connection[TupleRow]) -> None:
    found = analytics.execute("SELECT * FROM analytics.audience_places ORDER BY place").fetchall()
    last = place_of(LONGEST_SECONDS - 1)
    ends = [*(start_of(place) * 1000 for place in range(1, last + 1)), LONGEST_SECONDS * 1000]
    assert found == [(place, start_of(place) * 1000, ends[place]) for place in range(last + 1)]


@pytest.mark.parametrize("duration", [None, 61.5])
def test_a_period_has_the_reports_in_it(
    both_shapes: Connection[TupleRow], duration: float | None
) -> None:
    random = Random(3)
    events, watched = sessions(random, VIDEO, 60)
    both_shapes.execute(
        "INSERT INTO analytics.videos (video_id, owner, duration_seconds) VALUES (%s, 'ann', %s)",
        (VIDEO, None),
    )
    store(both_shapes, [*events, *sessions(random, OTHER, 5)[0]])
    # Known only now: what is stored does not depend on it.
    both_shapes.execute("UPDATE analytics.videos SET duration_seconds = %s", (duration,))
    for until in BOUNDS:
        for since in (at for at in [*BOUNDS, HOURS - 48 * HOUR] if at < until):
            within = [each for each in watched if since <= each["at"] < until]
            sums: Counter[int] = Counter()
            for each in within:
                sums.update({place_of(second): ms for second, ms in each["places"].items()})
            begun = sum(each["first"] for each in within)
            assert read(both_shapes, VIDEO, since, until) == curve_of(sums, begun, duration)
    assert read(both_shapes, uuid4(), BOUNDS[-1], BOUNDS[0]).points == []


def test_what_comes_again_counts_once(analytics: Connection[TupleRow]) -> None:
    events, watched = sessions(Random(5), VIDEO, 10)
    for part in (events[::2], events[::-1], events):
        store(analytics, part)
    found = read(analytics, VIDEO, HOURS - 48 * HOUR, HOURS + HOUR)
    seconds = sum(sum(each["places"].values()) for each in watched) / 1000
    assert sum(point.watched for point in found.points) == pytest.approx(seconds)
    assert found.sessions == len({each["session"] for each in watched})

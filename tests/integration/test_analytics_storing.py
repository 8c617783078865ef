"""Counts are exact whatever order events come in, however often, in whatever batches: against an
oracle in plain Python, on both shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.upload import Upload
from projections.analytics import videos
from projections.analytics.migrating import Shape
from projections.analytics.refreshing import refresh
from projections.analytics.rules import row_of
from projections.analytics.storing import Store, Stored
from projections.analytics.videos import Told
from projections.connecting import connect
from tests.integration.analytics_support import (
    NOW,
    REPEAT,
    Event,
    History,
    expect,
    history,
    migrated,
    oracle,
    timescale_database,
)


@pytest.fixture(params=list(Shape))
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of each shape with the tables in it."""
    if request.param is Shape.PLAIN:
        found = request.getfixturevalue("database_url")
        assert migrated(found).shape is Shape.PLAIN
        yield found
        return
    with timescale_database() as found:
        assert migrated(found).shape is Shape.TIMESCALE
        yield found


@pytest.fixture
def conn(url: str) -> Iterator[Connection[TupleRow]]:
    with connect(url, "test") as opened:
        yield opened


def add(conn: Connection[TupleRow], events: Sequence[Event]) -> Stored:
    """Store messages as the keeper does."""
    shape = migrated_shape(conn)
    with conn.transaction():
        stored = Store(shape, REPEAT).add(conn, [row_of(*event, NOW) for event in events])
    if shape is Shape.TIMESCALE:
        refresh(conn, stored.times, datetime.now(UTC))
    return stored


def tell(conn: Connection[TupleRow], told: Sequence[Told]) -> None:
    shape = migrated_shape(conn)
    with conn.transaction():
        stored = videos.apply(conn, Store(shape, REPEAT), told)
    if shape is Shape.TIMESCALE:
        refresh(conn, stored.times, datetime.now(UTC))


def migrated_shape(conn: Connection[TupleRow]) -> Shape:
    (shape,) = conn.execute("SELECT shape FROM analytics.shape").fetchone() or ("",)
    return Shape(shape)


def known(told: History) -> list[Told]:
    """Each video's beginning and its length."""
    found = []
    for id_, (owner, length) in told.videos.items():
        values: dict[str, Any] = {"id": id_, "owner": owner, "category": None, "at": NOW}
        found.append(Told(Upload.Started, values))
        if length is not None:
            found.append(Told(Upload.SpeechTranscribed, values | {"duration": length}))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_any_order_any_batches_any_repetition(
    conn: Connection[TupleRow], url: str, seed: int
) -> None:
    random = Random(seed)
    told = history(random)
    order = random.choice([told.events, random.sample(told.events, len(told.events))])
    coming = [*order, *random.choices(told.events, k=30)]
    if seed % 2:
        random.shuffle(coming)
    facts = known(told)
    while coming:
        cut = random.choice([1, 7, 40])
        add(conn, coming[:cut])
        coming = coming[cut:]
        if facts and random.random() < 0.4:
            tell(conn, [facts.pop(0)])
    tell(conn, facts)
    expect(url, oracle(told), told.events)

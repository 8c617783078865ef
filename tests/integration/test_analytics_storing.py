"""Counts are exact whatever order events come in, however often, in whatever batches: against an
oracle in plain Python, on both shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import Connection
from psycopg.rows import TupleRow

from domain.upload import Upload
from engine.connections import connect
from infra.postgres.server import EmbeddedPostgres
from projections.analytics import videos
from projections.analytics.ingest import Store, StoredBatch
from projections.analytics.rules import row_of
from projections.analytics.schema import Shape, refresh
from projections.analytics.videos import UploadChange
from tests.integration.analytics_support import (
    NOW,
    RULES,
    Event,
    History,
    expect,
    history,
    migrated,
    oracle,
    timescale_database,
)
from tests.integration.event_log import rows

EMPTY = (
    "TRUNCATE analytics.video_analytics, analytics.video_hourly, analytics.video_daily, "
    "analytics.video_viewers, analytics.viewers_hourly, analytics.sessions, analytics.videos, "
    "analytics.participants, analytics.audience_hourly"
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
        # A policy that compresses the chunk of a late row may make its transaction the victim of a
        # deadlock: the sinks try again, these tests don't.
        rows(found, "SELECT _timescaledb_functions.stop_background_workers()")
        yield found


@pytest.fixture
def conn(url: str) -> Iterator[Connection[TupleRow]]:
    with connect(url, "test") as opened:
        yield opened


def add(conn: Connection[TupleRow], events: Sequence[Event]) -> StoredBatch:
    """Store messages as the sink does."""
    shape = migrated_shape(conn)
    with conn.transaction():
        stored = Store(shape, RULES).add(conn, [row_of(*event, NOW) for event in events])
    if shape is Shape.TIMESCALE:
        refresh(conn, stored.times, datetime.now(UTC))
    return stored


def tell(conn: Connection[TupleRow], told: Sequence[UploadChange]) -> None:
    shape = migrated_shape(conn)
    with conn.transaction():
        stored = videos.apply(conn, Store(shape, RULES), told)
    if shape is Shape.TIMESCALE:
        refresh(conn, stored.times, datetime.now(UTC))


def migrated_shape(conn: Connection[TupleRow]) -> Shape:
    (shape,) = conn.execute("SELECT shape FROM analytics.shape").fetchone() or ("",)
    return Shape(shape)


def known(told: History) -> list[UploadChange]:
    """Each video's beginning and its length."""
    found = []
    for id_, (owner, length) in told.videos.items():
        values: dict[str, Any] = {"id": id_, "owner": owner, "category": None, "at": NOW}
        found.append(UploadChange(Upload.Started, values))
        if length is not None:
            found.append(UploadChange(Upload.SpeechTranscribed, values | {"duration": length}))
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


def test_what_comes_late_is_counted(conn: Connection[TupleRow], url: str) -> None:
    """Across the watermark of the rollups, and into chunks that are compressed."""
    told = history(Random(100), size=200, days=40)
    late = told.events[::5]
    add(conn, [event for event in told.events if event not in late])
    tell(conn, known(told))
    if migrated_shape(conn) is Shape.TIMESCALE:
        # As far as the policies go: the present hour and day stay above the watermark.
        for view, bucket in (("video_hourly", "hour"), ("video_daily", "day")):
            until = NOW.replace(minute=0, second=0, microsecond=0)
            until = until if bucket == "hour" else until.replace(hour=0)
            conn.execute(
                "CALL refresh_continuous_aggregate(%s, NULL, %s::timestamptz)",
                (f"analytics.{view}", until),
            )
        chunks = conn.execute(
            "SELECT show_chunks('analytics.video_analytics', older_than => interval '7 days')::text"
        ).fetchall()
        assert len(chunks) > 10
        for chunk in chunks:
            conn.execute("SELECT compress_chunk(%s, if_not_compressed => true)", chunk)
    add(conn, late)
    add(conn, told.events)
    expect(url, oracle(told), told.events)


@pytest.fixture(scope="module")
def shared(postgres: EmbeddedPostgres) -> Iterator[str]:
    """One database for many examples."""
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE test_analytics_examples")
        url = postgres.url_of("test_analytics_examples")
        migrated(url)
        yield url
        admin.execute("DROP DATABASE test_analytics_examples WITH (FORCE)")


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_no_cut_and_no_order_is_seen(shared: str, data: st.DataObject) -> None:
    told = history(Random(data.draw(st.integers(0, 10_000))), size=30)
    order = data.draw(st.permutations(told.events))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=4)))
    with connect(shared, "test") as conn:
        conn.execute(EMPTY)
        for since, until in zip([0, *cuts], [*cuts, len(order)], strict=True):
            add(conn, order[since:until])
            if data.draw(st.booleans()):
                tell(conn, known(told))
        tell(conn, known(told))
    expect(shared, oracle(told), told.events)


@pytest.mark.parametrize("name", ["a\tb", "a\nb\r", "\\N", "\\", "\\t", '"', "é🌧\u2028", "a\x07b"])
def test_any_name_is_kept_as_it_is(conn: Connection[TupleRow], name: str) -> None:
    values = {"videoId": str(uuid4()), "userId": name, "timestamp": NOW.isoformat()}
    add(conn, [("video.shared", uuid4(), values | {"channel": name})])
    row = conn.execute("SELECT user_id, metadata->>'channel' FROM analytics.video_analytics")
    assert row.fetchall() == [(name, name)]

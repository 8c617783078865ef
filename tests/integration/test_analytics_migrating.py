"""The tables of the analytics: made once, by however many processes, from files in the tree."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from shutil import copytree
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import ClientCursor, Connection
from psycopg.rows import TupleRow
from structlog.testing import capture_logs

from engine.installation import UnknownMigration
from projections.analytics import schema
from projections.analytics.schema import ANALYTICS, SchemaState, Shape, migrate, state
from projections.recommendations.co_occurrence import Engagement, keep
from projections.recommendations.model import EngagementKind, Weighing
from tests.integration.analytics_support import (
    expect_viewers,
    history,
    oracle,
    timescale_database,
)
from tests.integration.event_log import rows

pytestmark = pytest.mark.no_analytics

VIEW = """
INSERT INTO analytics.video_analytics
VALUES (%(id)s, %(videoId)s, %(userId)s, 'view', %(timestamp)s,
        jsonb_build_object('counts', true, 'own', false, 'session', %(sessionId)s::text))
"""
# As the release before this one kept them.
VIEWERS_BEFORE = """
INSERT INTO analytics.video_viewers (video_id, day, viewer)
SELECT DISTINCT video_id, ("timestamp" AT TIME ZONE 'UTC')::date,
       coalesce(user_id, 'session:' || (metadata->>'session'))
FROM analytics.video_analytics
"""
ENGAGED_BEFORE = """
INSERT INTO analytics.engaged (viewer, video_id, watched_at, liked_at, turn, watch_paired_at,
                               like_paired_at)
VALUES (%s, %s, %s, %s, %s, %s, %s)
"""
TURNS = (
    """
SELECT viewer, hour, parts, {ids}, watched, stayed, liked, last_watched_ids, last_watched_at
FROM analytics.viewers WHERE viewer <> 'busy' ORDER BY viewer
""",
    """
SELECT viewer, part, {ids}, watched, stayed, liked FROM analytics.earlier_turns
ORDER BY viewer, part
""",
)
IDS = """
ARRAY (SELECT video_id FROM unnest(videos) WITH ORDINALITY AS turns (number, turn)
       JOIN analytics.engagement USING (number) ORDER BY turn)
"""
GONE = "INSERT INTO analytics.video_viewers VALUES (lpad('1', 32, '0')::uuid, '2026-01-02', 'ann')"
TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'analytics'"


def turns_of(conn: Connection[TupleRow], ids: str = IDS) -> list[list[TupleRow]]:
    """The turns of each viewer, and the earlier ones."""
    return [conn.execute(query.format(ids=ids).encode()).fetchall() for query in TURNS]


def migrated(url: str) -> SchemaState:
    with psycopg.connect(url, autocommit=True) as conn:
        return migrate(conn)


def test_it_is_made_once_and_then_left_alone(database_url: str) -> None:
    first = migrated(database_url)
    before = rows(database_url, "SELECT * FROM analytics.migrations ORDER BY version")
    assert migrated(database_url) == first
    assert first.shape is Shape.PLAIN
    assert str(first) == f"plain tables, schema version {before[-1][0]}"
    assert rows(database_url, "SELECT * FROM analytics.migrations ORDER BY version") == before
    assert {"video_analytics", "video_hourly", "video_daily"} <= {
        name for (name,) in rows(database_url, TABLES)
    }


def test_many_processes_may_make_it_at_once(database_url: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(migrated, [database_url] * 8))
    assert len(found) == 1


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the files, which the test may change."""
    folder = Path(copytree(ANALYTICS.folder, tmp_path / "migrations"))
    monkeypatch.setattr(schema, "ANALYTICS", replace(ANALYTICS, folder=folder))
    return folder


def without(folder: Path, name: str) -> None:
    """Leave the files of the release before that one."""
    first = min(folder.glob(f"*_{name}.*"))
    for file in folder.glob("*.sql"):
        if file.name >= first.name:
            file.unlink()


def test_a_failure_leaves_nothing_of_its_file(
    database_url: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ANALYTICS.files(Shape.PLAIN)
    broken = copied / f"{whole[-1].version + 1:04}_broken.sql"
    broken.write_bytes(b"CREATE TABLE analytics.x (); SELECT 1/0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrated(database_url)
    monkeypatch.undo()
    assert ("x",) not in rows(database_url, TABLES)
    assert migrated(database_url).version == whole[-1].version


@pytest.mark.parametrize("shape", list(Shape))
def test_who_viewed_before_is_counted_by_hours(
    shape: Shape, request: pytest.FixtureRequest, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = history(Random(1), size=300, days=40)
    views = [value for topic, _, value in told.events if topic == "video.viewed"]
    with ExitStack() as stack:
        if shape is Shape.PLAIN:
            url = request.getfixturevalue("database_url")
        else:
            url = stack.enter_context(timescale_database())
        without(copied, "viewers")
        assert migrated(url).shape is shape
        with psycopg.connect(url, autocommit=True) as conn, conn.cursor() as cursor:
            cursor.executemany(VIEW, views)
            cursor.execute(VIEWERS_BEFORE)
            # The row of this one's view is gone already.
            cursor.execute(GONE)
        monkeypatch.undo()
        migrated(url)
        wanted = oracle(told)
        gone = UUID(int=1), "ann", date(2026, 1, 2)
        wanted.viewers[gone] = datetime(2026, 1, 2, tzinfo=UTC)
        expect_viewers(url, wanted)
        (name,) = rows(url, "SELECT to_regclass('analytics.video_viewers_before')")
        assert name == (None,)


def test_the_files_of_another_release_are_told(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrated(database_url)
    other = Path(copytree(ANALYTICS.folder, tmp_path / "other"))
    (other / ANALYTICS.files(Shape.PLAIN)[-1].name).unlink()
    monkeypatch.setattr(schema, "ANALYTICS", replace(ANALYTICS, folder=other))
    with pytest.raises(UnknownMigration, match="not this release's"):
        migrated(database_url)


def test_the_neighbours_of_a_former_release_become_lists(
    database_url: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(copied, "neighbour_lists")
    migrated(database_url)
    one, *others = (UUID(int=number) for number in range(4))
    pairs = [(one, other, 1.5 + place, 1e9 + place) for place, other in enumerate(others)]
    kept = sorted([*pairs, *((other, one, *rest) for one, other, *rest in pairs)])
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.cursor().executemany("INSERT INTO analytics.neighbours VALUES (%s, %s, %s, %s)", kept)
        totals = [(each, 7 - place, 1e9) for place, each in enumerate((one, *others))]
        conn.cursor().executemany("INSERT INTO analytics.engagement VALUES (%s, %s, %s, 3)", totals)
    monkeypatch.undo()
    migrated(database_url)
    assert rows(database_url, "SELECT * FROM analytics.neighbours ORDER BY 1, 2") == kept
    lists = "SELECT count(*), sum(cardinality(neighbours)) FROM analytics.neighbour_lists"
    assert rows(database_url, lists) == [(4, 6)]
    query = "SELECT video_id, weight, as_of FROM analytics.engagement ORDER BY video_id"
    assert rows(database_url, query) == totals


def test_the_turns_of_a_former_release_are_packed(
    database_url: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As this release packs them itself. The hour's engagements were counted by video before."""
    without(copied, "turns")
    migrated(database_url)
    begun, minute = datetime(2026, 3, 1, tzinfo=UTC), timedelta(minutes=1)
    told, before = [], []
    for turns in (1, 39, 40, 65):
        for number in range(turns):
            key, at = (f"viewer-{turns}", str(UUID(int=number))), begun + timedelta(hours=number)
            liked = at + minute if number % 7 == 0 else None
            told.append(Engagement(*key, EngagementKind.WATCHED, at))
            if liked is not None:
                told.append(Engagement(*key, EngagementKind.LIKED, liked))
            before.append((*key, at, liked, number + 1, at, liked))
    # Came when the hour was full, and was not paired.
    unpaired = ("busy", str(UUID(int=1)), begun, None, None, None, None)
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.cursor().executemany(ENGAGED_BEFORE, [*before, unpaired])
        monkeypatch.undo()
        migrate(conn)
        packed = turns_of(conn)
        conn.execute(
            "TRUNCATE analytics.engaged, analytics.viewers, analytics.earlier_turns, "
            "analytics.engagement"
        )
        with conn.transaction():
            keep(conn, told, Weighing())
        assert turns_of(conn) == packed
        assert [len(each) for each in packed] == [4, 3]


BEFORE_NUMBERS = """
INSERT INTO analytics.engagement
SELECT id, mod(n * 7, 45), 1e9
FROM unnest(%(ids)s::uuid[]) WITH ORDINALITY AS v (id, n) WHERE n < 45;
INSERT INTO analytics.engaged (viewer, video_id, watched_at, turn)
SELECT 'ann', id, to_timestamp(n), n FROM unnest(%(ids)s::uuid[]) WITH ORDINALITY AS v (id, n);
INSERT INTO analytics.earlier_turns
SELECT 'ann', 0, array_agg(id ORDER BY n), array_agg(n ORDER BY n), array_agg(NULL::float8),
       array_agg(nullif(n, 7) ORDER BY n)
FROM unnest(%(ids)s::uuid[]) WITH ORDINALITY AS v (id, n) WHERE n <= 20;
INSERT INTO analytics.viewers
SELECT 'ann', to_timestamp(0), 1, 1, array_agg(id ORDER BY n), array_agg(n ORDER BY n),
       array_agg(nullif(n, 21) ORDER BY n), array_agg(NULL::float8), array_agg(id ORDER BY n DESC),
       array_agg(n ORDER BY n DESC)
FROM unnest(%(ids)s::uuid[]) WITH ORDINALITY AS v (id, n) WHERE n > 20;
INSERT INTO analytics.neighbour_lists
VALUES ((%(ids)s::uuid[])[1], (%(ids)s::uuid[])[2:4], '{1,2,3}', '{1e9,2e9,3e9}');
INSERT INTO analytics.neighbour_deltas
VALUES ((%(ids)s::uuid[])[1], (%(ids)s::uuid[])[2:3] || gen_random_uuid(), '{4,5,6}',
        '{4e9,5e9,6e9}'),
       ((%(ids)s::uuid[])[2], '{}', '{}', '{}')
"""


def test_the_videos_of_a_former_release_are_numbered(
    database_url: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What names them keeps its order; also a video of which nothing tells how popular it is."""
    without(copied, "video_numbers")
    migrated(database_url)
    random = Random(3)
    ids = [UUID(int=random.getrandbits(128)) for _ in range(45)]
    with psycopg.connect(database_url, autocommit=True, cursor_factory=ClientCursor) as conn:
        conn.execute(BEFORE_NUMBERS, {"ids": ids})
        before = turns_of(conn, "video_ids")
        # Times of which there are none are left out.
        wanted = [
            [
                tuple([] if isinstance(value, list) and not any(value) else value for value in row)
                for row in found
            ]
            for found in before
        ]
        monkeypatch.undo()
        migrate(conn)
        numbers = conn.execute("SELECT video_id FROM analytics.engagement ORDER BY number")
        ranked = sorted(range(1, 45), key=lambda n: -(n * 7 % 45))
        assert [video for (video,) in numbers] == [*(ids[n - 1] for n in ranked), ids[44]]
        assert turns_of(conn) == wanted
        found = conn.execute("SELECT * FROM analytics.neighbours ORDER BY weight").fetchall()
        # Nobody has engaged with the sixth.
        assert found == [
            (ids[0], ids[1 + place % 3], place + 1, (place + 1) * 1e9) for place in range(5)
        ]
        # It goes on from there.
        new = str(UUID(int=1))
        with conn.transaction():
            watched = Engagement("ann", new, EngagementKind.WATCHED, datetime.now(UTC))
            keep(conn, [watched], Weighing())
        last = "SELECT number, video_id::text FROM analytics.engagement ORDER BY 1 DESC LIMIT 1"
        assert conn.execute(last).fetchone() == (46, new)
        paired = "SELECT neighbour_id FROM analytics.neighbours WHERE video_id = %s"
        assert {video for (video,) in conn.execute(paired, (new,))} == {*ids[25:]}


def test_both_shapes_have_the_same_versions() -> None:
    plain, timescale = (ANALYTICS.files(shape) for shape in Shape)
    assert [each.version for each in plain] == [each.version for each in timescale]
    assert [each.version for each in plain] == list(range(1, len(plain) + 1))


def test_nothing_is_there_before(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        assert state(conn) is None


EXTENDED = "SELECT FROM pg_extension WHERE extname = 'timescaledb'"


@contextmanager
def as_plain_role(url: str) -> Iterator[str]:
    """The database as its owner sees it, who is no superuser."""
    name = f"owner_{uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'".encode())
        admin.execute(f"ALTER DATABASE {admin.info.dbname} OWNER TO {name}".encode())
        try:
            yield psycopg.conninfo.make_conninfo(url, user=name, password=name)
        finally:
            if admin.execute(EXTENDED).fetchone():
                # A policy that runs and what follows would block each other.
                admin.execute("SELECT _timescaledb_functions.stop_background_workers()")
            admin.execute(f"REASSIGN OWNED BY {name} TO CURRENT_USER".encode())
            admin.execute(f"DROP OWNED BY {name}".encode())
            admin.execute(f"DROP ROLE {name}".encode())


def test_no_superuser_is_needed_for_timescale() -> None:
    with timescale_database() as url, as_plain_role(url) as owners:
        found = migrated(owners)
        assert (found.shape, found.unused) == (Shape.TIMESCALE, False)
        assert migrated(owners) == found


def test_who_may_not_make_the_extension_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # Something else that only superusers may, as the extension is where it is not trusted.
    monkeypatch.setattr(schema, "EXTEND", b"CREATE ROLE never_made")
    with timescale_database() as url, as_plain_role(url) as owners, capture_logs() as logs:
        found = migrated(owners)
        assert (found.shape, found.extension, found.unused) == (Shape.PLAIN, None, True)
        assert str(found).endswith("TimescaleDB is there and not used, see docs/analytics.md")
        assert "timescaledb_refused" in {each["event"] for each in logs}
        assert migrated(owners) == found


def test_the_other_licence_shows_when_the_extension_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with timescale_database() as url:
        told = (
            b"(SELECT CASE WHEN EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') "
            b"THEN 'apache' ELSE 'timescale' END)"
        )
        asked = b"coalesce(current_setting('timescaledb.license', true), 'timescale')"
        monkeypatch.setattr(schema, "USABLE", schema.USABLE.replace(asked, told))
        found = migrated(url)
        assert (found.shape, found.unused) == (Shape.PLAIN, False)
        assert found.version == ANALYTICS.files(Shape.PLAIN)[-1].version


STORED_BEFORE = """
INSERT INTO analytics.video_analytics
VALUES (gen_random_uuid(), lpad('1', 32, '0')::uuid, %s, %s, %s, %s::jsonb)
"""
# As the release before this one counted them.
SUMS_BEFORE = """
INSERT INTO analytics.video_{table}
SELECT date_trunc('{unit}', "timestamp", 'UTC'), video_id, 0, 0,
       count(*) FILTER (WHERE event_type = 'like'), count(*) FILTER (WHERE event_type = 'comment'),
       0, sum((metadata->>'seconds')::float8), sum((metadata->>'seconds')::float8)
FROM analytics.video_analytics GROUP BY 1, 2
"""
FORGET_BEFORE = 'DELETE FROM analytics.video_analytics WHERE "timestamp" < %s'
DROP_BEFORE = "SELECT drop_chunks('analytics.video_analytics', older_than => %s::timestamptz)"
REFRESHING = """
SELECT job_id FROM timescaledb_information.jobs
WHERE proc_name = 'policy_refresh_continuous_aggregate' ORDER BY hypertable_name
"""
SUMS_AFTER = """
SELECT likes, trending_likes, comments, trending_comments, watch_seconds
FROM analytics.video_{table} ORDER BY bucket
"""


@pytest.mark.parametrize("shape", list(Shape))
def test_what_viewers_brought_before_counts_as_it_did(
    shape: Shape, request: pytest.FixtureRequest, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on days of which only the sums are left."""
    now = datetime.now(UTC)
    old = now - timedelta(days=800)
    told = [
        *[("eve", "comment", '{"delta": 1}')] * 5,
        *[("ann", "like", '{"delta": 1}')] * 4,
        ("eve", "watch_time", '{"seconds": 20, "own": false, "reported": 20, "session": "s"}'),
    ]
    with ExitStack() as stack:
        if shape is Shape.PLAIN:
            url = request.getfixturevalue("database_url")
        else:
            url = stack.enter_context(timescale_database())
        without(copied, "participants")
        assert migrated(url).shape is shape
        conn = stack.enter_context(psycopg.connect(url, autocommit=True))
        for at in (old, now - timedelta(days=5), now):
            for user, kind, metadata in told:
                conn.execute(STORED_BEFORE, (user, kind, at, metadata))
        if shape is Shape.PLAIN:
            for table, unit in (("hourly", "hour"), ("daily", "day")):
                conn.execute(SUMS_BEFORE.format(table=table, unit=unit).encode())
            conn.execute(FORGET_BEFORE, (old + timedelta(days=2),))
        else:
            conn.execute("SELECT _timescaledb_functions.stop_background_workers()")
            for table in ("hourly", "daily"):
                conn.execute(
                    "CALL refresh_continuous_aggregate(%s, NULL, %s::timestamptz)",
                    (f"analytics.video_{table}", old + timedelta(days=2)),
                )
            conn.execute(DROP_BEFORE, (old + timedelta(days=2),))
        monkeypatch.undo()
        migrate(conn)
        if shape is Shape.TIMESCALE:
            # A policy's own run would refuse those below.
            conn.execute("SELECT _timescaledb_functions.stop_background_workers()")
        for (job,) in conn.execute(REFRESHING).fetchall() if shape is Shape.TIMESCALE else ():
            conn.execute("CALL run_job(%s)", (job,))
        daily = conn.execute(SUMS_AFTER.format(table="daily").encode()).fetchall()
        assert daily == [(4, 4, 5, 5, 20)] * 3
        hourly = conn.execute(SUMS_AFTER.format(table="hourly").encode()).fetchall()
        assert hourly[-1] == (4, 4, 5, 5, 20)
        kept = rows(url, "SELECT viewer, comments, seconds FROM analytics.participants ORDER BY 1")
        assert kept == [("ann", 0, 0), ("eve", 10, 40)]

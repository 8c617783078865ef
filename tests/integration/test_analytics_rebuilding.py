"""The analytics compared with the event log, and mended: nothing of the telemetry is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from threading import Event, Thread

import psycopg
import pytest

from infra.advisory_locks import Lock, lock_in_transaction
from projections.analytics.rebuild import Stopped
from projections.analytics.schema import Shape
from tests.integration.analytics_support import migrated, timescale_database
from tests.integration.event_log import rows
from tests.integration.rebuilding_support import Copies, Site, copies, site
from tests.support import eventually

ROWS = "analytics.video_analytics"
LIKES = "event_type IN ('like', 'comment')"
# Not of the owner, which counts for nothing in trending.
ONE_LIKE = (
    f"event_id = (SELECT event_id FROM {ROWS} WHERE event_type = 'like'"
    " AND NOT metadata ? 'trending' ORDER BY event_id LIMIT 1)"
)
WAITING = """
SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 5 AND NOT granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
ONE_VIEW = ONE_LIKE.replace("'like'", "'view'")
ADD_LIKE = f"""
INSERT INTO {ROWS}
SELECT gen_random_uuid(), video_id, user_id, event_type, "timestamp", metadata FROM {ROWS}
WHERE {ONE_LIKE}
"""
ONE_VIDEO = "video_id = (SELECT min(video_id::text)::uuid FROM analytics.videos)"
TOLD = "SELECT count(*) FROM backlot_events WHERE topic ~ '^(video_likes|comment)'"
ADD_SUMS = """
INSERT INTO {daily} SELECT bucket, gen_random_uuid(), 1, 1, 1, 1, 1, 1, 1, 1, 1 FROM {daily} LIMIT 1
"""
ADD_VIEWERS = """
INSERT INTO analytics.video_viewers
SELECT gen_random_uuid(), day, hour, viewer FROM analytics.video_viewers
"""
MOVE = "UPDATE analytics.video_viewers SET hour = hour - interval '1 hour'"
ADD_COUNTS = "INSERT INTO analytics.viewers_hourly SELECT now(), gen_random_uuid(), 1, 1"
MOVE_AUDIENCE = "UPDATE analytics.audience_hourly SET milliseconds = 9 || milliseconds"
ADD_AUDIENCE = "INSERT INTO analytics.audience_hourly SELECT now(), gen_random_uuid(), 1, '{{5}}'"
MISCOUNT = "UPDATE analytics.participants SET comments = comments + 1 WHERE comments > 0"
FORGET_SECONDS = "UPDATE analytics.participants SET seconds = 0 WHERE seconds > 0"
ADD_PARTICIPANTS = """
INSERT INTO analytics.participants
SELECT gen_random_uuid(), 'zoe', 1, 0, now(), NULL, now(), now()
"""
# As the release before counted the comments and likes of owners, and floods.
UNCAPPED = f"""
UPDATE {ROWS} SET metadata = metadata - 'trending'
WHERE metadata ? 'trending' AND user_id IS NOT NULL
"""
STRANGER = "INSERT INTO analytics.videos (video_id, owner) SELECT gen_random_uuid(), 'zoe'"


@pytest.fixture(scope="module")
def plain(copy_of: Callable[[str], AbstractContextManager[str]], template: str) -> Iterator[Copies]:
    with copies(copy_of, template) as made:
        yield made


@pytest.fixture(params=list(Shape))
def told(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A history that was taken in, in each shape; nothing runs any more."""
    if request.param is Shape.PLAIN:
        with request.getfixturevalue("plain")() as copy:
            yield copy
        return
    with timescale_database() as url:
        # Not made before it is known whether there is a TimescaleDB.
        log_url, writer = map(request.getfixturevalue, ("database_url", "writer"))
        assert migrated(url).shape is Shape.TIMESCALE
        with site(log_url, url, Shape.TIMESCALE, writer) as opened:
            yield opened


def views(told: Site) -> list[tuple[object, ...]]:
    query = f"SELECT event_id, metadata FROM analytics.video_analytics WHERE NOT {LIKES}"
    return sorted(rows(told.url, query), key=str)


def test_what_was_taken_in_does_not_differ(told: Site) -> None:
    before = told.contents()
    assert before["video_analytics"]
    assert told.verify() == {}
    assert told.replay() == {}
    assert told.contents() == before


@pytest.mark.parametrize(
    ("statement", "differs"),
    [
        (f"DELETE FROM {ROWS} WHERE {ONE_LIKE}", (1, 0, 0)),
        (f"DELETE FROM {ROWS} WHERE {LIKES}", (21, 0, 0)),
        (f"UPDATE {ROWS} SET metadata = '{{\"delta\": 7}}' WHERE {ONE_LIKE}", (0, 0, 1)),
        (f"UPDATE {ROWS} SET user_id = 'mallory' WHERE {ONE_LIKE}", (0, 0, 1)),
        (f"UPDATE {ROWS} SET event_type = 'comment' WHERE {ONE_LIKE}", (0, 0, 1)),
        (f"UPDATE {ROWS} SET event_type = 'share' WHERE {ONE_LIKE}", (1, 0, 0)),
        (ADD_LIKE, (0, 1, 0)),
        # A view that was made a like is told again as what it was.
        (f"UPDATE {ROWS} SET event_type = 'like' WHERE {ONE_VIEW}", (0, 1, 0)),
    ],
)
def test_rows_of_the_event_log(told: Site, statement: str, differs: tuple[int, int, int]) -> None:
    before = told.contents()
    assert told.sql(statement)
    found = told.verify()
    assert found.pop("video_analytics") == differs
    # What its viewer brings to trending goes with a row.
    found.pop("participants", None)
    if told.shape is Shape.PLAIN and ONE_VIEW not in statement and LIKES not in statement:
        # The sums were right, and are. What of all these counts in trending is known once they are
        # there again.
        assert found == {}
    assert told.replay()["video_analytics"] == differs
    assert told.contents() == before
    assert told.verify() == {}


@pytest.mark.parametrize(
    ("statement", "differs"),
    [
        (f"UPDATE analytics.videos SET owner = 'zoe' WHERE {ONE_VIDEO}", (0, 0, 1)),
        (f"UPDATE analytics.videos SET category = NULL WHERE {ONE_VIDEO}", (0, 0, 1)),
        (f"UPDATE analytics.videos SET removed = NOT removed WHERE {ONE_VIDEO}", (0, 0, 1)),
        (f"UPDATE analytics.videos SET listed = NOT listed WHERE {ONE_VIDEO}", (0, 0, 1)),
        (f"UPDATE analytics.videos SET completed_at = now() WHERE {ONE_VIDEO}", (0, 0, 1)),
        ("UPDATE analytics.videos SET duration_seconds = 1", (0, 0, 3)),
        (f"DELETE FROM analytics.videos WHERE {ONE_VIDEO}", (1, 0, 0)),
        (STRANGER, (0, 1, 0)),
    ],
)
def test_what_is_known_of_the_videos(
    told: Site, statement: str, differs: tuple[int, int, int]
) -> None:
    before = told.contents()
    assert told.sql(statement)
    told.recount()
    for found in (told.verify(), told.replay()):
        if "owner" in statement or "DELETE" in statement:
            # What the owner brings to trending goes with being known as that.
            found.pop("participants", None)
        assert found == {"videos": differs}
    assert told.contents() == before


@pytest.mark.parametrize(
    ("statement", "table", "differs"),
    [
        ("UPDATE {hourly} SET views = views + 1", "video_hourly", "different"),
        ("UPDATE {hourly} SET trending_watch_seconds = 5", "video_hourly", "different"),
        ("DELETE FROM {hourly}", "video_hourly", "missing"),
        ("UPDATE {daily} SET likes = likes - 1", "video_daily", "different"),
        ("DELETE FROM {daily}", "video_daily", "missing"),
        (ADD_SUMS, "video_daily", "extra"),
        ("DELETE FROM analytics.video_viewers", "video_viewers", "missing"),
        ("UPDATE analytics.video_viewers SET viewer = viewer || 'x'", "video_viewers", "missing"),
        (ADD_VIEWERS, "video_viewers", "extra"),
        (MOVE, "video_viewers", "different"),
        ("UPDATE analytics.viewers_hourly SET latest = latest + 1", "viewers_hourly", "different"),
        ("UPDATE analytics.viewers_hourly SET viewers = 7", "viewers_hourly", "different"),
        ("DELETE FROM analytics.viewers_hourly", "viewers_hourly", "missing"),
        (ADD_COUNTS, "viewers_hourly", "extra"),
        ("UPDATE analytics.audience_hourly SET sessions = 9", "audience_hourly", "different"),
        (MOVE_AUDIENCE, "audience_hourly", "different"),
        ("DELETE FROM analytics.audience_hourly", "audience_hourly", "missing"),
        (ADD_AUDIENCE, "audience_hourly", "extra"),
        ("DELETE FROM analytics.participants", "participants", "missing"),
        (ADD_PARTICIPANTS, "participants", "extra"),
        (MISCOUNT, "participants", "different"),
        (FORGET_SECONDS, "participants", "different"),
        (UNCAPPED, "participants", "different"),
    ],
)
def test_what_follows_from_the_rows(told: Site, statement: str, table: str, differs: str) -> None:
    before = told.contents()
    assert told.sql(statement.format(**told.rollups()))
    kinds = ("missing", "extra", "different")
    assert told.verify()[table][kinds.index(differs)] > 0
    told.replay()
    assert told.contents() == before
    assert told.verify() == {}


def test_views_are_no_less_when_all_else_is_lost(told: Site) -> None:
    before, kept = told.contents(), views(told)
    told.sql(f"DELETE FROM {ROWS} WHERE {LIKES}")
    for table in ("videos", "video_viewers", "viewers_hourly", "participants"):
        told.sql(f"DELETE FROM analytics.{table}")
    told.replay()
    assert views(told) == kept
    assert told.contents() == before


def test_what_was_not_taken_in_yet_is_not_missing(told: Site) -> None:
    """And it is counted once, whoever comes first."""
    told.tell(2)
    assert told.verify() == {}
    told.sql(f"DELETE FROM {ROWS} WHERE {ONE_LIKE}")
    assert told.replay()["video_analytics"] == (1, 0, 0)
    told.take_in()
    assert told.verify() == {}


def test_of_what_nobody_can_read_nothing_is_claimed(told: Site) -> None:
    before = told.contents()
    ((topic,),) = rows(told.log_url, "SELECT min(topic) FROM backlot_events WHERE topic ~ '^video'")
    damage = "UPDATE backlot_events SET state = 'no JSON' WHERE topic = %s RETURNING 1"
    assert rows(told.log_url, damage, [topic])
    assert told.verify() == {}
    assert told.replay() == {}
    assert told.contents() == before


def test_the_first_differences_are_named(told: Site) -> None:
    ((event_id,),) = rows(told.url, f"DELETE FROM {ROWS} WHERE {ONE_LIKE} RETURNING event_id")
    with told.rebuilding() as rebuild:
        (key,) = [
            key.as_dict()
            for key in rebuild.compare().difference.keys
            if key.table == "video_analytics"
        ]
    assert key["kind"] == "missing"
    assert key["key"]["event_id"] == str(event_id)


def test_it_ends_when_it_is_to(told: Site) -> None:
    stopping = Event()
    stopping.set()
    with told.rebuilding(stopping=stopping) as rebuild, pytest.raises(Stopped):
        rebuild.compare()


def test_reads_and_ingest_go_on(told: Site) -> None:
    """Nothing differs while it comes in, and what is mended meanwhile is counted once."""
    done = Event()

    def tell() -> None:
        for seed in range(2, 6):
            told.tell(seed)
        done.set()

    told.sql(f"DELETE FROM {ROWS} WHERE {LIKES}")
    with told.taking_in():
        thread = Thread(target=tell, name="telling")
        thread.start()
        told.replay()
        looks = 0
        while not done.is_set() or looks < 3:
            assert told.verify() == {}
            looks += 1
        thread.join()
    told.take_in()
    assert told.verify() == {}
    ((count,),) = rows(told.url, f"SELECT count(*) FROM {ROWS} WHERE {LIKES}")
    assert [(count,)] == rows(told.log_url, TOLD)


def test_nobody_else_stores_while_a_day_is_mended(told: Site) -> None:
    told.sql(f"DELETE FROM {ROWS} WHERE {LIKES}")
    with psycopg.connect(told.url) as storing:
        lock_in_transaction(storing, Lock.ANALYTICS_ROWS)
        thread = Thread(target=told.replay, name="mending")
        thread.start()
        eventually(lambda: rows(told.url, WAITING))
        assert rows(told.url, f"SELECT count(*) FROM {ROWS} WHERE {LIKES}") == [(0,)]
    thread.join()
    assert told.verify() == {}

"""Who is forgotten goes out of the analytics, and all numbers stay, also when these are mended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any

import psycopg
import pytest

from backlot.features import PERSONAL
from engine.personal_data import Pace, PersonalTable
from engine.purge import purge_tables
from projections.analytics import privacy
from projections.analytics.schema import Shape
from tests.integration.analytics_support import migrated, timescale_database
from tests.integration.event_log import rows
from tests.integration.rebuilding_support import Copies, Site, copies, site

PLACES = [
    place
    for place in PERSONAL
    if isinstance(place, PersonalTable) and place.name.startswith("analytics.")
]
FORGOTTEN = """
INSERT INTO backlot_persons (pseudonym, lookup, fenced_at, forgotten_at)
VALUES (%s, convert_to(%s, 'UTF8'), now(), now())
"""
NUMBERS = {
    "hourly": "SELECT * FROM analytics.video_hourly",
    "daily": "SELECT * FROM analytics.video_daily",
    "viewers": "SELECT * FROM analytics.viewers_hourly",
    "audience": "SELECT * FROM analytics.audience_hourly",
    "rows": """
        SELECT event_id, video_id, event_type, "timestamp", metadata - 'session' - 'channel'
        FROM analytics.video_analytics
    """,
    "days": "SELECT video_id, day, hour, count(*) FROM analytics.video_viewers GROUP BY 1, 2, 3",
}
LATE = """
INSERT INTO analytics.video_analytics
SELECT gen_random_uuid(), video_id, 'ann', event_type, "timestamp", metadata
FROM analytics.video_analytics WHERE event_type = 'like' LIMIT 1
"""
ONE_OF_NOBODY = """
event_id = (SELECT event_id FROM analytics.video_analytics WHERE event_type = 'like'
            AND user_id IS NULL AND NOT metadata ? 'trending' ORDER BY event_id LIMIT 1)
"""


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


def numbers(told: Site) -> dict[str, list[str]]:
    """All that is counted, whoever it was."""
    return {name: sorted(map(str, rows(told.url, query))) for name, query in NUMBERS.items()}


def forget(told: Site, *persons: str) -> None:
    """As the program does once the keys are destroyed."""
    with psycopg.connect(told.log_url, autocommit=True) as conn:
        for person in persons:
            conn.execute(FORGOTTEN, (person, person))


def purged(told: Site, person: str) -> Counter[str]:
    with psycopg.connect(told.url, autocommit=True) as conn:
        return purge_tables(conn, PLACES, person)


def named(told: Site, person: str) -> dict[str, int]:
    """The tables that name a person, in whatever column."""
    tables = rows(
        told.url,
        "SELECT relname FROM pg_class WHERE relnamespace = 'analytics'::regnamespace"
        " AND relkind = 'r'",
    )
    query = "SELECT count(*) FROM analytics.{} AS t WHERE t::text ~ '\\m{}\\M'"
    found = {table: rows(told.url, query.format(table, person))[0][0] for (table,) in tables}
    # The categories of these videos have the names of their owners.
    return {table: count for table, count in found.items() if count and table != "videos"}


def test_numbers_stay_and_nothing_differs_from_the_log(told: Site) -> None:
    before = numbers(told)
    for person in ("ann", "bob"):
        assert named(told, person)
        forget(told, person)
        # Who is forgotten and not yet taken out is no difference.
        assert told.verify() == {}
        gone = purged(told, person)
        assert gone["analytics.video_analytics"] > 5
        assert gone["analytics.videos"] == 1
        assert named(told, person) == {}
        assert numbers(told) == before
        assert purged(told, person) == {}
        assert told.verify() == {}
    assert rows(told.url, "SELECT DISTINCT owner FROM analytics.videos ORDER BY 1") == [
        ("",),
        ("eve",),
    ]


def test_a_replay_brings_back_what_was_lost_as_nobody_s(told: Site) -> None:
    forget(told, "ann", "bob")
    purged(told, "ann")
    purged(told, "bob")
    before = told.contents()
    assert told.sql(f"DELETE FROM analytics.video_analytics WHERE {ONE_OF_NOBODY}") == 1
    assert told.replay()["video_analytics"] == (1, 0, 0)
    assert told.contents() == before
    told.recount()
    assert told.contents() == before


def test_what_comes_late_is_purged_again(told: Site) -> None:
    forget(told, "ann")
    purged(told, "ann")
    assert told.sql(LATE) == 1
    assert purged(told, "ann") == {"analytics.video_analytics": 1}
    assert named(told, "ann") == {}


def test_whoever_is_killed_leaves_whole_viewers(
    told: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = numbers(told)
    forget(told, "eve")
    monkeypatch.setattr(privacy, "ROWS_AT_ONCE", 1)
    make_nameless, calls = privacy._make_nameless, Counter[str]()

    def killed(*given: Any) -> None:
        calls["made"] += 1
        if calls["made"] == 2:
            raise SystemExit
        make_nameless(*given)

    monkeypatch.setattr(privacy, "_make_nameless", killed)
    with pytest.raises(SystemExit):
        purged(told, "eve")
    assert numbers(told) == before
    assert told.verify() == {}
    assert purged(told, "eve")["analytics.video_analytics"]
    assert numbers(told) == before
    assert told.verify() == {}


def test_whoever_dies_behind_any_batch_loses_no_number(
    told: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = numbers(told)
    forget(told, "eve")
    monkeypatch.setattr(privacy, "ROWS_AT_ONCE", 1)
    deaths = 0
    for batches in count(1):
        try:
            with psycopg.connect(told.url, autocommit=True) as conn:
                purge_tables(conn, PLACES, "eve", pace=dying(batches))
        except SystemExit:
            deaths += 1
            assert numbers(told) == before
        else:
            break
    assert deaths > 5
    assert named(told, "eve") == {}
    assert told.verify() == {}


def dying(batches: int) -> Pace:
    """The process is killed behind so many batches."""
    left = iter(range(batches - 1, -1, -1))

    @contextmanager
    def pace() -> Iterator[None]:
        yield
        if next(left) == 0:
            raise SystemExit

    return pace

"""What names persons goes when its time is over, and what is made from it stays right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson
import psycopg
import pytest
from psycopg import Connection

from backlot.features import PERSONAL, TABLES, read_models
from commands.uploads import ENDS
from domain.feedback import CHOSEN, SHOWN
from engine import dead_letters, telemetry
from engine.checkpoints import SubscriptionKind
from engine.connections import connect
from engine.dead_letters import RejectedMessage
from engine.installation import install, make_tables, migrate
from engine.personal_data import PersonalTable, count_rows, rows_of
from engine.reservations import forget_reservations
from engine.telemetry import forget_events
from infra import metrics
from infra.settings import SettingsError, load_settings
from projections.analytics import schema
from projections.feedback.rebuild import FeedbackRebuild
from projections.feedback.reports import TABLES as FEEDBACK
from projections.feedback.reports import store
from projections.recommendations import retention
from projections.recommendations.co_occurrence import Engagement, keep
from projections.recommendations.model import EngagementKind, Weighing
from projections.recommendations.retention import forget_viewers
from tests.integration.projection_support import Writer
from tests.integration.test_feedback import given, report
from workers.maintenance import expire, tell

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=1000)
WEIGHING = Weighing.from_settings(load_settings({}).recommendations)
TELEMETRY = """
INSERT INTO backlot_telemetry (event_id, topic, video_id, user_id, happened_at, details)
VALUES (gen_random_uuid(), 'video.shared', gen_random_uuid(), %s, %s, '{}')
"""
RESERVE = """
INSERT INTO backlot_reservations (stream_id, owner, amount, reserved_at) VALUES (%s, 'ann', 1, %s)
"""


@pytest.fixture
def conn(database_url: str) -> Iterator[Connection[Any]]:
    """A connection to a database in which nothing has happened yet."""
    with psycopg.connect(database_url, autocommit=True) as opened:
        make_tables(opened, *TABLES)
        install(opened, read_models().all())
        schema.migrate(opened)
        migrate(opened, FEEDBACK)
        yield opened


def users(conn: Connection[Any]) -> list[str]:
    return [user for (user,) in conn.execute("SELECT user_id FROM backlot_telemetry ORDER BY seq")]


def share(conn: Connection[Any], user: str, at: datetime) -> None:
    conn.execute(TELEMETRY, (user, at))


def head(conn: Connection[Any]) -> int:
    ((found,),) = conn.execute(telemetry.HEAD).fetchall()
    return int(found)


def test_telemetry_goes_but_for_the_newest(
    conn: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "BATCH_EVENTS", 2)
    for number in range(5):
        share(conn, f"old-{number}", LONG_AGO)
    share(conn, "new", NOW)
    assert forget_events(conn, NOW - timedelta(days=760)) == 5
    assert users(conn) == ["new"]


def test_the_position_of_the_telemetry_never_goes_back(conn: Connection[Any]) -> None:
    for user in ("one", "another"):
        share(conn, user, LONG_AGO)
    before = head(conn)
    assert forget_events(conn, NOW) == 1
    assert users(conn) == ["another"]
    assert head(conn) == before > 0


def test_telemetry_outlives_what_is_made_from_it() -> None:
    assert load_settings({}).telemetry_retention == timedelta(days=760)
    longer = {"ANALYTICS_RETENTION_DAYS": "1000"}
    assert load_settings(longer).telemetry_retention == timedelta(days=1030)
    both = {**longer, "TELEMETRY_RETENTION_DAYS": "1001"}
    assert load_settings(both).telemetry_retention == timedelta(days=1001)
    with pytest.raises(SettingsError, match=r"^TELEMETRY_RETENTION_DAYS: must be more than"):
        load_settings({**longer, "TELEMETRY_RETENTION_DAYS": "1000"})


def test_a_rebuild_of_the_feedback_keeps_sums_of_before_the_retention(
    conn: Connection[Any], database_url: str
) -> None:
    told = given(experiment=3)
    with conn.transaction():
        store(conn, [report(told, topic, place) for topic in (SHOWN, CHOSEN) for place in (1, 2)])
    sums = "SELECT source, shown, chosen FROM feedback.hours ORDER BY 1"
    compared = "SELECT a, b FROM feedback.comparisons"
    before = [conn.execute(query).fetchall() for query in (sums, compared)]
    assert before[1] == [(1, 1)]
    # The telemetry has none of them any more.
    with closing(connect(database_url, "log")) as log, closing(connect(database_url, "own")) as own:
        work = FeedbackRebuild(log, own, NOW + timedelta(hours=1))
        assert not work.compare().difference.differs
        assert work.mend(None) == 0
    assert [conn.execute(query).fetchall() for query in (sums, compared)] == before


def engage(conn: Connection[Any], viewer: str, at: datetime, videos: int = 3) -> list[str]:
    ids = [str(uuid4()) for _ in range(videos)]
    with conn.transaction():
        told = [
            Engagement(viewer, video, EngagementKind.WATCHED, at + timedelta(hours=number))
            for number, video in enumerate(ids)
        ]
        keep(conn, told, WEIGHING)
    return ids


def known(conn: Connection[Any]) -> dict[str, int]:
    tables = ("viewers", "engaged", "earlier_turns")
    counts = (conn.execute(f"SELECT count(*) FROM analytics.{name}".encode()) for name in tables)
    return {name: count.fetchall()[0][0] for name, count in zip(tables, counts, strict=True)}


def test_viewers_are_forgotten_as_a_whole(
    conn: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH_VIEWERS", 1)
    for viewer in ("ann", "bob"):
        engage(conn, viewer, LONG_AGO, videos=70)
    assert known(conn)["earlier_turns"] > 0
    engage(conn, "cid", NOW - timedelta(days=10))
    assert forget_viewers(conn, NOW - timedelta(days=730)) == 2
    assert known(conn) == {"viewers": 1, "engaged": 3, "earlier_turns": 0}
    # Who comes back begins anew.
    engage(conn, "ann", NOW - timedelta(hours=5))
    assert known(conn)["engaged"] == 6


def test_who_only_watches_the_same_again_is_not_forgotten(conn: Connection[Any]) -> None:
    first, *_ = engage(conn, "ann", LONG_AGO)
    with conn.transaction():
        keep(conn, [Engagement("ann", first, EngagementKind.WATCHED, NOW)], WEIGHING)
    assert forget_viewers(conn, NOW - timedelta(days=730)) == 0


def reject(conn: Connection[Any], position: int, at: datetime, status: str = "dead") -> None:
    value = orjson.dumps({"userId": "ann"})
    message = RejectedMessage("events", 0, position, "video.liked", "broke", value=value)
    dead_letters.reject(conn, SubscriptionKind.CONSUMER, "one", [message])
    changed = "UPDATE backlot_dead_letters SET rejected_at = %s, status = %s WHERE position = %s"
    conn.execute(changed, (at, status, position))


def test_dead_messages_are_given_up_and_parked_events_stay(
    conn: Connection[Any], database_url: str
) -> None:
    for position, at, status in (
        (1, LONG_AGO, "dead"),
        (2, LONG_AGO, "redrive"),
        (3, NOW, "dead"),
    ):
        reject(conn, position, at, status)
    parked = "UniqueViolation: duplicate key\nDETAIL: Key (viewer)=(ann) already exists."
    conn.execute(
        "INSERT INTO backlot_dead_letters (kind, subscription, position, error, status, "
        "rejected_at) VALUES ('projection', 'likes', 9, %s, 'parked', %s)",
        (parked, LONG_AGO),
    )
    deleted = expire(database_url, database_url, load_settings({}), NOW)
    assert (deleted["dead_letters"], deleted["parked_errors"]) == (1, 1)
    left = conn.execute("SELECT position, error FROM backlot_dead_letters ORDER BY 1").fetchall()
    assert left == [(2, "broke"), (3, "broke"), (9, "UniqueViolation: duplicate key")]
    again = expire(database_url, database_url, load_settings({}), NOW)
    assert not again.total()


def test_reservations_of_everybody_go_when_they_count_no_more(
    conn: Connection[Any], writer: Writer
) -> None:
    ended, running = writer.video("ann"), writer.upload("ann")
    old = NOW - timedelta(days=2)
    never, just_now = uuid4(), uuid4()
    for stream, at in ((ended.id, old), (running.id, old), (never, old), (just_now, NOW)):
        conn.execute(RESERVE, (stream, at))
    assert forget_reservations(conn, ENDS, NOW) == 2
    left = {stream for (stream,) in conn.execute("SELECT stream_id FROM backlot_reservations")}
    assert left == {running.id, just_now}


def test_every_declared_table_is_there_and_can_be_searched(conn: Connection[Any]) -> None:
    for place in PERSONAL:
        if isinstance(place, PersonalTable):
            assert count_rows(conn, place, "nobody") == 0
            assert list(rows_of(conn, place, "nobody")) in ([], [[]])


def test_rows_come_some_at_a_time(conn: Connection[Any]) -> None:
    (place,) = (each for each in PERSONAL if each.name == "telemetry")
    assert isinstance(place, PersonalTable)
    for _ in range(1_200):
        share(conn, "ann", NOW)
    sizes = [len(batch) for batch in rows_of(conn, place, "ann")]
    assert sizes == [500, 500, 200]
    assert count_rows(conn, place, "ann") == 1_200
    first = next(iter(rows_of(conn, place, "ann")))[0]
    assert (first["userId"], UUID(str(first["eventId"])).version) == ("ann", 4)


def test_a_copy_of_a_read_model_is_searched_too(conn: Connection[Any]) -> None:
    (place,) = (each for each in PERSONAL if each.name == "likes.likes")
    assert isinstance(place, PersonalTable)
    conn.execute("INSERT INTO likes.likes VALUES (gen_random_uuid(), 'ann', 1)")
    conn.execute("CREATE SCHEMA likes_copy CREATE TABLE likes (LIKE likes.likes)")
    conn.execute(
        "INSERT INTO backlot_checkpoints (kind, subscription, projection) "
        "VALUES ('projection', 'likes_copy', 'likes')"
    )
    conn.execute("INSERT INTO likes_copy.likes VALUES (gen_random_uuid(), 'ann', 1)")
    assert count_rows(conn, place, "ann") == 2
    assert [len(batch) for batch in rows_of(conn, place, "ann")] == [1]


def test_what_goes_is_counted(conn: Connection[Any], database_url: str) -> None:
    share(conn, "ann", LONG_AGO)
    share(conn, "bob", NOW)

    def counted() -> float:
        labels = {"what": "telemetry"}
        found = metrics.REGISTRY.get_sample_value("backlot_retention_deleted_total", labels)
        return found or 0.0

    before = counted()
    tell(expire(database_url, database_url, load_settings({}), NOW))
    assert counted() == before + 1

"""Feedback on recommendations: stored once whatever brings it, and made again from telemetry."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from backlot.features import read_models
from domain.feedback import CHOSEN, SHOWN, GivenList, Offer, Signal, Variant
from engine.connections import connect
from engine.installation import install, make_tables
from engine.subscription import Notifications
from engine.telemetry import Telemetry, TelemetryEvent
from infra.http.shapes import rfc3339
from projections.feedback.rebuild import NEXT, FeedbackRebuild
from projections.feedback.reports import (
    CONSUMER,
    KEY,
    TABLES,
    ReportedVideo,
    prune,
    report_of,
    store,
)
from tests.integration.consuming_support import Stage, dead, open_stage, run
from tests.integration.event_log import rows
from tests.integration.operator_desk import Backlot, Desk, executing
from tests.integration.projection_support import Writer
from tests.support import ended, until
from workers.consumers import settle, subscribe_sink
from workers.feedback import FeedbackSink

NOW = datetime.now(UTC)
HOURS = "SELECT source, variant, shown, chosen FROM feedback.hours ORDER BY 1, 2"
COMPARISONS = "SELECT experiment, a, b FROM feedback.comparisons ORDER BY 1, 2, 3"
REPORTS = "SELECT count(*) FROM feedback.reports"
FEW = timedelta(days=60)


def given(user: str = "ann", number: int = 4, experiment: int | None = None) -> GivenList:
    variants = (Variant.A, Variant.B) if experiment is not None else (Variant.DEFAULT,)
    sources = (Signal.NEIGHBOUR, Signal.NEW)
    offers = [
        Offer(uuid4(), sources[place % 2], variants[place % len(variants)])
        for place in range(number)
    ]
    return GivenList.given(user, NOW, offers, experiment)


def event(told: GivenList, topic: str, place: int, **changes: Any) -> TelemetryEvent:
    offer = told.offers[place - 1]
    details = {
        "listId": str(told.id),
        "givenAt": rfc3339(told.hour),
        "place": place,
        "source": offer.source,
        "variant": offer.variant,
    }
    if told.experiment is not None:
        details["experiment"] = told.experiment
    details |= changes
    report_id = told.report_id(topic, place)
    return TelemetryEvent(report_id, topic, offer.video_id, told.user_id, NOW, details)


def report(told: GivenList, topic: str, place: int) -> ReportedVideo:
    made = event(told, topic, place)
    return report_of(topic, made.event_id, {"videoId": str(made.video_id), **made.details})


async def record(url: str, events: Sequence[TelemetryEvent]) -> None:
    telemetry = Telemetry(url, repeat=timedelta(hours=1))
    telemetry.open()
    for each in events:
        await telemetry.record(each)
    await telemetry.close()


@pytest.fixture
def database(database_url: str) -> str:
    with psycopg.connect(database_url, autocommit=True) as conn:
        make_tables(conn, TABLES)
    return database_url


class TestStoring:
    def test_the_same_sums_whatever_the_order_and_however_often(self, database: str) -> None:
        one, other = given("ann"), given("bob", experiment=7)
        told = [report(one, SHOWN, place) for place in (1, 2, 3)]
        told += [report(other, SHOWN, place) for place in (1, 2, 3, 4)]
        told += [report(one, CHOSEN, 1), report(other, CHOSEN, 2), report(other, CHOSEN, 4)]
        chance = random.Random(5)
        sent = [each for each in told for _ in range(3)]
        chance.shuffle(sent)
        with psycopg.connect(database, autocommit=True) as conn:
            fresh = 0
            while sent:
                batch, sent = sent[:4], sent[4:]
                with conn.transaction():
                    fresh += sum(each.shown + each.chosen for each in store(conn, batch))
        assert fresh == len(told)
        assert rows(database, HOURS) == [
            ("neighbour", "a", 2, 0),
            ("neighbour", "default", 2, 1),
            ("new", "b", 2, 2),
            ("new", "default", 1, 0),
        ]
        assert rows(database, COMPARISONS) == [(7, 0, 2)]

    def test_a_choice_counts_in_the_hour_of_its_list(self, database: str) -> None:
        told = given()
        late = report(told, CHOSEN, 1)
        earlier = replace(told, hour=told.hour - timedelta(hours=5))
        with psycopg.connect(database, autocommit=True) as conn, conn.transaction():
            store(conn, [late, report(earlier, SHOWN, 1), report(earlier, CHOSEN, 1)])
        found = rows(database, "SELECT hour, shown, chosen FROM feedback.hours ORDER BY 1")
        assert found == [(earlier.hour, 1, 1), (told.hour, 0, 1)]

    def test_what_is_pruned_leaves_its_sums(self, database: str) -> None:
        told = given(experiment=1)
        with psycopg.connect(database, autocommit=True) as conn:
            with conn.transaction():
                store(conn, [report(told, SHOWN, 1), report(told, CHOSEN, 1)])
            assert prune(conn, told.hour) == 0
            assert prune(conn, told.hour + timedelta(seconds=1)) == 2
        assert rows(database, REPORTS) == [(0,)]
        assert rows(database, HOURS) == [("neighbour", "a", 1, 1)]
        assert rows(database, COMPARISONS) == [(1, 1, 0)]


def test_the_key_is_one_and_stays(database: str) -> None:
    ((key,),) = rows(database, KEY.decode())
    assert len(key) == 32
    with psycopg.connect(database, autocommit=True) as conn:
        make_tables(conn, TABLES)
    assert rows(database, KEY.decode()) == [(key,)]


@pytest.fixture(params=["log", "kafka"])
def stage(request: pytest.FixtureRequest, database_url: str, writer: Writer) -> Iterator[Stage]:
    with open_stage(request.param, database_url, writer) as opened:
        yield opened


@asynccontextmanager
async def keeping(stage: Stage) -> AsyncIterator[None]:
    notifications = Notifications(stage.database_url)
    sink = FeedbackSink()
    runner = subscribe_sink(
        stage.database_url,
        sink,
        stage.source(sink.topics, notifications.subscribe()),
        log_url=stage.database_url,
        batch_events=25,
        flush_seconds=0.05,
        poll_seconds=0.2,
    )
    tasks = [asyncio.create_task(job) for job in (notifications.run(), runner.run())]
    try:
        yield
    finally:
        await ended(*tasks)


def found(url: str, query: str = HOURS) -> list[tuple[Any, ...]]:
    try:
        return rows(url, query)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return []


def test_the_sink_counts_what_comes_and_sets_aside_what_makes_no_sense(stage: Stage) -> None:
    async def scenario() -> None:
        url, told = stage.database_url, given(experiment=3)
        events = [event(told, SHOWN, place) for place in (1, 2)]
        events += [event(told, CHOSEN, 2), event(told, SHOWN, 3, source="of tomorrow")]
        await record(url, [*events, *events])
        await stage.published()
        wanted = [("neighbour", "a", 1, 0), ("new", "b", 1, 1)]
        async with keeping(stage):
            await until(lambda: found(url) == wanted)
            await until(lambda: len(dead(url)) == 1)
        assert rows(url, COMPARISONS) == [(3, 0, 1)]
        # Begun again, it counts nothing a second time.
        async with keeping(stage):
            await record(url, [event(told, SHOWN, 4)])
            await stage.published()
            await until(lambda: found(url)[1:] == [("new", "b", 2, 1)])
        assert found(url)[:1] == wanted[:1]

    run(scenario)


class TestRebuilding:
    @pytest.fixture
    def kept(self, database_url: str, writer: Writer) -> str:
        """What the sink has made of some reports."""
        with open_stage("log", database_url, writer) as stage:

            async def scenario() -> None:
                told = given(experiment=3)
                events = [event(told, SHOWN, place) for place in (1, 2, 3, 4)]
                await record(database_url, [*events, event(told, CHOSEN, 2)])
                async with keeping(stage):
                    await until(lambda: found(database_url, REPORTS) == [(5,)])

            run(scenario)
        return database_url

    def rebuild(self, url: str, action: str) -> tuple[int, bool]:
        with closing(connect(url, "log")) as log_conn, closing(connect(url, "own")) as conn:
            work = FeedbackRebuild(log_conn, conn, NOW - FEW)
            compared = work.compare()
            if action == "replay":
                assert work.mend(compared) == 0
            return compared.events, compared.difference.differs

    def test_nothing_differs_from_what_the_sink_made(self, kept: str) -> None:
        assert self.rebuild(kept, "verify") == (5, False)
        assert rows(kept, f"SELECT to_regnamespace('{NEXT}')") == [(None,)]

    @pytest.mark.parametrize(
        "damage",
        [
            "DELETE FROM feedback.hours WHERE source = 'new' RETURNING 1",
            "UPDATE feedback.hours SET shown = shown + 1 RETURNING 1",
            "UPDATE feedback.comparisons SET a = 9 RETURNING 1",
            "DELETE FROM feedback.reports WHERE chosen RETURNING 1",
        ],
    )
    def test_what_differs_is_found_and_mended(self, kept: str, damage: str) -> None:
        before = [rows(kept, query) for query in (HOURS, COMPARISONS, REPORTS)]
        rows(kept, damage)
        damaged = [rows(kept, query) for query in (HOURS, COMPARISONS, REPORTS)]
        assert self.rebuild(kept, "verify") == (5, True)
        assert [rows(kept, query) for query in (HOURS, COMPARISONS, REPORTS)] == damaged
        assert self.rebuild(kept, "replay") == (5, True)
        assert [rows(kept, query) for query in (HOURS, COMPARISONS, REPORTS)] == before
        assert self.rebuild(kept, "verify") == (5, False)

    def test_what_the_sink_has_not_taken_in_yet_is_no_difference(self, kept: str) -> None:
        told = given("bob")
        asyncio.run(record(kept, [event(told, SHOWN, 1)]))
        assert self.rebuild(kept, "replay") == (5, False)
        assert rows(kept, REPORTS) == [(5,)]

    def test_reports_past_their_time_are_no_difference(self, kept: str) -> None:
        with closing(connect(kept, "log")) as log_conn, closing(connect(kept, "own")) as conn:
            prune(conn, NOW)
            compared = FeedbackRebuild(log_conn, conn, NOW).compare()
        assert (compared.events, compared.difference.differs) == (5, False)


class TestOperating:
    @pytest.fixture
    def kept(self, database_url: str) -> str:
        """Feedback that lacks what the telemetry has."""
        with connect(database_url, "test") as conn:
            install(conn, read_models().all())
        told = given(experiment=3)
        events = [event(told, SHOWN, 1), event(told, SHOWN, 2), event(told, CHOSEN, 2)]
        asyncio.run(record(database_url, events))
        with connect(database_url, "test") as conn:
            settle(conn, CONSUMER, (), (), {("telemetry", 0): 3})
        return database_url

    def test_at_the_command_line(self, backlot: Backlot, kept: str, root: Desk) -> None:
        code, out, _ = backlot("verify", "feedback")
        assert code == 1
        assert out.startswith("feedback: compared with 3 events, up to position 3")
        assert "6 rows differ" in out
        found = backlot("replay", "feedback", "--json")
        assert (found.code, found.data["state"]) == (3, "cancelled")
        assert rows(kept, REPORTS) == [(0,)]
        found = backlot("replay", "feedback", "--yes", "--json")
        assert (found.code, found.data["state"]) == (0, "mended")
        assert rows(kept, HOURS) == [("neighbour", "a", 1, 0), ("new", "b", 1, 1)]
        assert rows(kept, COMPARISONS) == [(3, 0, 1)]
        assert backlot("verify", "feedback").code == 0
        for refused in (("pause", "feedback"), ("replay", "feedback", "--to", "3")):
            assert backlot(*refused).code == 4
        assert {each.subject for each in root.events()} == {"feedback"}

    def test_over_http(self, kept: str, root: Desk) -> None:
        with executing(kept):
            assert root.done("verify", "feedback")["difference"]["total"] == 6
            assert root.done("replay", "feedback", yes=True)["state"] == "mended"
            assert root.done("verify", "feedback")["difference"]["total"] == 0

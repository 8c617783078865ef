"""The contract of consumers, whatever brings them their messages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from engine import telemetry
from engine.connections import ThreadedConnection, connected
from engine.log import event_id
from engine.messages import MessageBatch
from infra import metrics
from infra.settings.adapters import KafkaSettings
from projections.feeds import feeds
from tests.integration.analytics_support import REPEAT
from tests.integration.consuming_support import (
    TERMINATE,
    TOPICS,
    VIDEO,
    KafkaStage,
    LogStage,
    Stage,
    Tasks,
    consuming,
    dead,
    failures,
    held,
    place,
    processed,
    run,
    waits,
)
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer, origin
from tests.kafka_cluster import kafka_cluster
from tests.support import until
from workers.consumers import ConsumerHandler, forget_processed
from workers.sources import LogSource


@pytest.fixture(params=["log", "kafka"])
def stage(request: pytest.FixtureRequest, database_url: str, writer: Writer) -> Iterator[Stage]:
    if request.param == "log":
        yield LogStage(database_url, writer)
        return
    with kafka_cluster() as cluster:
        options = KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(cluster.bootstrap_servers,))
        yield KafkaStage(database_url, writer, options)


def write(stage: Stage, *contents: str) -> None:
    for content in contents:
        stage.writer.comment(VIDEO, content=content)


def test_messages_come_once_each_and_in_order(stage: Stage) -> None:
    async def scenario() -> None:
        tasks = Tasks()
        write(stage, "one", "two")
        async with consuming(stage, tasks):
            await stage.published()
            await until(lambda: len(tasks.handled) == 2)
            comment = stage.writer.comment(VIDEO, content="three")
            for content in ("four", "five", "six"):
                comment.edit(content, origin("bob"))
                stage.writer.like(VIDEO, content)
                stage.writer.save(comment)
            await stage.published()
            await until(lambda: len(tasks.handled) == 6)
        assert sorted(tasks.contents[:2]) == ["one", "two"]
        edited = [message for message in tasks.handled if message.topic == "comment.edited"]
        assert [message.value["content"] for message in edited] == ["four", "five", "six"]
        assert set(tasks.ids) == processed(stage.database_url)

    run(scenario)


def test_a_message_tells_what_was_recorded(stage: Stage) -> None:
    async def scenario() -> None:
        tasks = Tasks()
        comment = stage.writer.comment(VIDEO, content="¡Qué bonito! 🌧️")
        async with consuming(stage, tasks):
            await stage.published()
            await until(lambda: tasks.handled)
        (message,) = tasks.handled
        assert message.id == event_id(comment.id, 1)
        assert (message.topic, message.key) == ("comment.created", str(comment.id))
        assert message.value == {
            "id": str(message.id),
            "commentId": str(comment.id),
            "videoId": str(VIDEO),
            "content": "¡Qué bonito! 🌧️",
            "userId": "bob",
            "ts": comment.posted_at.isoformat().replace("+00:00", "Z"),
        }
        assert (message.position, message.correlation_id) == (1, "correlation")

    run(scenario)


def test_telemetry_comes_too(stage: Stage) -> None:
    async def scenario() -> None:
        tasks = Tasks(topics=frozenset(("video.viewed", "comment.created")))
        taken = telemetry.Telemetry(stage.database_url, repeat=REPEAT)
        taken.open()
        session, now = uuid4(), origin().at
        seen = telemetry.TelemetryEvent(
            uuid4(), "video.viewed", VIDEO, None, now, {"sessionId": str(session)}, "asked"
        )
        await taken.record(seen)
        await taken.close()
        write(stage, "one")
        async with consuming(stage, tasks):
            await stage.published()
            await until(lambda: len(tasks.handled) == 2)
        (message,) = [each for each in tasks.handled if each.topic == "video.viewed"]
        assert (message.id, message.key) == (seen.event_id, str(VIDEO))
        assert (message.value["sessionId"], message.value["userId"]) == (str(session), None)
        assert message.correlation_id == "asked"

    run(scenario)


def test_a_restart_goes_on_where_it_was(stage: Stage) -> None:
    async def scenario() -> None:
        first, second = Tasks(), Tasks()
        write(stage, *map(str, range(120)))
        async with consuming(stage, first):
            await stage.published()
            await until(lambda: len(first.handled) == 120)
        assert len(first.batches) > 1
        write(stage, "after")
        async with consuming(stage, second):
            await stage.published()
            await until(lambda: second.handled)
        assert second.contents == ["after"]

    run(scenario)


def test_a_message_that_comes_again_is_left_out(stage: Stage) -> None:
    async def scenario() -> None:
        first, second = Tasks(), Tasks()
        write(stage, "one", "two")
        async with consuming(stage, first):
            await stage.published()
            await until(lambda: len(first.handled) == 2)
        # As after a switch between the log and Kafka, or where a relay was killed.
        rows(
            stage.database_url,
            "DELETE FROM backlot_checkpoints WHERE kind = 'consumer' RETURNING 1",
        )
        write(stage, "three")
        async with consuming(stage, second):
            await stage.published()
            await until(lambda: second.handled)
        assert second.contents == ["three"]

    run(scenario)


def test_nothing_moves_while_the_work_can_not_be_handed_over(stage: Stage) -> None:
    async def scenario() -> None:
        tasks = Tasks()
        tasks.fault = ConnectionError("the broker is away")
        before = failures("handler")
        write(stage, "one", "two")
        async with consuming(stage, tasks):
            await stage.published()
            await until(lambda: tasks.faults >= 3)
            assert processed(stage.database_url) == set()
            tasks.fault = None
            await until(lambda: len(tasks.handled) == 2)
        assert failures("handler") - before >= 3
        assert place(stage.database_url)

    run(scenario)


def test_cut_off_between_the_work_and_the_commit_it_does_it_again(stage: Stage) -> None:
    async def scenario() -> None:
        tasks = Tasks()
        write(stage, "one", "two")
        async with consuming(stage, tasks):
            with held(stage.database_url, "processed_messages"):
                await stage.published()
                await until(lambda: waits(stage.database_url))
                assert sorted(tasks.contents) == ["one", "two"]
                rows(stage.database_url, TERMINATE)
                await until(lambda: len(tasks.handled) == 4)
            await until(lambda: len(processed(stage.database_url)) == 2)
        assert sorted(tasks.contents) == ["one", "one", "two", "two"]

    run(scenario)


def test_a_poison_message_holds_up_no_other(stage: Stage) -> None:
    async def scenario() -> None:
        tasks = Tasks()
        tasks.poison = {"bad"}
        write(stage, "one", "bad", "two")
        async with consuming(stage, tasks):
            await stage.published()
            await until(lambda: len(tasks.handled) == 2)
            await until(lambda: metrics.value("backlot_consumer_dead", consumer="tasks") == 1)
        assert sorted(tasks.contents) == ["one", "two"]
        ((consumer, topic, id_, reason, attempts, status),) = dead(stage.database_url)
        assert (consumer, topic, reason) == ("tasks", "comment.created", "it can't be handled")
        assert (attempts, status) == (1, "dead")
        assert id_ not in processed(stage.database_url)

    run(scenario)


def test_a_dead_message_can_be_driven_again(stage: Stage) -> None:
    async def scenario() -> None:
        tasks = Tasks()
        tasks.poison = {"bad", "worse"}
        write(stage, "bad", "worse")
        async with consuming(stage, tasks):
            await stage.published()
            await until(lambda: len(dead(stage.database_url)) == 2)
            tasks.poison = {"worse"}
            rows(
                stage.database_url,
                "UPDATE backlot_dead_letters SET status = 'redrive' RETURNING 1",
            )
            await until(lambda: tasks.contents == ["bad"])
            await until(lambda: len(dead(stage.database_url)) == 1)
        (left,) = dead(stage.database_url)
        assert left[4:] == (2, "dead")
        assert set(tasks.ids) == processed(stage.database_url)

    run(scenario)


def test_one_of_two_is_active_and_the_other_takes_over(stage: Stage) -> None:
    async def scenario() -> None:
        first, second = Tasks(), Tasks()
        async with consuming(stage, second):
            write(stage, "one")
            await stage.published()
            await until(lambda: second.handled)
            async with consuming(stage, first):
                write(stage, "two")
                await stage.published()
                await until(lambda: len(second.handled) == 2)
                await asyncio.sleep(0.2)
                assert first.handled == []
        async with consuming(stage, first):
            write(stage, "three")
            await stage.published()
            await until(lambda: first.contents == ["three"])

    run(scenario)


def test_consumers_do_not_share_what_they_know(stage: Stage) -> None:
    async def scenario() -> None:
        one, other = Tasks("one"), Tasks("other")
        write(stage, "a", "b")
        async with consuming(stage, one), consuming(stage, other):
            await stage.published()
            await until(lambda: len(one.handled) == len(other.handled) == 2)

    run(scenario)


def test_a_lost_connection_costs_nothing(stage: Stage) -> None:
    async def scenario() -> None:
        tasks = Tasks()
        async with consuming(stage, tasks):
            write(stage, "one")
            await stage.published()
            await until(lambda: tasks.handled)
            rows(stage.database_url, TERMINATE)
            write(stage, "two")
            await stage.published()
            # What was handled but not yet noted as such comes again.
            await until(lambda: [*dict.fromkeys(tasks.contents)] == ["one", "two"])

    run(scenario)


def test_what_was_handled_long_ago_is_forgotten(stage: Stage) -> None:
    old, new = uuid4(), uuid4()
    rows(
        stage.database_url,
        "INSERT INTO processed_messages VALUES ('tasks', %s, now() - interval '8 days'), "
        "('tasks', %s, now() - interval '6 days') RETURNING 1",
        [old, new],
    )
    with psycopg.connect(stage.database_url, autocommit=True) as conn:
        assert forget_processed(conn) == 1
    assert processed(stage.database_url) == {new}


def test_a_place_is_written_down_once_however_long_nothing_comes(database_url: str) -> None:
    places = "SELECT position, xmin::text FROM backlot_checkpoints WHERE kind = 'consumer'"

    async def scenario() -> None:
        source = LogSource(feeds(TOPICS, batch_events=50), wake=asyncio.Event())
        handler = ConsumerHandler(Tasks(), source)

        async def stand(conn: ThreadedConnection, position: int) -> list[tuple[Any, ...]]:
            batch = MessageBatch([], [], {("events", 0): position}, lag=0, lag_seconds=0.0)
            await handler.handle(conn, batch)
            await handler.look_aside(conn)
            return rows(database_url, places)

        async with connected(database_url, "test") as conn:
            await conn.do(handler.prepare)
            await handler.start(conn)
            ((position, _),) = written = await stand(conn, 7)
            assert position == 7
            assert await stand(conn, 7) == written
            assert [found for found, _ in await stand(conn, 8)] == [8]
        await handler.stop()

    run(scenario)

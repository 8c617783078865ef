"""What only Kafka brings: messages that nobody can read, dead letters, outages, new partitions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from uuid import uuid4

import pytest

from engine.checkpoints import SubscriptionKind, set_positions
from engine.connections import connect
from infra import metrics
from infra.kafka import Outgoing, Reader, Record
from infra.settings.adapters import KafkaSettings
from tests.integration.consuming_support import (
    VIDEO,
    KafkaStage,
    Tasks,
    consuming,
    dead,
    place,
    redrive,
    run,
)
from tests.integration.projection_support import Writer
from tests.kafka_cluster import MockCluster, kafka_cluster
from tests.support import until

TOPIC = "comment.created"
POSITION = [("position", b"7"), ("own", b"\x00\xff")]


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    with kafka_cluster() as started:
        yield started


@pytest.fixture
def stage(cluster: MockCluster, database_url: str, writer: Writer) -> KafkaStage:
    return KafkaStage(
        database_url, writer, KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(cluster.bootstrap_servers,))
    )


def value(**changes: object) -> bytes:
    whole: dict[str, object] = {
        "id": str(uuid4()),
        "commentId": str(uuid4()),
        "videoId": str(VIDEO),
        "content": "hello",
        "userId": "ann",
        "ts": "2026-11-22T09:30:15Z",
    }
    return json.dumps({k: v for k, v in {**whole, **changes}.items() if v is not ...}).encode()


async def letters(stage: KafkaStage, count: int) -> list[Record]:
    """The dead letters of the topic."""
    reader = Reader(stage.options, [TOPIC + ".dlq"])
    await reader.start({})
    found: list[Record] = []
    while len(found) < count:
        found += await reader.read(0.2, 100)
    await reader.stop()
    return found


UNREADABLE = {
    "no JSON": Outgoing(TOPIC, b"k", b"{", POSITION),
    "not an object": Outgoing(TOPIC, b"k", b"[]", POSITION),
    "no value": Outgoing(TOPIC, b"k", None, POSITION),
    "a field is missing": Outgoing(TOPIC, b"k", value(commentId=...), POSITION),
    "an id that is none": Outgoing(TOPIC, b"k", value(id="x\x00"), POSITION),
    "no position": Outgoing(TOPIC, None, value(), []),
    "bytes": Outgoing(TOPIC, b"\x00\xff", b"\x00\xff", POSITION),
}


def test_what_can_not_be_read_goes_to_the_dead_letters(stage: KafkaStage) -> None:
    async def scenario() -> None:
        tasks = Tasks()
        good = Outgoing(TOPIC, b"k", value(), POSITION)
        async with consuming(stage, tasks):
            await stage.publish([*UNREADABLE.values(), good])
            await until(lambda: tasks.handled)
            await until(lambda: len(dead(stage.database_url)) == len(UNREADABLE))
            found = await letters(stage, len(UNREADABLE))
        assert tasks.contents == ["hello"]
        assert sorted(record.value or b"" for record in found) == sorted(
            each.value or b"" for each in UNREADABLE.values()
        )

    run(scenario)


def test_a_dead_letter_tells_why_and_where_it_lay(stage: KafkaStage) -> None:
    async def scenario() -> None:
        tasks = Tasks()
        sent = Outgoing(TOPIC, b"k", value(userId=...), POSITION)
        async with consuming(stage, tasks):
            await stage.publish([sent])
            (letter,) = await letters(stage, 1)
        headers = dict(letter.headers)
        assert (letter.key, letter.value) == (sent.key, sent.value)
        assert headers["dlq-reason"] == b"userId: Field required"
        assert headers["dlq-consumer"] == b"tasks"
        assert headers["dlq-topic"] == b"comment.created"
        assert (headers["dlq-offset"], headers["position"]) == (b"0", b"7")
        assert int(headers["dlq-partition"]) >= 0

    run(scenario)


def test_poison_is_told_in_the_dead_letters_too_and_can_be_driven_again(stage: KafkaStage) -> None:
    async def scenario() -> None:
        tasks = Tasks()
        tasks.poison = {"hello"}
        async with consuming(stage, tasks):
            await stage.publish([Outgoing(TOPIC, b"k", value(), POSITION)])
            (letter,) = await letters(stage, 1)
            assert dict(letter.headers)["dlq-reason"] == b"it can't be handled"
            tasks.poison = set()
            await until(lambda: dead(stage.database_url))
            redrive(stage.database_url)
            await until(lambda: tasks.contents == ["hello"])
            await until(lambda: not dead(stage.database_url))

    run(scenario)


def test_after_an_outage_it_goes_on(stage: KafkaStage, cluster: MockCluster) -> None:
    async def scenario() -> None:
        tasks = Tasks()
        before = metrics.value("backlot_consumer_failures_total", consumer="tasks", step="source")
        cluster.go_down()
        async with consuming(stage, tasks):
            await until(
                lambda: (
                    metrics.value(
                        "backlot_consumer_failures_total", consumer="tasks", step="source"
                    )
                    > before
                )
            )
            cluster.come_up()
            stage.writer.comment(VIDEO, content="one")
            await stage.published()
            await until(lambda: tasks.contents == ["one"])
            cluster.go_down()
            cluster.come_up()
            stage.writer.comment(VIDEO, content="two")
            await stage.published()
            await until(lambda: tasks.contents == ["one", "two"])

    run(scenario)


def test_offsets_lie_in_postgres(stage: KafkaStage) -> None:
    async def scenario() -> None:
        tasks = Tasks()
        async with consuming(stage, tasks):
            for number in range(20):
                stage.writer.comment(VIDEO, content=str(number))
            await stage.published()
            await until(lambda: len(tasks.handled) == 20)
            await until(lambda: sum(place(stage.database_url).values()) == 20)
        assert {topic for topic, _ in place(stage.database_url)} == {TOPIC}

    run(scenario)


def test_an_offset_that_is_gone_means_the_beginning(stage: KafkaStage) -> None:
    async def scenario() -> None:
        tasks = Tasks()
        ends = {(TOPIC, partition): 1000 for partition in range(4)}
        with connect(stage.database_url, "test") as conn:
            set_positions(conn, SubscriptionKind.CONSUMER, "tasks", ends)
        stage.writer.comment(VIDEO, content="one")
        await stage.published()
        async with consuming(stage, tasks):
            await until(lambda: tasks.contents == ["one"])

    run(scenario)

"""The relay: what is told comes to lie in its topic, in order per key, once Kafka is there."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import Iterator
from uuid import uuid4

import pytest

from engine.log import event_id
from infra import metrics
from infra.cancellation import cancel
from infra.kafka import Publisher
from infra.settings.adapters import KafkaSettings
from projections.integration_events import TOPICS
from tests.integration.consuming_support import VIDEO, run
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer
from tests.integration.relay_support import (
    SEEN,
    Topics,
    relayed,
    relaying,
    watch,
    watch_everything,
    write_everything,
)
from tests.kafka_cluster import MockCluster, kafka_cluster
from tests.support import ended, until


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    with kafka_cluster() as started:
        yield started


@pytest.fixture
def url(database_url: str, writer: Writer) -> str:
    return database_url


def test_everything_is_told_under_its_topic(url: str, writer: Writer, cluster: MockCluster) -> None:
    async def scenario() -> None:
        count = write_everything(writer)
        watched = await watch_everything(url)
        async with (
            relaying(url, cluster.bootstrap_servers),
            Topics(cluster.bootstrap_servers) as told,
        ):
            await told.until(count + watched)
            await until(lambda: relayed(url) == {"events": writer.head, "telemetry": watched})
        assert len(told.records) == count + watched
        assert {record.partition.topic for record in told.records} == set(TOPICS)
        for record in told.records:
            headers = dict(record.headers)
            assert headers["ce_type"].decode() == record.partition.topic
            assert json.loads(record.value or b"")["id"] == headers["ce_id"].decode()

    run(scenario)


def test_what_is_written_meanwhile_comes_at_once(
    url: str, writer: Writer, cluster: MockCluster
) -> None:
    async def scenario() -> None:
        before = metrics.value("backlot_relay_messages_total", topic="comment.created")
        async with (
            relaying(url, cluster.bootstrap_servers, poll_seconds=60),
            Topics(cluster.bootstrap_servers) as told,
        ):
            for number in range(1, 4):
                comment = writer.comment(VIDEO)
                await told.until(number, seconds=5)
                assert told.ids[-1] == str(event_id(comment.id, 1))
            await watch(url, SEEN)
            await told.until(4, seconds=5)
        after = metrics.value("backlot_relay_messages_total", topic="comment.created")
        assert after - before == 3

    run(scenario)


def test_the_order_per_key_is_that_of_the_log(
    url: str, writer: Writer, cluster: MockCluster
) -> None:
    async def scenario() -> None:
        videos = [uuid4() for _ in range(5)]
        for number in range(60):
            writer.save(*(writer.wish("like", video, f"viewer-{number}") for video in videos))
        async with (
            relaying(url, cluster.bootstrap_servers),
            Topics(cluster.bootstrap_servers) as told,
        ):
            await told.until(300)
        positions = told.positions()
        assert {key for _, key in positions} == {str(video).encode() for video in videos}
        for found in positions.values():
            assert found == sorted(found)
        assert len(told.records) == 300

    run(scenario)


def test_a_restart_tells_nothing_again(url: str, writer: Writer, cluster: MockCluster) -> None:
    async def scenario() -> None:
        writer.comment(VIDEO)
        async with Topics(cluster.bootstrap_servers) as told:
            async with relaying(url, cluster.bootstrap_servers):
                await told.until(1)
                await until(lambda: relayed(url)["events"] == writer.head)
            writer.comment(VIDEO)
            async with relaying(url, cluster.bootstrap_servers):
                await told.until(2)
            await told.drain()
        assert len(told.records) == 2

    run(scenario)


def test_with_kafka_away_it_waits_tells_so_and_catches_up(
    url: str, writer: Writer, cluster: MockCluster
) -> None:
    async def scenario() -> None:
        before = metrics.value("backlot_relay_failures_total", step="kafka")
        async with (
            Topics(cluster.bootstrap_servers) as told,
            relaying(url, cluster.bootstrap_servers, acknowledged_seconds=0.5),
        ):
            writer.comment(VIDEO)
            await told.until(1)
            cluster.go_down()
            for _ in range(120):
                writer.comment(VIDEO)
            await until(
                lambda: metrics.value("backlot_relay_failures_total", step="kafka") > before + 1
            )
            await until(lambda: lag("events") >= 120 and lag("events", "seconds") > 0)
            assert relayed(url)["events"] < writer.head
            cluster.come_up()
            await told.until(121)
            await until(lambda: relayed(url)["events"] == writer.head)
            await until(lambda: lag("events") == 0 and lag("events", "seconds") == 0)

    run(scenario)


def test_the_broker_s_refusals_are_retried_in_order(
    url: str, writer: Writer, cluster: MockCluster
) -> None:
    async def scenario() -> None:
        request_timed_out, not_leader = 7, 6
        cluster.refuse_publishing(*([request_timed_out, not_leader] * 3))
        for number in range(50):
            writer.like(VIDEO, f"viewer-{number}")
        async with (
            relaying(url, cluster.bootstrap_servers),
            Topics(cluster.bootstrap_servers) as told,
        ):
            await told.until(50)
        ((_, found),) = told.positions().items()
        assert found == sorted(found)

    run(scenario)


def test_what_is_too_large_is_set_aside_and_holds_up_nothing(
    url: str, writer: Writer, cluster: MockCluster
) -> None:
    async def scenario() -> None:
        before = metrics.value("backlot_relay_undelivered_total", topic="comment.created")
        writer.comment(VIDEO, content="one")
        large = writer.comment(VIDEO, content="x" * 9_000)
        writer.comment(VIDEO, content="two")
        async with (
            relaying(url, cluster.bootstrap_servers, max_message_bytes=4_096),
            Topics(cluster.bootstrap_servers) as told,
        ):
            await told.until(2)
            await until(lambda: relayed(url)["events"] == writer.head)
        query = (
            "SELECT source, topic, message_id, key FROM backlot_dead_letters WHERE kind = 'relay'"
        )
        found = ("events", "comment.created", event_id(large.id, 1), str(large.id))
        assert rows(url, query) == [found]
        after = metrics.value("backlot_relay_undelivered_total", topic="comment.created")
        assert after - before == 1

    run(scenario)


def test_what_can_not_be_read_is_set_aside(url: str, writer: Writer, cluster: MockCluster) -> None:
    async def scenario() -> None:
        writer.comment(VIDEO)
        rows(url, "UPDATE backlot_events SET state = '{}' RETURNING 1")
        writer.comment(VIDEO)
        async with (
            relaying(url, cluster.bootstrap_servers),
            Topics(cluster.bootstrap_servers) as told,
        ):
            await told.until(1)
            await until(lambda: relayed(url)["events"] == 2)
        ((position, topic),) = rows(
            url, "SELECT position, topic FROM backlot_dead_letters WHERE kind = 'relay'"
        )
        assert (position, topic) == (1, "comment.posted.v1")

    run(scenario)


def test_one_of_two_relays_and_the_other_takes_over(
    url: str, writer: Writer, cluster: MockCluster
) -> None:
    async def scenario() -> None:
        servers = cluster.bootstrap_servers
        async with Topics(servers) as told:
            async with relaying(url, servers):
                writer.comment(VIDEO)
                await told.until(1)
                second = asyncio.create_task(linger(url, servers))
                await asyncio.sleep(0.5)
                for _ in range(20):
                    writer.comment(VIDEO)
                await told.until(21)
                await told.drain()
                assert len(told.records) == 21
            writer.comment(VIDEO)
            await told.until(22)
            await ended(second)

    async def linger(url: str, servers: str) -> None:
        async with relaying(url, servers):
            await asyncio.Event().wait()

    run(scenario)


def test_a_lost_connection_to_the_database_costs_nothing(
    url: str, writer: Writer, cluster: MockCluster
) -> None:
    async def scenario() -> None:
        async with (
            relaying(url, cluster.bootstrap_servers),
            Topics(cluster.bootstrap_servers) as told,
        ):
            writer.comment(VIDEO)
            await told.until(1)
            rows(
                url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
                "datname = current_database() AND application_name LIKE 'backlot relay%%'",
            )
            writer.comment(VIDEO)
            await told.until(2)

    run(scenario)


def lag(source: str, unit: str = "events") -> float:
    return metrics.value(f"backlot_relay_lag_{unit}", source=source)


def test_a_start_that_is_cancelled_leaves_nothing_open() -> None:
    async def begin_and_cancel() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.setblocking(False)
            servers = (f"127.0.0.1:{silent.getsockname()[1]}",)
            publisher = Publisher(KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=servers))
            starting = asyncio.create_task(publisher.start())
            connection, _ = await asyncio.get_running_loop().sock_accept(silent)
            with connection:
                assert await cancel(starting)
                await publisher.stop()

    asyncio.run(begin_and_cancel())
    # What is not closed would complain, which fails the test.
    gc.collect()

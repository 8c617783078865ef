"""Sinks that are killed in the middle of batches, and a database that goes down under them."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from uuid import UUID

import psycopg
import pytest

from infra import metrics
from infra.postgres.server import EmbeddedPostgres
from infra.settings.adapters import KafkaSettings
from tests.integration.analytics_sinks import SourceOf, from_kafka, from_log, keeping, record
from tests.integration.analytics_support import Event, History, expect, history, migrated, oracle
from tests.integration.consuming_support import KafkaStage, held, run, waits
from tests.integration.event_log import rows
from tests.integration.projection_support import Writer
from tests.integration.test_analytics_keeping import TELEMETRY, count
from tests.kafka_cluster import kafka_cluster
from tests.support import DEADLINE_SECONDS, until

pytestmark = pytest.mark.chaos

EVENTS, KILLS = 4_000, 10


def busy(video_ids: list[UUID]) -> History:
    """Many views and reports of few sessions, out of order, of videos that have an owner."""
    found = history(random.Random(7), EVENTS)
    names = dict(zip(map(str, found.videos), video_ids, strict=True))
    events: list[Event] = [
        (topic, id_, value | {"videoId": str(names[value["videoId"]])})
        for topic, id_, value in found.events
        if topic in TELEMETRY
    ]
    random.Random(8).shuffle(events)
    return History(events, dict.fromkeys(video_ids, ("ann", None)))


def start(*args: str) -> subprocess.Popen[str]:
    """Both sinks in a process of their own, once it stands ready: of a log, into a database,
    and from Kafka if its servers are given."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.analytics_sinks", *args],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    while "ready" not in process.stderr.readline():
        assert process.poll() is None
    return process


def kill(thread: Thread, kills: int, *args: str) -> set[int]:
    """Start sinks and kill them again, at least while the thread writes; returns how many rows
    there were each time."""
    migrated(args[1])
    chance, grown = random.Random(9), {0}
    thread.start()
    while kills > 0 or thread.is_alive():
        process = start(*args)
        time.sleep(chance.uniform(0, 0.3))
        chance.choice([at_any_time, within_a_batch])(args[1], process)
        assert process.stderr is not None
        process.stderr.close()
        kills -= 1
        grown.add(count(args[1]))
    thread.join()
    return grown


def at_any_time(url: str, process: subprocess.Popen[str]) -> None:
    """Kill it once something was counted, however slow the machine is, or after a while."""
    before, patience = count(url), time.monotonic() + 3
    while count(url) == before and time.monotonic() < patience:
        time.sleep(0.01)
    process.kill()
    process.wait(DEADLINE_SECONDS)


def within_a_batch(url: str, process: subprocess.Popen[str]) -> None:
    """Kill it when its rows are written and its sessions are not, so that it has not committed."""
    patience = time.monotonic() + 3
    with held(url, "analytics.sessions"):
        while not waits(url) and time.monotonic() < patience:
            time.sleep(0.01)
        process.kill()
        process.wait(DEADLINE_SECONDS)


def finish(log_url: str, url: str, told: History, source_of: SourceOf = from_log) -> None:
    """Have the rest counted by sinks that nobody kills."""

    async def the_rest() -> None:
        async with keeping(log_url, url=url, source_of=source_of):
            await until(lambda: count(url) == len(told.events))
            await until(lambda: len(rows(url, "SELECT 1 FROM analytics.videos")) == 3)

    run(the_rest)


def test_killed_at_random_they_count_everything_once(database_url: str, writer: Writer) -> None:
    told = busy([writer.video("ann").id for _ in range(3)])

    def write() -> None:
        for at in range(0, len(told.events), 50):
            asyncio.run(record(database_url, told.events[at : at + 50]))
            time.sleep(0.15)

    grown = kill(Thread(target=write, name="writing"), KILLS, database_url, database_url)
    # Some were killed after a commit of theirs, and before the next.
    assert len(grown) > 3
    finish(database_url, database_url, told)
    expect(database_url, oracle(told), told.events)


def test_killed_at_kafka_they_count_everything_once(database_url: str, writer: Writer) -> None:
    told = busy([writer.video("ann").id for _ in range(3)])
    with kafka_cluster() as cluster:
        servers = cluster.bootstrap_servers
        stage = KafkaStage(database_url, writer, KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(servers,)))

        async def publish(at: int) -> None:
            await record(database_url, told.events[at : at + 50])
            if at == 1000:
                # As a relay that was killed: all of it comes again, and what is lost later doesn't.
                stage.forget()
            await stage.published()

        def write() -> None:
            for at in range(0, len(told.events), 50):
                asyncio.run(publish(at))
                time.sleep(0.1)

        writing = Thread(target=write, name="writing")
        grown = kill(writing, KILLS, database_url, database_url, servers)
        assert len(grown) > 3
        finish(database_url, database_url, told, from_kafka(servers))
    expect(database_url, oracle(told), told.events)


def answers(url: str) -> bool:
    """Whether the database takes connections (again)."""
    try:
        return bool(rows(url, "SELECT 1"))
    except psycopg.OperationalError:
        return False


def test_the_database_goes_down_under_them(short_dir: Path) -> None:
    with EmbeddedPostgres(short_dir / "analytics") as server:
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute("CREATE DATABASE counted")
        url = server.url_of("counted")
        writer = Writer(url)
        told = busy([writer.video("ann").id for _ in range(3)])
        writer.close()
        half = len(told.events) // 2
        before = metrics.value("backlot_postgres_restarts_total")

        async def scenario() -> None:
            await record(url, told.events[:half])
            async with keeping(url):
                await until(lambda: count(url) > 100)
                assert server.pid is not None
                os.kill(server.pid, signal.SIGKILL)
                await until(lambda: metrics.value("backlot_postgres_restarts_total") > before)
                await until(lambda: answers(url))
                await record(url, told.events[half:])
                await until(lambda: count(url) == len(told.events))
                await until(lambda: len(rows(url, "SELECT 1 FROM analytics.videos")) == 3)

        run(scenario)
        expect(url, oracle(told), told.events)

"""Keepers that are killed in the middle of batches, and a database that goes down under them."""

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

from infra import metrics
from infra.postgres import EmbeddedPostgres
from tests.integration.analytics_support import Event, History, expect, history, oracle
from tests.integration.consuming_support import run, until
from tests.integration.keeping import keeping, record
from tests.integration.projection_support import Writer, rows
from tests.integration.test_analytics_keeping import TELEMETRY, count, installed

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


def start(url: str) -> subprocess.Popen[str]:
    """Both keepers in a process of their own, once it stands ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.keeping", url, url],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    while "ready" not in process.stderr.readline():
        assert process.poll() is None
    return process


def test_killed_at_random_they_count_everything_once(database_url: str, writer: Writer) -> None:
    installed(database_url)
    told = busy([writer.video("ann").id for _ in range(3)])
    chance, kills, grown = random.Random(9), 0, set()

    def write() -> None:
        for at in range(0, len(told.events), 50):
            asyncio.run(record(database_url, told.events[at : at + 50]))
            time.sleep(0.15)

    thread = Thread(target=write, name="writing")
    thread.start()
    while kills < KILLS or thread.is_alive():
        process = start(database_url)
        time.sleep(chance.uniform(0.1, 0.7))
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        assert process.stderr is not None
        process.stderr.close()
        kills += 1
        grown.add(count(database_url))
    thread.join()

    async def the_rest() -> None:
        async with keeping(database_url):
            await until(lambda: count(database_url) == len(told.events))
            await until(lambda: len(rows(database_url, "SELECT 1 FROM analytics.videos")) == 3)

    # Some were killed after a commit of theirs, and before the next.
    assert len(grown) > 3
    run(the_rest)
    expect(database_url, oracle(told), told.events)


def test_the_database_goes_down_under_them(short_dir: Path) -> None:
    with EmbeddedPostgres(short_dir / "analytics") as server:
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute("CREATE DATABASE counted")
        url = server.url_of("counted")
        writer = Writer(url)
        installed(url)
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
                await record(url, told.events[half:])
                await until(lambda: count(url) == len(told.events), 60)
                await until(lambda: len(rows(url, "SELECT 1 FROM analytics.videos")) == 3)

        run(scenario)
        expect(url, oracle(told), told.events)

"""A relay that is killed at any moment: everything is told, in order per key, under stable ids."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from uuid import uuid4

import pytest

from domain.comment import Comment
from tests.integration.consuming_support import run
from tests.integration.projection_support import Writer, origin
from tests.integration.relay_support import Topics, expected_ids, relayed, relaying
from tests.kafka_cluster import MockCluster, kafka_cluster
from tests.support import DEADLINE_SECONDS, until

pytestmark = pytest.mark.chaos

COMMENTS, EDITS = 12, 400
KILLS = 10


@contextmanager
def writing(writer: Writer) -> Iterator[Event]:
    """Comments that are edited all the time; what it gives is set when that is over."""
    over = Event()
    comments = [writer.comment(uuid4(), content="0") for _ in range(COMMENTS)]

    def write() -> None:
        for number in range(1, EDITS + 1):
            for comment in comments:
                comment.edit(str(number), origin("bob"))
            writer.save(*comments)
            time.sleep(0.005)
        over.set()

    thread = Thread(target=write, name="writing")
    thread.start()
    try:
        yield over
    finally:
        thread.join()


def start(database_url: str, servers: str) -> subprocess.Popen[str]:
    """A relay in a process of its own, once it stands ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.relay_support", database_url, servers],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    while "ready" not in process.stderr.readline():
        assert process.poll() is None
    return process


def end(process: subprocess.Popen[str], how: signal.Signals) -> None:
    process.send_signal(how)
    process.wait(DEADLINE_SECONDS)
    assert process.stderr is not None
    process.stderr.close()


def kill_relays(database_url: str, cluster: MockCluster, over: Event) -> None:
    """Start one relay after the other and kill each soon, until the writing is over.

    Every other one has just lost its broker: what it was sending is not on its way any more.
    """
    chance = random.Random(6)
    kills = 0
    while kills < KILLS or not over.is_set():
        process = start(database_url, cluster.bootstrap_servers)
        time.sleep(chance.uniform(0.05, 0.8))
        if kills % 2:
            cluster.go_down()
            time.sleep(0.1)
        end(process, signal.SIGKILL)
        cluster.come_up()
        kills += 1


def test_killed_at_random_it_loses_nothing_and_keeps_the_order(
    database_url: str, writer: Writer
) -> None:
    async def all_is_told(servers: str) -> None:
        wanted = expected_ids(database_url, [Comment.Posted.TOPIC, Comment.Edited.TOPIC])
        async with Topics(servers) as told, relaying(database_url, servers):
            await told.until(len(wanted))
            await until(lambda: relayed(database_url)["events"] == writer.head)
            await told.drain()
        assert set(told.ids) == wanted
        for found in told.positions().values():
            assert found == sorted(found)

    with kafka_cluster() as cluster:
        with writing(writer) as over:
            kill_relays(database_url, cluster, over)
        run(lambda: all_is_told(cluster.bootstrap_servers))

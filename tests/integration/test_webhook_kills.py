"""A sender of webhooks that is killed at any moment: everything comes, in order per key."""

from __future__ import annotations

import random
import secrets
import signal
import subprocess
import sys
import time
from threading import Event, Thread
from uuid import uuid4

import psycopg
import pytest

from engine.installation import make_tables
from engine.persons import Persons
from infra.key_encryption import GivenKey
from projections.integration_events import VIDEO_LIKED
from projections.webhooks import TABLES
from tests.integration.consuming_support import run
from tests.integration.projection_support import Writer
from tests.integration.relay_support import expected_ids
from tests.integration.webhook_support import Received, receiving, sending
from tests.support import DEADLINE_SECONDS, until

pytestmark = pytest.mark.chaos

VIDEOS, ROUNDS, KILLS = 12, 120, 6


def kill_senders(database_url: str, kek: str, over: Event) -> None:
    """Start one sender after the other and kill each soon, until the writing is over."""
    chance, kills = random.Random(7), 0
    while kills < KILLS or not over.is_set():
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.webhook_support", database_url, kek],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert process.stderr is not None
        while "ready" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(chance.uniform(0.05, 0.8))
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE_SECONDS)
        process.stderr.close()
        kills += 1


def write(writer: Writer, over: Event) -> None:
    videos = [uuid4() for _ in range(VIDEOS)]
    for number in range(ROUNDS):
        writer.save(*(writer.wish("like", video, f"viewer-{number}") for video in videos))
        time.sleep(0.01)
    over.set()


def test_killed_at_random_it_loses_nothing_and_keeps_the_order(
    database_url: str, writer: Writer
) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        make_tables(conn, TABLES)
    kek = secrets.token_hex(32)
    persons, over, chance = Persons(database_url, GivenKey(kek)), Event(), random.Random(8)
    persons.open()

    def answer(_: Received) -> tuple[int, dict[str, str]]:
        # Some take what they then say that they have not.
        return (200 if chance.random() < 0.97 else 503), {}

    async def scenario() -> None:
        async with receiving(answer) as receiver:
            async with sending(database_url, persons) as desk:
                await desk.add(receiver.url, VIDEO_LIKED)
            killing = Thread(target=kill_senders, args=(database_url, kek, over))
            writing = Thread(target=write, args=(writer, over))
            for each in (killing, writing):
                each.start()
            await until(lambda: not (killing.is_alive() or writing.is_alive()))
            receiver.answer = lambda _: (200, {})
            wanted = expected_ids(database_url, ["video_likes.liked.v1"])
            async with sending(database_url, persons, retry_seconds=(0.01,) * 30) as desk:
                await until(lambda: set(receiver.ids) == wanted)
                await until(lambda: not desk.deliveries("waiting"))
            for positions in receiver.by_key().values():
                assert len(positions) == ROUNDS
                assert positions == sorted(positions)

    try:
        run(scenario)
    finally:
        persons.close()

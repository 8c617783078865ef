"""Comments from post to translation through all roles, Kafka and Redis, while processes die."""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import httpx
import psutil
import psycopg
import pytest
import redis

from engine.log import event_id
from infra.kafka import Reader
from infra.postgres.server import EmbeddedPostgres
from infra.settings import Role
from infra.settings.adapters import KafkaSettings
from tests.e2e import plain
from tests.e2e.composed import Composed, composed
from tests.e2e.videos import read, upload
from tests.kafka_cluster import MockCluster, kafka_cluster
from tests.openai_server import OpenAIServer, openai_server
from tests.support import eventually

pytestmark = pytest.mark.chaos

ROLES = tuple(str(role) for role in Role if role is not Role.WORKERS)
VICTIMS = ("relay", "consumers", "tasks")
COMMENTS, TEXTS, KILLS, THREADS = 2_000, 400, 12, 8
# Only what a killed process had at hand has to wait for these.
SOON = {
    "TASK_HEARTBEAT_SECONDS": "2",
    "TRANSLATION_SWEEP_SECONDS": "2",
    "TRANSLATION_OVERDUE_SECONDS": "20",
}
EVENTS = """
SELECT notification_id, originator_id, originator_version FROM backlot_events
WHERE topic = ANY (%s) ORDER BY notification_id
"""


class Told(NamedTuple):
    """A message in Kafka."""

    topic: str
    key: bytes
    id: str
    position: int


# A few authors write thousands of comments.
UNLIMITED = {"RATE_LIMITS": "off", "TRANSLATION_USER_CALLS_PER_DAY": "1000000"}


class System(NamedTuple):
    """The running roles, and the servers that they use."""

    roles: Composed
    kafka: MockCluster
    provider: OpenAIServer
    database_url: str


@pytest.fixture(scope="module")
def system(short_dir: Path, postgres: EmbeddedPostgres) -> Iterator[System]:
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE pipeline")
    url = postgres.url_of("pipeline")
    with ExitStack() as stack:
        provider = stack.enter_context(openai_server())
        kafka = stack.enter_context(kafka_cluster())
        variables = {**SOON, **UNLIMITED, "OPENAI_BASE_URL": provider.url}
        address = kafka.bootstrap_servers
        started = composed(short_dir / "pipeline", url, ROLES, kafka=address, variables=variables)
        yield System(stack.enter_context(started), kafka, provider, url)


def post(client: httpx.Client, video: str, text: str) -> str:
    return str(read(client.post(f"/videos/{video}/comments", json={"content": text}))["commentId"])


def statuses(system: System, video: str) -> Counter[str]:
    """How many comments stand where, straight from the read model."""
    with psycopg.connect(system.database_url) as conn:
        found = conn.execute(
            "SELECT translation_status, count(*) FROM comments.comments WHERE video_id = %s "
            "GROUP BY 1",
            (UUID(video),),
        )
        return Counter(dict(found.fetchall()))


def test_processes_die_and_nothing_is_lost(system: System) -> None:
    rng = random.Random(2026)
    video = upload(system.roles.client("ann"))
    system.provider.delay = 0.02
    texts = [f"Este vídeo es precioso, amigos: capítulo {number}" for number in range(TEXTS)]
    wanted = [rng.choice(texts) for _ in range(COMMENTS)]
    over = threading.Event()

    def write(part: int) -> list[str]:
        with plain.client(
            base_url=system.roles.base_url, headers=dict(system.roles.client("bob").headers)
        ) as client:
            return [post(client, video, text) for text in wanted[part::THREADS]]

    with ThreadPoolExecutor(THREADS + 1) as pool:
        killing = pool.submit(kill_at_random, system, rng, over)
        posted = [id_ for ids in pool.map(write, range(THREADS)) for id_ in ids]
        deaths = killing.result()
    assert len(set(posted)) == COMMENTS
    eventually(lambda: statuses(system, video) == {"translated": COMMENTS})
    # A call is repeated only where the process that made it was killed.
    asked = {text: system.provider.by_text[text] for text in set(wanted)}
    assert min(asked.values()) == 1
    assert sum(asked.values()) - len(asked) <= deaths["tasks"] * 8
    assert published_in_order(system) == ""


def kill_at_random(system: System, rng: random.Random, over: threading.Event) -> Counter[str]:
    deaths: Counter[str] = Counter()
    for _ in range(KILLS):
        over.wait(rng.uniform(0.2, 1.5))
        victim = rng.choice(VICTIMS)
        system.roles.kill(victim)
        system.roles.start(victim)
        deaths[victim] += 1
    return deaths


def published_in_order(system: System) -> str:
    """What is wrong with what Kafka holds, compared with the log; nothing, or one line."""
    topics = {
        "comment.created": ["comment.posted.v1"],
        "comment.translated": ["comment.translated.v1"],
        "upload.completed": ["upload.completed.v1"],
    }
    expected: dict[str, set[str]] = {}
    with psycopg.connect(system.database_url) as conn:
        for topic, stored in topics.items():
            rows = conn.execute(EVENTS, (stored,)).fetchall()
            expected[topic] = {str(event_id(stream, version)) for _, stream, version in rows}
    deadline = time.monotonic() + 180
    while True:
        told = asyncio.run(everything(system, set(topics)))
        missing = {topic: len(ids - {each.id for each in told}) for topic, ids in expected.items()}
        if not any(missing.values()):
            foreign = {each.id for each in told} - {
                each for ids in expected.values() for each in ids
            }
            return f"foreign: {foreign}" if foreign else out_of_order(told)
        if time.monotonic() > deadline:
            return f"missing: {missing}"
        time.sleep(1)


def out_of_order(told: list[Told]) -> str:
    """The first message that was first told after a later one of its key; nothing, if none was."""
    places: dict[str, int] = {}
    latest: dict[tuple[str, bytes], int] = defaultdict(int)
    for each in told:
        if each.id in places:
            if places[each.id] != each.position:
                return f"{each} is told at another position too"
            continue
        places[each.id] = each.position
        if each.position < latest[each.topic, each.key]:
            return f"{each} is told too late"
        latest[each.topic, each.key] = each.position
    return ""


async def everything(system: System, topics: set[str]) -> list[Told]:
    """Each message of the topics from their beginning."""
    reader = Reader(
        KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(system.kafka.bootstrap_servers,)), topics
    )
    await reader.start({})
    told: list[Told] = []
    try:
        while records := await reader.read(2.0, 10_000):
            for record in records:
                headers = dict(record.headers)
                id_, position = headers["ce_id"].decode(), int(headers["position"])
                told.append(Told(record.partition.topic, record.key or b"", id_, position))
    finally:
        await reader.stop()
    return told


def test_kafka_is_down_and_posting_goes_on(system: System) -> None:
    system.provider.delay = 0.0
    bob = system.roles.client("bob")
    video = upload(bob)
    system.kafka.go_down()
    try:
        for number in range(20):
            post(bob, video, f"Sin Kafka también se puede escribir, número {number}")
        time.sleep(5)
        assert statuses(system, video) == {"pending": 20}
        page = plain.get(f"{system.roles.processes['relay'].admin_url}/metrics").text
        assert re.search(r'^backlot_relay_lag_events\{source="events"\} [1-9]', page, re.MULTILINE)
    finally:
        system.kafka.come_up()
    eventually(lambda: statuses(system, video) == {"translated": 20})
    assert published_in_order(system) == ""


def test_redis_hangs_and_posting_goes_on(system: System) -> None:
    bob = system.roles.client("bob")
    video = upload(bob)
    with redis.Redis.from_url(system.roles.redis_url) as client:
        server = psutil.Process(client.info("server")["process_id"])
    server.suspend()
    try:
        for number in range(20):
            post(bob, video, f"Sin Redis también se puede escribir, número {number}")
        time.sleep(5)
        assert statuses(system, video) == {"pending": 20}
        page = plain.get(f"{system.roles.processes['consumers'].admin_url}/metrics").text
        assert 'backlot_consumer_failures_total{consumer="translation",step="handler"}' in page
    finally:
        server.resume()
    eventually(lambda: statuses(system, video) == {"translated": 20})

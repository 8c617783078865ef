"""Publishing the event log to Kafka: against a bare producer that is handed the same messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import psycopg
import uvloop
from aiokafka import AIOKafkaProducer

from benchmarks.bench import Bench
from benchmarks.kafka_server import kafka_server
from benchmarks.log import comment_event
from benchmarks.results import Comparison, Side
from engine.connections import connect
from engine.subscription import Notifications
from infra.cancellation import alongside
from infra.kafka import BATCH_BYTES, LINGER_MS, Outgoing
from infra.settings import load_settings
from infra.settings.adapters import KafkaSettings
from projections.feeds import feeds
from projections.integration_events import TOPICS
from workers.relay import outgoing, subscribe_relay

OURS, BARE = "ours, from the event log", "bare aiokafka producer, messages ready"
LOOK_SECONDS = 0.01
MOST_SECONDS = 300.0
POSITION = "SELECT position FROM backlot_checkpoints WHERE kind = 'relay' AND source = 'events'"


def run(bench: Bench) -> list[Comparison]:
    """Rates in messages/s: acknowledged by Kafka, ours with the position moved in PostgreSQL."""
    events, rounds = bench.size(100_000, 2_000), bench.size(5, 1)
    messages = read(bench.log(events, comment_event))
    with kafka_server() as address:

        def ours(_: int) -> float:
            return len(messages) / uvloop.run(
                relay(bench.log(events, comment_event), address, events)
            )

        def bare(_: int) -> float:
            return len(messages) / uvloop.run(publish(messages, address))

        rates = bench.interleave(rounds, {OURS: ours, BARE: bare})
    sides = {name: Side(name, values) for name, values in rates.items()}
    return [Comparison("relaying", "messages/s", sides[OURS], sides[BARE], at_least=0.5)]


def read(url: str) -> list[Outgoing]:
    """All messages of a log."""
    with connect(url, "bench") as conn:
        (feed, _) = feeds(TOPICS, batch_events=5_000)
        found: list[Outgoing] = []
        after = 0
        while (stretch := feed.read(conn, after)).until > after:
            found += [outgoing(message) for message in stretch.messages]
            after = stretch.until
        return found


async def relay(url: str, address: str, until: int) -> float:
    """Relay a whole log, as a process of Backlot does; seconds, the start included."""
    with psycopg.connect(url, autocommit=True) as conn:
        notifications = Notifications(url)
        relaying = subscribe_relay(
            url,
            KafkaSettings(KAFKA_BOOTSTRAP_SERVERS=(address,)),
            notifications=notifications,
            batch_events=load_settings({}).kafka.relay_batch_events,
        )
        started = time.perf_counter()
        async with alongside(notifications.run(), relaying.run()):
            await _until(conn, until, started + MOST_SECONDS)
            return time.perf_counter() - started


async def publish(messages: Sequence[Outgoing], address: str) -> float:
    """Send them as fast as aiokafka can, with our settings for it; seconds, the start included."""
    started = time.perf_counter()
    async with AIOKafkaProducer(
        bootstrap_servers=address,
        enable_idempotence=True,
        acks="all",
        linger_ms=LINGER_MS,
        max_batch_size=BATCH_BYTES,
    ) as producer:
        sent = [
            await producer.send(topic, value, key=key, headers=headers)
            for topic, key, value, headers in messages
        ]
        await asyncio.gather(*sent)
        return time.perf_counter() - started


async def _until(conn: psycopg.Connection[tuple[int]], position: int, deadline: float) -> None:
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        with suppress(psycopg.errors.UndefinedTable):
            row = conn.execute(POSITION).fetchone()
            if row is not None and row[0] >= position:
                return
        if time.perf_counter() > deadline:
            raise TimeoutError(f"The relay did not reach {position} in {MOST_SECONDS:.0f} s.")

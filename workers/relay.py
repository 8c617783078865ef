"""Publishes what is recorded to Kafka: the log is the outbox, its position says what is published.

The position moves once Kafka has acknowledged; what was on its way in a crash is published again,
under the same id. One process relays at a time, and another takes over when that one is gone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import psycopg
import structlog
from psycopg import Connection
from psycopg.rows import TupleRow

from engine import checkpoints, dead_letters
from engine.checkpoints import Checkpoint, SubscriptionKind, Superseded
from engine.connections import Backoff, LeaderLock, ThreadedConnection
from engine.dead_letters import RejectedMessage
from engine.subscription import Handler, Notifications, Place, Prefetch, Restart, Subscription
from infra.cancellation import to_the_end
from infra.errors import describe
from infra.kafka import KafkaAway, Outgoing, Publisher, Sent
from infra.kafka_topics import TopicsUnavailable, limit_terms
from infra.metrics import counter, gauge
from infra.settings.adapters import KafkaSettings
from projections.feeds import Feed, Stretch, feeds
from projections.integration_events import TOPICS, Message, topics_with_texts
from workers.sources import RELAY, FeedBatch, FeedSource, published_positions


def begin(conn: Connection[TupleRow]) -> dict[str, int]:
    """Return how far each feed is published; at first, nothing is."""
    checkpoints.begin(conn, SubscriptionKind.RELAY, RELAY, ("events", "telemetry"))
    return published_positions(conn)


def move(
    conn: Connection[TupleRow],
    feed: str,
    before: int,
    after: int,
    undelivered: Iterable[RejectedMessage],
) -> None:
    """Advance the checkpoint, and set aside what could not be published; raise Superseded."""
    with conn.transaction(), conn.cursor() as cursor:
        dead_letters.reject(conn, SubscriptionKind.RELAY, RELAY, undelivered)
        Checkpoint(SubscriptionKind.RELAY, RELAY, source=feed).move(cursor, before, after)


log = structlog.get_logger(__name__)

# Where many write, what comes within this time shares a batch.
GATHER_SECONDS = 0.01
MEASURE_SECONDS = 1.0
# Enough to find the oldest message that waits, few enough to look every second.
MEASURE_EVENTS = 100
# How often the terms of topics are looked at, also after a failure, and how long Kafka may take.
TERMS_SECONDS, AGAIN_SECONDS, PATIENCE_SECONDS = 3600.0, 60.0, 10.0

RELAYED = counter(
    "backlot_relay_messages",
    "Messages that Kafka has acknowledged, by topic.",
    ("topic",),
)
RELAY_LAG = gauge(
    "backlot_relay_lag_events",
    "Positions between the end of what is followed (events, telemetry) and what is published.",
    ("source",),
)
RELAY_LAG_SECONDS = gauge(
    "backlot_relay_lag_seconds",
    "Age of the oldest message that is not published; 0 when it is caught up.",
    ("source",),
)
RELAY_FAILURES = counter(
    "backlot_relay_failures",
    "Times that the relay could not go on, and tried again later (kafka, database, other).",
    ("step",),
)
KEPT_TOO_LONG = gauge(
    "backlot_topics_kept_too_long",
    "Topics that keep texts for longer than KAFKA_TEXT_RETENTION_DAYS, as far as the relay knows.",
)
RELAY_UNDELIVERED = counter(
    "backlot_relay_undelivered",
    "Messages that can't be published at all, and were set aside, by topic.",
    ("topic",),
)


class RelayCheckpoint:
    """How far each source is published."""

    def prepare(self, conn: Connection[TupleRow]) -> None:
        begin(conn)

    def look(self, conn: Connection[TupleRow]) -> Mapping[Place, int]:
        return {(source, 0): position for source, position in published_positions(conn).items()}


class Relay(Handler[FeedBatch[Outgoing]]):
    """Publishes batch after batch: while one is acknowledged, the next is sent and one is read."""

    def __init__(
        self,
        kafka: KafkaSettings,
        open_publisher: Callable[[], Publisher],
        measured: Sequence[Feed],
        wake: asyncio.Event,
    ) -> None:
        """`measured` are the feeds whose lag is told, `wake` makes the source look at once."""
        self._kafka = kafka
        self._open_publisher = open_publisher
        self._measured = measured
        self._wake = wake
        self._publisher: Publisher | None = None
        self._on_its_way: list[OnItsWay] = []
        self._places: dict[str, int] = {}
        self._backoff = Backoff()

    async def start(self, conn: ThreadedConnection) -> None:
        self._places = await conn.do(begin)
        self._publisher = self._open_publisher()
        try:
            await self._publisher.start()
        except KafkaAway as error:
            await self._begin_again(self._publisher, error)
        log.info("relay_active", places=self._places)

    async def handle(self, conn: ThreadedConnection, batch: FeedBatch[Outgoing]) -> None:
        if self._publisher is None:
            raise RuntimeError("It has not been started.")
        before, self._on_its_way = self._on_its_way, []
        try:
            for feed, (stretch, messages) in batch.by_feed.items():
                sent_until = {each.feed: each.stretch.until for each in before}
                if stretch.until > sent_until.get(feed, self._places.get(feed, 0)):
                    sent = await self._publisher.send(messages)
                    self._on_its_way.append(OnItsWay(feed, stretch, sent))
                    # So that it is settled soon, also where nothing comes behind it.
                    self._wake.set()
            for each in before:
                await self._settle(conn, self._publisher, each)
        except KafkaAway as error:
            await self._begin_again(self._publisher, error)
        finally:
            for each in before:
                each.sent.forget()

    async def stop(self) -> None:
        for each in self._on_its_way:
            each.sent.forget()
        self._on_its_way = []
        if self._publisher is not None:
            await self._publisher.stop()

    def beside(self, conn: ThreadedConnection) -> Sequence[Coroutine[Any, Any, None]]:
        return [self._measure(conn), keep_terms(self._kafka)]

    def failed(self, error: Exception) -> None:
        """Count and log what stopped the relay."""
        if isinstance(error, psycopg.Error | Superseded):
            _tell_failure("database", error)
        else:
            _tell_failure("other", error)
            log.error("relay_broke", exc_info=error)

    async def _begin_again(self, publisher: Publisher, error: KafkaAway) -> NoReturn:
        _tell_failure("kafka", error)
        await to_the_end(publisher.abandon())
        raise Restart(self._backoff.next()) from error

    async def _settle(
        self, conn: ThreadedConnection, publisher: Publisher, on_its_way: OnItsWay
    ) -> None:
        """Once it is acknowledged, write down that it is published, and what could not be."""
        feed, stretch, sent = on_its_way
        refused = await publisher.acknowledged(sent)
        undelivered = [
            _undelivered(feed, stretch.messages[each.number], each.reason) for each in refused
        ]
        undelivered += [
            RejectedMessage(feed, 0, item.position, item.topic, item.error)
            for item in stretch.unreadable
        ]
        before = self._places.get(feed, 0)
        await conn.do(move, feed, before, stretch.until, undelivered)
        self._places[feed] = stretch.until
        self._backoff.reset()
        _count(stretch, {each.number for each in refused}, undelivered)

    async def _measure(self, conn: ThreadedConnection) -> None:
        """Measure the lag every second, also while Kafka is away."""
        try:
            while True:
                for feed in self._measured:
                    place = self._places.get(feed.name, 0)
                    stretch = await conn.do(feed.read, place)
                    RELAY_LAG.labels(feed.name).set(stretch.head - place)
                    RELAY_LAG_SECONDS.labels(feed.name).set(stretch.age_seconds)
                await asyncio.sleep(MEASURE_SECONDS)
        finally:
            for feed in self._measured:
                RELAY_LAG.remove(feed.name)
                RELAY_LAG_SECONDS.remove(feed.name)


async def keep_terms(kafka: KafkaSettings) -> NoReturn:
    """Limit how long topics keep texts, again and again: topics come to be, and are changed."""
    topics = topics_with_texts()
    try:
        while True:
            pause = TERMS_SECONDS
            try:
                unlimited = await limit_terms(
                    kafka, topics, kafka.text_retention, seconds=PATIENCE_SECONDS
                )
            except TopicsUnavailable as error:
                log.warning("topic_terms_unknown", error=str(error))
                unlimited, pause = dict.fromkeys(topics, ""), AGAIN_SECONDS
            else:
                for topic, settings in unlimited.items():
                    log.warning("topic_kept_too_long", topic=topic, settings=settings)
            KEPT_TOO_LONG.set(len(unlimited))
            await asyncio.sleep(pause)
    finally:
        KEPT_TOO_LONG.set(0)


def subscribe_relay(
    database_url: str,
    kafka: KafkaSettings,
    *,
    notifications: Notifications,
    batch_events: int = 1000,
    poll_seconds: float = 1.0,
    acknowledged_seconds: float = 30.0,
    max_message_bytes: int = 1024 * 1024,
) -> Subscription[FeedBatch[Outgoing]]:
    """Return the relay of the event log and the telemetry; of each, three batches are in memory.

    `poll_seconds` is how late it may be where a notification was lost. After
    `acknowledged_seconds` without an answer Kafka counts as away.
    """
    wake = notifications.subscribe()
    source = FeedSource(
        feeds(TOPICS, batch_events=batch_events),
        wake=wake,
        form=lambda _, message: outgoing(message),
        gather_seconds=GATHER_SECONDS,
    )

    def open_publisher() -> Publisher:
        return Publisher(
            kafka, acknowledged_seconds=acknowledged_seconds, max_message_bytes=max_message_bytes
        )

    measured = feeds(TOPICS, batch_events=MEASURE_EVENTS)
    relay = Relay(kafka, open_publisher, measured, wake)
    return Subscription(
        database_url,
        "relay",
        source=Prefetch(source),
        checkpoint=RelayCheckpoint(),
        handler=relay,
        on_error=relay.failed,
        leader=LeaderLock.of_job("relay"),
        reading_url=database_url,
        poll_seconds=poll_seconds,
    )


class OnItsWay(NamedTuple):
    """A stretch of a feed that was sent, and what is to be acknowledged of it."""

    feed: str
    stretch: Stretch
    sent: Sent


def outgoing(message: Message) -> Outgoing:
    """Return a message as it is put into its topic."""
    return Outgoing(message.topic, message.key.encode(), message.value, message.headers())


def _tell_failure(step: str, error: Exception) -> None:
    RELAY_FAILURES.labels(step).inc()
    log.warning("relay_interrupted", step=step, error=describe(error))


def _count(stretch: Stretch, refused: set[int], undelivered: list[RejectedMessage]) -> None:
    topics = (each.topic for index, each in enumerate(stretch.messages) if index not in refused)
    for topic, count in Counter(topics).items():
        RELAYED.labels(topic).inc(count)
    for each in undelivered:
        RELAY_UNDELIVERED.labels(each.topic).inc()
        log.error(
            "message_undelivered", topic=each.topic, position=each.position, reason=each.error
        )


def _undelivered(source: str, message: Message, reason: str) -> RejectedMessage:
    place = source, 0, message.position, message.topic, reason
    return RejectedMessage(*place, message.id, message.key, message.value)

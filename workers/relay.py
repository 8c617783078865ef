"""Publishes what is recorded to Kafka: the log is the outbox, and its position says what is told.

The position moves once Kafka has acknowledged; what was on its way in a crash is told again, under
the same id. One process relays at a time, and another takes over when that one is gone.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import NamedTuple

import psycopg
import structlog

from engine.checkpoints import Superseded
from engine.dead_letters import Rejected
from infra import metrics
from infra.cancellation import cancel, to_the_end, together
from infra.codec import EventMapper
from infra.integration import TOPICS, Message
from infra.kafka import KafkaAway, KafkaOptions, Outgoing, Publisher, Sent
from projections.connecting import Backoff
from projections.poison import describe
from workers import relay_places
from workers.following import Feed, Stretch, feeds
from workers.leading import Lead, leading
from workers.waking import Waker, woken

log = structlog.get_logger(__name__)

# Where many write, what comes within this time shares a batch.
GATHER_SECONDS = 0.01
MEASURE_SECONDS = 1.0
# Enough to find the oldest message that waits, few enough to look every second.
MEASURE_EVENTS = 100


class Relay:
    """Follows the event log and the telemetry: of each, at most three batches are in memory."""

    def __init__(
        self,
        database_url: str,
        options: KafkaOptions,
        *,
        waker: Waker,
        mapper: EventMapper,
        batch_events: int = 1000,
        poll_seconds: float = 1.0,
        acknowledged_seconds: float = 30.0,
        max_message_bytes: int = 1024 * 1024,
    ) -> None:
        """`poll_seconds` is how late it may be where a notification was lost.

        After `acknowledged_seconds` without an answer Kafka counts as away.
        """
        self._database_url = database_url
        self._options = options
        self._feeds = feeds(TOPICS, mapper=mapper, batch_events=batch_events)
        self._measured = feeds(TOPICS, mapper=mapper, batch_events=MEASURE_EVENTS)
        self._wakes = {feed.name: waker.subscribe() for feed in self._feeds}
        self._poll_seconds = poll_seconds
        self._acknowledged_seconds = acknowledged_seconds
        self._max_message_bytes = max_message_bytes
        self._backoff = Backoff()
        self._places: dict[str, int] = {}

    async def run(self) -> None:
        """Relay until cancelled; goes on by itself after whatever stopped it."""
        while True:
            try:
                async with leading(self._database_url, "relay") as lead:
                    await self._lead(lead)
            except (psycopg.Error, Superseded) as error:
                self._failed("database", error)
            except Exception as error:
                self._failed("other", error)
                log.exception("relay_broke")
            await asyncio.sleep(self._backoff.next())

    async def _lead(self, lead: Lead) -> None:
        self._places = await lead.do(relay_places.begin)
        log.info("relay_active", places=self._places)
        try:
            await together(self._measure(lead), self._keep_publishing(lead))
        finally:
            for feed in self._feeds:
                metrics.RELAY_LAG.remove(feed.name)
                metrics.RELAY_LAG_SECONDS.remove(feed.name)

    async def _keep_publishing(self, lead: Lead) -> None:
        while True:
            publisher = Publisher(
                self._options,
                acknowledged_seconds=self._acknowledged_seconds,
                max_message_bytes=self._max_message_bytes,
            )
            try:
                await publisher.start()
                await together(*(self._follow(feed, lead, publisher) for feed in self._feeds))
            except KafkaAway as error:
                self._failed("kafka", error)
                await to_the_end(publisher.abandon())
            finally:
                await to_the_end(publisher.stop())
            await asyncio.sleep(self._backoff.next())

    async def _follow(self, feed: Feed, lead: Lead, publisher: Publisher) -> None:
        """Publish stretch after stretch: while one is acknowledged, the next is read and sent."""
        after = self._place(feed)
        before: OnItsWay | None = None
        ahead = asyncio.create_task(lead.do(feed.read, after))
        try:
            while True:
                stretch = await ahead
                settled, before = before, None
                if stretch.until > after:
                    messages = [outgoing(message) for message in stretch.messages]
                    before = OnItsWay(stretch, await publisher.send(messages))
                elif settled is None:
                    await woken(self._wakes[feed.name], self._poll_seconds)
                else:
                    await asyncio.sleep(GATHER_SECONDS)
                after = stretch.until
                ahead = asyncio.create_task(lead.do(feed.read, after))
                if settled is not None:
                    await self._settle(feed, settled, lead, publisher)
        finally:
            if before is not None:
                before.sent.forget()
            # Whatever it found, or failed with: what comes next reads it again.
            await cancel(ahead)

    async def _settle(
        self, feed: Feed, on_its_way: OnItsWay, lead: Lead, publisher: Publisher
    ) -> None:
        """Once it is acknowledged, write down that it is published, and what could not be."""
        stretch, sent = on_its_way
        refused = await publisher.acknowledged(sent)
        undelivered = [
            _undelivered(feed.name, stretch.messages[each.number], each.reason) for each in refused
        ]
        undelivered += [
            Rejected(feed.name, 0, item.position, item.topic, item.error)
            for item in stretch.unreadable
        ]
        place = self._place(feed)
        await lead.do(relay_places.move, feed.name, place, stretch.until, undelivered)
        self._places[feed.name] = stretch.until
        self._backoff.reset()
        _count(stretch, {each.number for each in refused}, undelivered)

    async def _measure(self, lead: Lead) -> None:
        """Make the lag known every second, also while Kafka is away."""
        while True:
            for feed in self._measured:
                place = self._place(feed)
                stretch = await lead.do(feed.read, place)
                metrics.RELAY_LAG.labels(feed.name).set(stretch.head - place)
                metrics.RELAY_LAG_SECONDS.labels(feed.name).set(_age(stretch))
            await asyncio.sleep(MEASURE_SECONDS)

    def _place(self, feed: Feed) -> int:
        return self._places.get(feed.name, 0)

    def _failed(self, step: str, error: Exception) -> None:
        metrics.RELAY_FAILURES.labels(step).inc()
        log.warning("relay_interrupted", step=step, error=describe(error))


class OnItsWay(NamedTuple):
    """A stretch that was sent, and what is to be acknowledged of it."""

    stretch: Stretch
    sent: Sent


def outgoing(message: Message) -> Outgoing:
    """A message as it is put into its topic."""
    return Outgoing(message.topic, message.key.encode(), message.value, message.headers())


def _count(stretch: Stretch, refused: set[int], undelivered: list[Rejected]) -> None:
    told: dict[str, int] = {}
    for index, message in enumerate(stretch.messages):
        if index not in refused:
            told[message.topic] = told.get(message.topic, 0) + 1
    for topic, count in told.items():
        metrics.RELAYED.labels(topic).inc(count)
    for each in undelivered:
        metrics.RELAY_UNDELIVERED.labels(each.topic).inc()
        log.error(
            "message_undelivered", topic=each.topic, position=each.position, reason=each.error
        )


def _undelivered(source: str, message: Message, reason: str) -> Rejected:
    place = source, 0, message.position, message.topic, reason
    return Rejected(*place, message.id, message.key, message.value)


def _age(stretch: Stretch) -> float:
    if stretch.oldest is None:
        return 0.0
    return max(0.0, (datetime.now(UTC) - stretch.oldest).total_seconds())

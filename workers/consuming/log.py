"""Messages straight from the event store: the shape without Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import orjson

from engine.connections import ThreadedConnection
from engine.messages import Dead, Fetched, Place, Raw, Received, Unreadable
from infra.codec import EventMapper
from infra.integration import Message
from workers.following import Feed, FeedMessages, FeedSource, Unpublishable, feeds

BATCH_EVENTS = 500


class LogSource:
    """Follows the log, and the telemetry where a topic comes from it, by position."""

    kind = "log"

    def __init__(
        self,
        topics: frozenset[str],
        *,
        wake: asyncio.Event,
        mapper: EventMapper,
        batch_events: int = BATCH_EVENTS,
        following: Sequence[Feed] | None = None,
    ) -> None:
        """`following` is what it reads where that is not what the topics tell."""
        of_topics = following or feeds(topics, mapper=mapper, batch_events=batch_events)
        self._feeds = FeedSource(of_topics, wake=wake, tell=received)

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        await self._feeds.start(conn, places)

    async def fetch(self, at_most_seconds: float) -> Fetched:
        found = await self._feeds.fetch(at_most_seconds)
        return Fetched(
            [message for each in found.by_feed.values() for message in each.messages],
            [_dead(name, item) for name, each in found.by_feed.items() for item in each.unreadable],
            {(name, 0): each.until for name, each in found.by_feed.items()},
            found.lag,
            max([0.0, *map(_age, found.by_feed.values())]),
        )

    async def reread(self, raw: Raw) -> Received:
        found = await self._feeds.read(raw.place[0], raw.offset - 1)
        if found is None:
            raise Unreadable(f"This consumer does not follow {raw.place[0]}.")
        for message in found.messages:
            if message.position == raw.offset:
                return message
        told = [each.error for each in found.unreadable if each.position == raw.offset]
        raise Unreadable(told[0] if told else "It is not there any more.")

    async def bury(self, consumer: str, dead: Sequence[Dead]) -> None:
        """Nobody else watches the log."""

    async def stop(self) -> None:
        await self._feeds.stop()


def received(feed: str, message: Message) -> Received:
    """A message as its consumer gets it."""
    return Received(
        message.id,
        message.topic,
        message.key,
        orjson.loads(message.value),
        message.position,
        message.correlation_id,
        partial(_raw, feed, message),
    )


def _raw(feed: str, message: Message) -> Raw:
    headers = {name: value.decode() for name, value in message.headers()}
    return Raw(message.topic, (feed, 0), message.position, message.key, message.value, headers)


def _age(found: FeedMessages[Received]) -> float:
    oldest = found.stretch.oldest
    return (datetime.now(UTC) - oldest).total_seconds() if oldest else 0.0


def _dead(feed: str, item: Unpublishable) -> Dead:
    return Dead(Raw(item.topic, (feed, 0), item.position), item.error)

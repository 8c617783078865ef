"""Where messages come from: the event log and the telemetry, followed by position, or Kafka.

Kafka is read from offsets that PostgreSQL stores.

A query that waits for a position of the log is told of it through the relay: what the relay had
published lay in the topics before it noted so, so that a source that has read the topics to their
ends since then has all of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Generic, NamedTuple, TypeVar
from uuid import UUID

import orjson
import structlog
from psycopg import Connection
from psycopg.rows import TupleRow
from pydantic import ValidationError

from engine import checkpoints
from engine.checkpoints import SubscriptionKind
from engine.connections import ThreadedConnection
from engine.messages import DeadMessage, IncomingMessage, MessageBatch, RawMessage, Unreadable
from engine.subscription import Place, woken
from infra.kafka import Outgoing, Partition, Publisher, Reader, Record
from infra.settings.adapters import KafkaSettings
from projections.analytics.queries import BY_KAFKA
from projections.feeds import Feed, Stretch
from projections.integration_events import (
    Message,
    adapter_of,
    dead_letters,
)

log = structlog.get_logger(__name__)

RELAY = "relay"

# Where many write, what comes within this time shares a batch; where nothing of it was wanted, a
# consumer of messages looks again after the longer one.
GATHER_SECONDS = 0.02
GATHER_UNWANTED_SECONDS = 0.1
# How often new partitions are looked for.
LOOK_SECONDS = 10.0
# How long a read goes on that nobody cuts short, and how often the relay is looked at for nobody.
READ_SECONDS = 0.1
RELAY_SECONDS = 1.0

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class FeedBatch(Generic[M]):
    """What lay behind the positions in each feed, and its messages in the follower's form."""

    by_feed: Mapping[str, tuple[Stretch, Sequence[M]]]

    @property
    def lag(self) -> int:
        """Return how many positions lie behind the batch."""
        return sum(stretch.head - stretch.until for stretch, _ in self.by_feed.values())


class FeedSource(Generic[M]):
    """Follows feeds side by side, by position; `form` makes of their messages what is wanted."""

    def __init__(
        self,
        feeds: Sequence[Feed],
        *,
        wake: asyncio.Event,
        form: Callable[[str, Message], M],
        gather_seconds: float = GATHER_SECONDS,
        gather_unwanted_seconds: float = GATHER_SECONDS,
    ) -> None:
        self._feeds = {feed.name: feed for feed in feeds}
        self._wake = wake
        self._form = form
        self._gather_seconds = gather_seconds
        self._gather_unwanted_seconds = gather_unwanted_seconds
        self._pause = 0.0
        self._conn: ThreadedConnection | None = None
        self._positions: dict[str, int] = {}

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        self._conn = conn
        self._positions = {name: places.get((name, 0), 0) for name in self._feeds}
        self._pause = 0.0
        self._wake.set()

    async def fetch(self, at_most_seconds: float) -> FeedBatch[M]:
        if self._pause:
            await asyncio.sleep(self._pause)
        await woken(self._wake, at_most_seconds)
        batch = FeedBatch(await self.read(dict(self._positions)))
        reached = {name: stretch.until for name, (stretch, _) in batch.by_feed.items()}
        self._pause = 0.0
        if batch.lag == 0 and reached != self._positions:
            wanted = any(stretch.messages for stretch, _ in batch.by_feed.values())
            self._pause = self._gather_seconds if wanted else self._gather_unwanted_seconds
        self._positions = reached
        if batch.lag:
            self._wake.set()
        return batch

    async def read(self, positions: Mapping[str, int]) -> Mapping[str, tuple[Stretch, Sequence[M]]]:
        """Return what lies behind positions of feeds, of those that are followed."""
        if self._conn is None:
            raise RuntimeError("The source was not started.")
        return await self._conn.do(self._read, positions)

    async def stop(self) -> None:
        self._conn = None

    def _read(
        self, conn: Connection[TupleRow], positions: Mapping[str, int]
    ) -> Mapping[str, tuple[Stretch, Sequence[M]]]:
        found: dict[str, tuple[Stretch, Sequence[M]]] = {}
        for name in [name for name in positions if name in self._feeds]:
            stretch = self._feeds[name].read(conn, positions[name])
            # Here, in the thread: thousands of messages would hold up whatever else is served.
            found[name] = stretch, [self._form(name, message) for message in stretch.messages]
        return found


class LogSource:
    """Follows the log, and the telemetry where a topic comes from it, by position."""

    kind = "log"

    def __init__(self, feeds: Sequence[Feed], *, wake: asyncio.Event) -> None:
        self._feeds = FeedSource(
            feeds, wake=wake, form=received, gather_unwanted_seconds=GATHER_UNWANTED_SECONDS
        )

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        await self._feeds.start(conn, places)

    async def fetch(self, at_most_seconds: float) -> MessageBatch:
        batch = await self._feeds.fetch(at_most_seconds)
        found = batch.by_feed
        return MessageBatch(
            [message for _, messages in found.values() for message in messages],
            [
                DeadMessage(RawMessage(item.topic, (name, 0), item.position), item.error)
                for name, (stretch, _) in found.items()
                for item in stretch.unreadable
            ],
            {(name, 0): stretch.until for name, (stretch, _) in found.items()},
            batch.lag,
            max([0.0, *(stretch.age_seconds for stretch, _ in found.values())]),
        )

    async def reread(self, raw: RawMessage) -> IncomingMessage:
        name = raw.place[0]
        found = await self._feeds.read({name: raw.offset - 1})
        if name not in found:
            raise Unreadable(f"This consumer does not follow {name}.")
        stretch, messages = found[name]
        for message in messages:
            if message.position == raw.offset:
                return message
        errors = [each.error for each in stretch.unreadable if each.position == raw.offset]
        raise Unreadable(errors[0] if errors else "It is not there any more.")

    async def bury(self, consumer: str, dead: Sequence[DeadMessage]) -> None:
        """Do nothing: nobody else watches the log."""

    async def stop(self) -> None:
        await self._feeds.stop()


def received(feed: str, message: Message) -> IncomingMessage:
    """Return a message as its consumer gets it."""
    return IncomingMessage(
        message.id,
        message.topic,
        message.key,
        orjson.loads(message.value),
        message.position,
        message.correlation_id,
        partial(_raw_of_message, feed, message),
    )


def _raw_of_message(feed: str, message: Message) -> RawMessage:
    headers = {name: value.decode() for name, value in message.headers()}
    return RawMessage(
        message.topic, (feed, 0), message.position, message.key, message.value, headers
    )


def published_positions(conn: Connection[TupleRow]) -> dict[str, int]:
    """Return how far each feed is published; empty where no relay has ever run."""
    found = checkpoints.positions(conn, SubscriptionKind.RELAY, RELAY)
    return {feed: position for (feed, _), position in found.items()}


class RelayPlaces(NamedTuple):
    """Up to where the relay had published, as places; it is all before these ends of the topics."""

    places: Mapping[Place, int]
    ends: Mapping[Partition, int]


class KafkaSource:
    """Reads topics without a group: one process is active per consumer, and knows its offsets."""

    kind = "kafka"

    def __init__(
        self,
        topics: frozenset[str],
        kafka: KafkaSettings,
        *,
        batch_messages: int,
        hurried: asyncio.Event | None = None,
    ) -> None:
        """With `hurried`, set while a query waits, the source gives positions of the log too."""
        self._hurried = hurried
        self._conn: ThreadedConnection | None = None
        self._relayed: RelayPlaces | None = None
        self._relay_seen = 0.0
        self._topics = topics
        self._kafka = kafka
        self._batch_messages = batch_messages
        self._reader = Reader(kafka, topics)
        self._looked = 0.0

    async def start(self, conn: ThreadedConnection, places: Mapping[Place, int]) -> None:
        offsets = {
            Partition(topic, number): offset
            for (topic, number), offset in places.items()
            if topic in self._topics
        }
        self._conn, self._relayed = conn, None
        await self._reader.start(offsets)

    async def fetch(self, at_most_seconds: float) -> MessageBatch:
        await self._look_at_relay()
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._reader.look_for_partitions()
            self._looked = time.monotonic()
        at_most_seconds = min(at_most_seconds, READ_SECONDS) if self._hurried else at_most_seconds
        records = await self._reader.read(at_most_seconds, self._batch_messages)
        relayed = self._relayed
        through = relayed.places if relayed and self._reader.has_read(relayed.ends) else {}
        return _parse_all(records, through, self._reader.lag())

    async def reread(self, raw: RawMessage) -> IncomingMessage:
        return parse(raw)

    async def bury(self, consumer: str, dead: Sequence[DeadMessage]) -> None:
        """Put them into the dead letters of their topics, with all that is known about each."""
        publisher = Publisher(self._kafka)
        try:
            await publisher.start()
            refused = await publisher.publish([dead_letter(consumer, each) for each in dead])
        finally:
            await publisher.stop()
        for each in refused:
            # PostgreSQL has it anyway, and the messages behind it must go on.
            raw = dead[each.number].raw
            log.error("dead_letter_refused", topic=raw.topic, offset=raw.offset, why=each.reason)

    async def stop(self) -> None:
        await self._reader.stop()

    async def _look_at_relay(self) -> None:
        """See how far the relay is; while a query waits, each time that it has gone on."""
        if self._hurried is None or self._conn is None:
            return
        if self._hurried.is_set():
            self._hurried.clear()
        elif time.monotonic() - self._relay_seen < RELAY_SECONDS:
            return
        self._relay_seen = time.monotonic()
        relayed = await self._conn.do(published_positions)
        places = {(BY_KAFKA[feed], 0): at for feed, at in relayed.items()}
        if places and (self._relayed is None or places != self._relayed.places):
            # In this order: what is published later lies behind these ends.
            ends = await self._reader.ends()
            self._relayed = RelayPlaces(places, ends) if ends else None


def parse(raw: RawMessage) -> IncomingMessage:
    """Return the message that these bytes mean; raise Unreadable."""
    try:
        if raw.value is None:
            raise Unreadable("It has no value.")
        id_: UUID = adapter_of(raw.topic).validate_json(raw.value)["id"]
        position = int(raw.headers["position"])
    except ValidationError as error:
        raise Unreadable(_faults(error)) from error
    except (KeyError, ValueError) as error:
        raise Unreadable(f"Its header `position` is missing or no number: {error}.") from error
    correlation = raw.headers.get("correlationId")
    value = orjson.loads(raw.value)
    return IncomingMessage(id_, raw.topic, raw.key or "", value, position, correlation, lambda: raw)


def dead_letter(consumer: str, dead: DeadMessage) -> Outgoing:
    """Return the dead letter of a message: as it came, with why and where from in headers."""
    raw = dead.raw
    topic, partition = raw.place
    texts = {
        **raw.headers,
        "dlq-reason": dead.reason,
        "dlq-consumer": consumer,
        "dlq-topic": topic,
        "dlq-partition": str(partition),
        "dlq-offset": str(raw.offset),
    }
    headers = [(name, text.encode()) for name, text in texts.items()]
    key = None if raw.key is None else raw.key.encode()
    return Outgoing(dead_letters(raw.topic), key, raw.value, headers)


def _parse_all(records: Sequence[Record], through: Mapping[Place, int], lag: int) -> MessageBatch:
    messages: list[IncomingMessage] = []
    dead: list[DeadMessage] = []
    for record in records:
        raw = _raw_of_record(record)
        try:
            messages.append(parse(raw))
        except Unreadable as error:
            dead.append(DeadMessage(raw, str(error)))
    places: dict[Place, int] = {record.partition: record.offset + 1 for record in records}
    oldest = min((record.timestamp for record in records), default=float("inf"))
    age_seconds = max(0.0, datetime.now(UTC).timestamp() - oldest)
    return MessageBatch(messages, dead, {**places, **through}, lag, age_seconds)


def _raw_of_record(record: Record) -> RawMessage:
    topic, number = record.partition
    headers = {name: _text(value) for name, value in record.headers}
    key = None if record.key is None else _text(record.key)
    return RawMessage(topic, (topic, number), record.offset, key, record.value, headers)


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _faults(error: ValidationError) -> str:
    """Return what is wrong with a value, without repeating it: it may be personal."""
    return "; ".join(
        ": ".join([".".join(map(str, item["loc"])) or "value", item["msg"]])
        for item in error.errors(include_url=False, include_input=False)
    )

"""Messages from Kafka: every partition of the topics, from offsets that PostgreSQL keeps.

Who waits for a position of the log is told through the relay: what that had published lay in the
topics by the time that it had written so down, so that whoever has read them to their ends since
has all of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import orjson
import structlog
from pydantic import ValidationError

from engine.connections import ThreadedConnection
from engine.messages import DeadMessage, IncomingMessage, MessageBatch, RawMessage, Unreadable
from engine.subscription import Place
from infra.kafka import (
    Outgoing,
    Partition,
    Publisher,
    Reader,
    Record,
)
from infra.settings.adapters import KafkaSettings
from projections.analytics.arrival import BY_KAFKA
from projections.integration_events import adapter_of, dead_letters
from workers.relay import published

log = structlog.get_logger(__name__)

BATCH_MESSAGES = 500
LOOK_SECONDS = 10.0
# How long a read goes on that nobody cuts short, and how often the relay is looked at for nobody.
READ_SECONDS = 0.1
RELAY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Relayed:
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
        batch_messages: int = BATCH_MESSAGES,
        hurried: asyncio.Event | None = None,
    ) -> None:
        """With `hurried`, which is set while somebody waits, it tells positions of the log too."""
        self._hurried = hurried
        self._conn: ThreadedConnection | None = None
        self._relayed: Relayed | None = None
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
        return _fetched(records, self._through(), self._reader.lag())

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
        """Know how far it is; while somebody waits, each time that it has gone on."""
        if self._hurried is None or self._conn is None:
            return
        if self._hurried.is_set():
            self._hurried.clear()
        elif time.monotonic() - self._relay_seen < RELAY_SECONDS:
            return
        self._relay_seen = time.monotonic()
        relayed = await self._conn.do(published)
        places = {(BY_KAFKA[source], 0): at for source, at in relayed.items()}
        if places and (self._relayed is None or places != self._relayed.places):
            # In this order: what is published later lies behind these ends.
            ends = await self._reader.ends()
            self._relayed = Relayed(places, ends) if ends else None

    def _through(self) -> Mapping[Place, int]:
        """The places up to which everything was read, once it was."""
        relayed = self._relayed
        return relayed.places if relayed and self._reader.has_read(relayed.ends) else {}


def parse(raw: RawMessage) -> IncomingMessage:
    """The message that these bytes mean; raises Unreadable."""
    try:
        if raw.value is None:
            raise Unreadable("It has no value.")
        value = adapter_of(raw.topic).validate_json(raw.value)
        position = int(raw.headers["position"])
    except ValidationError as error:
        raise Unreadable(_told(error)) from error
    except (KeyError, ValueError) as error:
        raise Unreadable(f"Its header `position` is missing or no number: {error}.") from error
    id_: UUID = value["id"]
    correlation = raw.headers.get("correlationId")
    value = orjson.loads(raw.value)
    return IncomingMessage(id_, raw.topic, raw.key or "", value, position, correlation, lambda: raw)


def dead_letter(consumer: str, dead: DeadMessage) -> Outgoing:
    """What goes beside the topic: the message as it came, and in headers why and where from."""
    raw = dead.raw
    topic, partition = raw.place
    told = {
        **raw.headers,
        "dlq-reason": dead.reason,
        "dlq-consumer": consumer,
        "dlq-topic": topic,
        "dlq-partition": str(partition),
        "dlq-offset": str(raw.offset),
    }
    headers = [(name, text.encode()) for name, text in told.items()]
    key = None if raw.key is None else raw.key.encode()
    return Outgoing(dead_letters(raw.topic), key, raw.value, headers)


def _fetched(records: Sequence[Record], through: Mapping[Place, int], lag: int) -> MessageBatch:
    received: list[IncomingMessage] = []
    dead: list[DeadMessage] = []
    for record in records:
        raw = _raw(record)
        try:
            received.append(parse(raw))
        except Unreadable as error:
            dead.append(DeadMessage(raw, str(error)))
    places = {
        (record.partition.topic, record.partition.number): record.offset + 1 for record in records
    }
    return MessageBatch(received, dead, {**places, **through}, lag, _age(records))


def _raw(record: Record) -> RawMessage:
    topic, number = record.partition
    headers = {name: _text(value) for name, value in record.headers}
    key = None if record.key is None else _text(record.key)
    return RawMessage(topic, (topic, number), record.offset, key, record.value, headers)


def _age(records: Sequence[Record]) -> float:
    if not records:
        return 0.0
    return max(0.0, datetime.now(UTC).timestamp() - min(each.timestamp for each in records))


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _told(error: ValidationError) -> str:
    """What is wrong with a value, without repeating it: it may be personal."""
    return "; ".join(
        ": ".join([".".join(map(str, item["loc"])) or "value", item["msg"]])
        for item in error.errors(include_url=False, include_input=False)
    )

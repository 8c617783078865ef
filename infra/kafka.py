"""Kafka: an idempotent producer, and a reader of topics from given offsets."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from asyncio import Future
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.partitioner import murmur2

from infra.errors import OperatorError
from infra.settings.adapters import KafkaSettings

log = structlog.get_logger(__name__)

RETRY_MS = 200
BATCH_BYTES = 256 * 1024
MAX_MESSAGE_BYTES = 1024 * 1024
LINGER_MS = 2
# How long a broker may take for a request, and how long acknowledgements may keep us waiting.
REQUEST_MS = 10_000
ACKNOWLEDGED_SECONDS = 30.0
STOP_SECONDS = 2.0

Headers = Sequence[tuple[str, bytes]]

METADATA_MS = 60_000
KNOW_TOPICS_SECONDS = 5.0
# How often brokers that send nothing are asked whether they are there at all.
CHECK_SECONDS = 5.0

# aiokafka logs every attempt, ten times a second; KafkaAway says once that Kafka is away.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


class KafkaMisconfigured(OperatorError):
    """The settings name certificates or keys that can't be used."""


class KafkaAway(Exception):
    """Kafka did not take or give something in time; trying again later helps."""


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Return the options that aiokafka's producer and consumer share; raise KafkaMisconfigured."""
    password = settings.sasl_password
    return {
        "bootstrap_servers": list(settings.bootstrap_servers),
        "client_id": "backlot",
        "retry_backoff_ms": RETRY_MS,
        "security_protocol": settings.security_protocol,
        "ssl_context": trust(settings) if settings.encrypted else None,
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": None if password is None else password.get_secret_value(),
    }


def trust(settings: KafkaSettings) -> ssl.SSLContext:
    """Return who vouches for the brokers (the system's, or the CA of the settings), and who we are.

    The brokers' names are checked against their certificates. Raise KafkaMisconfigured where a
    file can't be read or is none of its kind.
    """
    password = settings.ssl_key_password
    try:
        context = ssl.create_default_context(cafile=settings.ssl_ca_file)
        if settings.ssl_cert_file is not None:
            # Without a password, OpenSSL would ask at the terminal for that of an encrypted key.
            context.load_cert_chain(
                settings.ssl_cert_file,
                settings.ssl_key_file,
                "" if password is None else password.get_secret_value(),
            )
    except (OSError, ValueError) as error:
        files = filter(None, (settings.ssl_ca_file, settings.ssl_cert_file, settings.ssl_key_file))
        raise KafkaMisconfigured(
            f"KAFKA_SSL_*: {', '.join(map(str, files))} can't be used: {_reason(error)}"
        ) from error
    return context


class Outgoing(NamedTuple):
    """What is put into a topic."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers


class RefusedMessage(NamedTuple):
    """A message, by its number in what was to be published, that Kafka will never take, and why."""

    number: int
    reason: str


@lru_cache(maxsize=65_536)
def _hash(key: bytes) -> int:
    return int(murmur2(key)) & 0x7FFFFFFF


def partition_of(key: bytes | None, every: Sequence[int], available: Sequence[int]) -> int:
    """Return the partition of a key, as Kafka's own clients choose it; any one without a key.

    aiokafka's own does the same, but works half as long on a key as on all the rest of a message.
    """
    if key is None:
        return random.choice(available or every)  # noqa: S311 - nothing secret hangs on it
    return every[_hash(key) % len(every)]


class Sent(NamedTuple):
    """Messages on their way, by their numbers, and those that were refused at once."""

    waiting: list[tuple[int, Future[Any]]]
    refused: list[RefusedMessage]

    def forget(self) -> None:
        """Ignore the outcomes: else asyncio warns of all failures but the one that was raised."""
        for _, one in self.waiting:
            if one.done():
                _look_at(one)
            else:
                one.add_done_callback(_look_at)


class Publisher:
    """One idempotent producer; to be used from one event loop, started and stopped once."""

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        acknowledged_seconds: float = ACKNOWLEDGED_SECONDS,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._settings = settings
        self._acknowledged_seconds = acknowledged_seconds
        self._max_message_bytes = max_message_bytes
        self._producer: Any = None

    async def start(self) -> None:
        """Connect; raise KafkaAway."""
        # Known before it is connected: a start that is cancelled has to be stopped, too.
        self._producer = AIOKafkaProducer(
            **client_options(self._settings),
            max_request_size=self._max_message_bytes,
            enable_idempotence=True,
            acks="all",
            linger_ms=LINGER_MS,
            max_batch_size=BATCH_BYTES,
            partitioner=partition_of,
            request_timeout_ms=REQUEST_MS,
        )
        try:
            await self._producer.start()
        except KafkaError as error:
            await self.stop()
            raise KafkaAway(_reason(error)) from error

    async def publish(self, messages: Sequence[Outgoing]) -> list[RefusedMessage]:
        """Return once every message is acknowledged, but for those that Kafka refuses.

        Raise KafkaAway: then any of them may have been published, and all have to be again, by
        another publisher.
        """
        return await self.acknowledged(await self.send(messages))

    async def send(self, messages: Sequence[Outgoing]) -> Sent:
        """Put messages on their way, behind those of earlier calls; raise KafkaAway."""
        sent = Sent([], [])
        try:
            async with asyncio.timeout(self._acknowledged_seconds):
                for number, (topic, key, value, headers) in enumerate(messages):
                    try:
                        one = await self._producer.send(topic, value, key=key, headers=headers)
                    except MessageSizeTooLargeError as error:
                        sent.refused.append(RefusedMessage(number, _reason(error)))
                    else:
                        sent.waiting.append((number, one))
        except (KafkaError, TimeoutError) as error:
            sent.forget()
            raise KafkaAway(_reason(error)) from error
        return sent

    async def acknowledged(self, sent: Sent) -> list[RefusedMessage]:
        """Return once all that was sent is acknowledged, but for what Kafka refuses.

        Raise KafkaAway as `publish` does.
        """
        try:
            async with asyncio.timeout(self._acknowledged_seconds):
                for number, one in sent.waiting:
                    try:
                        await one
                    except MessageSizeTooLargeError as error:
                        sent.refused.append(RefusedMessage(number, _reason(error)))
        except (KafkaError, TimeoutError) as error:
            raise KafkaAway(_reason(error)) from error
        finally:
            sent.forget()
        return sent.refused

    async def stop(self) -> None:
        """Send what is left if that is quick, and disconnect; safe before a start."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await producer.stop()
                return
        # It waits for brokers that are away, for as long as they are.
        await _give_up(producer)

    async def abandon(self) -> None:
        """Disconnect, and send nothing more: what failed has to be published before the rest."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _give_up(producer)


async def _give_up(producer: Any) -> None:
    # What its `stop` does, but for waiting until all is sent: aiokafka offers no way to give up.
    producer._closed = True  # noqa: SLF001
    await producer._sender.close()  # noqa: SLF001
    await producer.client.close()


def _reason(error: BaseException) -> str:
    """One line about what Kafka said, or did not say."""
    return " ".join(str(error).split()) or type(error).__name__


def _look_at(sent: Future[Any]) -> None:
    if not sent.cancelled():
        sent.exception()


class Partition(NamedTuple):
    """One partition of a topic."""

    topic: str
    number: int


class Record(NamedTuple):
    """A message as it lies in its topic; `timestamp` in seconds since 1970."""

    partition: Partition
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    timestamp: float


class Reader:
    """Reads all partitions of some topics; for one event loop, started and stopped once."""

    def __init__(self, settings: KafkaSettings, topics: Collection[str]) -> None:
        self._settings = settings
        self._topics = sorted(topics)
        self._consumer: Any = None
        self._offsets: dict[Partition, int] = {}
        self._assigned: set[Partition] = set()
        self._checked = 0.0

    async def start(self, offsets: Mapping[Partition, int]) -> None:
        """Connect, and begin at these offsets; a partition without one is read from its beginning.

        So is one whose offset is gone. Raise KafkaAway.
        """
        self._offsets, self._assigned = dict(offsets), set()
        self._consumer = AIOKafkaConsumer(
            **client_options(self._settings),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            request_timeout_ms=REQUEST_MS,
            metadata_max_age_ms=METADATA_MS,
        )
        # Metadata comes for topics of which something is assigned.
        self._consumer.assign([TopicPartition(topic, 0) for topic in self._topics])
        try:
            await self._consumer.start()
        except KafkaError as error:
            await self.stop()
            raise KafkaAway(_reason(error)) from error
        await self._know_topics()
        self.look_for_partitions()

    def look_for_partitions(self) -> None:
        """Take on the partitions that have come to be."""
        found = {
            Partition(topic, number)
            for topic in self._topics
            for number in self._consumer.partitions_for_topic(topic) or ()
        }
        if found <= self._assigned:
            return
        self._assigned |= found
        self._consumer.assign([TopicPartition(*each) for each in sorted(self._assigned)])
        for each in self._assigned:
            if each in self._offsets:
                self._consumer.seek(TopicPartition(*each), self._offsets[each])

    async def read(self, at_most_seconds: float, max_records: int) -> Sequence[Record]:
        """Return what comes next, in order within each partition; empty when nothing came in time.

        Raise KafkaAway.
        """
        wait = int(at_most_seconds * 1000)
        try:
            found = await self._consumer.getmany(timeout_ms=wait, max_records=max_records)
            if not found:
                await self._check()
        except KafkaError as error:
            raise KafkaAway(_reason(error)) from error
        records = [
            Record(
                Partition(*where), one.offset, one.key, one.value, one.headers, one.timestamp / 1000
            )
            for where, batch in found.items()
            for one in batch
        ]
        for record in records:
            self._offsets[record.partition] = record.offset + 1
        return records

    def lag(self) -> int:
        """Return how many messages lie behind what was read, as far as the brokers have told."""
        ends = {
            each: self._consumer.highwater(TopicPartition(*each)) or 0 for each in self._assigned
        }
        return sum(max(0, end - self._offsets.get(each, 0)) for each, end in ends.items())

    async def ends(self) -> dict[Partition, int]:
        """Return where the partitions that are read end now; raise KafkaAway.

        Return none of them where a topic is not known yet: it may hold messages.
        """
        if {each.topic for each in self._assigned} != set(self._topics):
            return {}
        try:
            found = await self._consumer.end_offsets(
                [TopicPartition(*each) for each in self._assigned]
            )
        except KafkaError as error:
            raise KafkaAway(_reason(error)) from error
        self._checked = time.monotonic()
        return {Partition(*where): end for where, end in found.items()}

    def has_read(self, ends: Mapping[Partition, int]) -> bool:
        """Return whether all that lay before these ends was read."""
        return all(self._offsets.get(each, 0) >= end for each, end in ends.items())

    async def stop(self) -> None:
        """Disconnect; safe before a start."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await consumer.stop()

    async def _know_topics(self) -> None:
        deadline = time.monotonic() + KNOW_TOPICS_SECONDS
        while missing := [
            topic for topic in self._topics if self._consumer.partitions_for_topic(topic) is None
        ]:
            if time.monotonic() > deadline:
                log.warning("topics_missing", topics=missing)
                return
            await asyncio.sleep(0.02)

    async def _check(self) -> None:
        """Raise KafkaError where the brokers are silent because they are away."""
        if time.monotonic() - self._checked < CHECK_SECONDS or not self._assigned:
            return
        await self._consumer.end_offsets([TopicPartition(*each) for each in self._assigned])
        self._checked = time.monotonic()

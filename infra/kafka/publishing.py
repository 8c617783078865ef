"""Publishes messages in order per key: acknowledged by all replicas, none doubled by a retry."""

from __future__ import annotations

import asyncio
import random
from asyncio import Future
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.partitioner import murmur2

from infra.kafka.options import KafkaAway, KafkaOptions

BATCH_BYTES = 256 * 1024
MAX_MESSAGE_BYTES = 1024 * 1024
LINGER_MS = 2
# How long a broker may take for a request, and how long acknowledgements may keep us waiting.
REQUEST_MS = 10_000
ACKNOWLEDGED_SECONDS = 30.0
STOP_SECONDS = 2.0

Compression = Literal["gzip"]
Headers = Sequence[tuple[str, bytes]]


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
    """The partition of a key, as Kafka's own clients choose it; any one without a key.

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
        """Wait for none of it: else whoever is told of one failure is warned of all the others."""
        for _, one in self.waiting:
            if not one.done():
                one.add_done_callback(_look_at)
            else:
                _look_at(one)


class Publisher:
    """One idempotent producer; to be used from one event loop, started and stopped once."""

    def __init__(
        self,
        options: KafkaOptions,
        *,
        compression: Compression | None = None,
        acknowledged_seconds: float = ACKNOWLEDGED_SECONDS,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._options = options
        self._acknowledged_seconds = acknowledged_seconds
        self._limits = {
            "compression_type": compression,
            "max_request_size": max_message_bytes,
        }
        self._producer: Any = None

    async def start(self) -> None:
        """Connect; raises KafkaAway."""
        producer = AIOKafkaProducer(
            **self._options.client(),
            **self._limits,
            enable_idempotence=True,
            acks="all",
            linger_ms=LINGER_MS,
            max_batch_size=BATCH_BYTES,
            partitioner=partition_of,
            request_timeout_ms=REQUEST_MS,
        )
        try:
            await producer.start()
        except KafkaError as error:
            await producer.stop()
            raise KafkaAway(describe(error)) from error
        self._producer = producer

    async def publish(self, messages: Sequence[Outgoing]) -> list[RefusedMessage]:
        """Return once every message is acknowledged, but for those that Kafka refuses.

        Raises KafkaAway: then any of them may have been published, and all have to be again, by
        another publisher.
        """
        return await self.acknowledged(await self.send(messages))

    async def send(self, messages: Sequence[Outgoing]) -> Sent:
        """Put messages on their way, behind those of earlier calls; raises KafkaAway."""
        sent = Sent([], [])
        try:
            async with asyncio.timeout(self._acknowledged_seconds):
                for number, (topic, key, value, headers) in enumerate(messages):
                    try:
                        one = await self._producer.send(topic, value, key=key, headers=headers)
                    except MessageSizeTooLargeError as error:
                        sent.refused.append(RefusedMessage(number, describe(error)))
                    else:
                        sent.waiting.append((number, one))
        except (KafkaError, TimeoutError) as error:
            sent.forget()
            raise KafkaAway(describe(error)) from error
        return sent

    async def acknowledged(self, sent: Sent) -> list[RefusedMessage]:
        """Return once all that was sent is acknowledged, but for what Kafka refuses.

        Raises KafkaAway as `publish` does.
        """
        try:
            async with asyncio.timeout(self._acknowledged_seconds):
                for number, one in sent.waiting:
                    try:
                        await one
                    except MessageSizeTooLargeError as error:
                        sent.refused.append(RefusedMessage(number, describe(error)))
        except (KafkaError, TimeoutError) as error:
            raise KafkaAway(describe(error)) from error
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
        """Disconnect, and send nothing any more: what failed has to be told before the rest."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _give_up(producer)


async def _give_up(producer: Any) -> None:
    # What its `stop` does, but for waiting until all is sent: aiokafka offers no way to give up.
    producer._closed = True  # noqa: SLF001
    await producer._sender.close()  # noqa: SLF001
    await producer.client.close()


def describe(error: BaseException) -> str:
    """One line about what Kafka said, or did not say."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _look_at(sent: Future[Any]) -> None:
    if not sent.cancelled():
        sent.exception()

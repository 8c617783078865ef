"""Reads whole topics from offsets that are kept elsewhere: no group, no commits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from infra.kafka.options import KafkaAway, KafkaOptions
from infra.kafka.publishing import REQUEST_MS, describe

log = structlog.get_logger(__name__)

STOP_SECONDS = 2.0
METADATA_MS = 60_000
KNOW_TOPICS_SECONDS = 5.0
# How often brokers that send nothing are asked whether they are there at all.
CHECK_SECONDS = 5.0


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
    """All partitions of some topics; to be used from one event loop, started and stopped once."""

    def __init__(self, options: KafkaOptions, topics: Collection[str]) -> None:
        self._options = options
        self._topics = sorted(topics)
        self._consumer: Any = None
        self._offsets: dict[Partition, int] = {}
        self._assigned: set[Partition] = set()
        self._checked = 0.0

    async def start(self, offsets: Mapping[Partition, int]) -> None:
        """Connect, and begin at these offsets; a partition without one is read from its beginning.

        So is one whose offset is gone. Raises KafkaAway.
        """
        self._offsets, self._assigned = dict(offsets), set()
        self._consumer = AIOKafkaConsumer(
            **self._options.client(),
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
            raise KafkaAway(describe(error)) from error
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
        """What comes next, in order within each partition; empty when nothing came in time.

        Raises KafkaAway.
        """
        wait = int(at_most_seconds * 1000)
        try:
            found = await self._consumer.getmany(timeout_ms=wait, max_records=max_records)
            if not found:
                await self._check()
        except KafkaError as error:
            raise KafkaAway(describe(error)) from error
        records = [
            Record(
                Partition(*where),
                one.offset,
                one.key,
                one.value,
                one.headers,
                one.timestamp / 1000,
            )
            for where, batch in found.items()
            for one in batch
        ]
        for record in records:
            self._offsets[record.partition] = record.offset + 1
        return records

    def lag(self) -> int:
        """How many messages lie behind what was read, as far as the brokers have told."""
        return sum(max(0, self._end(each) - self._offsets.get(each, 0)) for each in self._assigned)

    async def ends(self) -> dict[Partition, int]:
        """Where the partitions that are read end now; raises KafkaAway.

        None of them where a topic is not known yet: something may lie in it.
        """
        if {each.topic for each in self._assigned} != set(self._topics):
            return {}
        try:
            found = await self._consumer.end_offsets(
                [TopicPartition(*each) for each in self._assigned]
            )
        except KafkaError as error:
            raise KafkaAway(describe(error)) from error
        self._checked = time.monotonic()
        return {Partition(*where): end for where, end in found.items()}

    def has_read(self, ends: Mapping[Partition, int]) -> bool:
        """Whether all that lay before these ends was read."""
        return all(self._offsets.get(each, 0) >= end for each, end in ends.items())

    async def stop(self) -> None:
        """Disconnect; safe before a start."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await consumer.stop()

    def _end(self, partition: Partition) -> int:
        return self._consumer.highwater(TopicPartition(*partition)) or 0

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
        """Raise KafkaError where silence means that nobody is there."""
        if time.monotonic() - self._checked < CHECK_SECONDS or not self._assigned:
            return
        await self._consumer.end_offsets([TopicPartition(*each) for each in self._assigned])
        self._checked = time.monotonic()

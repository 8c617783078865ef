"""Kafka, as Backlot uses it: an idempotent producer, a reader without groups, and their settings.

Offsets are kept in PostgreSQL beside what was done about the messages, so no group and no
transaction of Kafka is needed.
"""

from __future__ import annotations

from infra.kafka.options import KafkaAway, KafkaOptions
from infra.kafka.publishing import Outgoing, Publisher, RefusedMessage, Sent
from infra.kafka.reading import Partition, Reader, Record

__all__ = [
    "KafkaAway",
    "KafkaOptions",
    "Outgoing",
    "Partition",
    "Publisher",
    "Reader",
    "Record",
    "RefusedMessage",
    "Sent",
]

"""The published language: what other programs are told, apart from how events are stored.

A stored event may change its shape; a topic and its value are a promise to whoever reads them.
"""

from __future__ import annotations

from infra.integration.messages import (
    Message,
    NotPublishable,
    events_for,
    from_event,
    from_telemetry,
)
from infra.integration.topics import DLQ, TOPICS, dead_letters

__all__ = [
    "DLQ",
    "TOPICS",
    "Message",
    "NotPublishable",
    "dead_letters",
    "events_for",
    "from_event",
    "from_telemetry",
]

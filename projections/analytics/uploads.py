"""Uploads as the analytics follow them: in the event log, since no topic tells all of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from domain.model import Aggregate
from domain.upload import Upload
from infra.codec import event_id
from infra.integration import Message
from infra.integration.messages import EVENTS_SOURCE
from projections.analytics.videos import WRITES, UploadChange

KINDS: Mapping[str, type[Aggregate.Event]] = {event.TOPIC: event for event in WRITES}
TOPICS = frozenset(KINDS)


def message(position: int, event: Aggregate.Event) -> Message:
    """What is told of one of the events in WRITES, for the analytics alone."""
    value = {
        "id": event.originator_id,
        "at": event.timestamp,
        "owner": event.owner if isinstance(event, Upload.Event) else None,
        "category": getattr(event, "category", None),
        "duration": getattr(event, "duration_seconds", None),
    }
    return Message(
        type(event).TOPIC,
        event_id(event.originator_id, event.originator_version),
        str(event.originator_id),
        orjson.dumps(value),
        position,
        event.timestamp,
        EVENTS_SOURCE,
        event.correlation_id,
    )


def told(topic: str, value: Mapping[str, Any]) -> UploadChange:
    """What such a message says."""
    at = datetime.fromisoformat(value["at"])
    return UploadChange(KINDS[topic], {**value, "id": UUID(value["id"]), "at": at})

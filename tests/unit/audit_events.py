"""Stored events for the audit's unit tests: golden ones, and made ones."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import orjson

from engine.inspection.streams import Entry, read_entry
from engine.log import EventMapper, Stored

GOLDEN = Path(__file__).parents[1] / "golden" / "events"
TOPICS = sorted(path.stem for path in GOLDEN.iterdir())
MAPPER = EventMapper()
AT = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)


def golden(topic: str) -> Stored:
    """The golden event of a topic, as the log would hold it."""
    content = json.loads((GOLDEN / f"{topic}.json").read_text())
    stream, state = UUID(content["stream_id"]), content["state"].encode()
    return Stored(content["version"], stream, content["version"], content["topic"], state)


def entry(position: int, correlation: str, cause: str | None, *, version: int = 1) -> Entry:
    """An event of a stream of its own, numbered as its position."""
    told = {
        "timestamp": AT + timedelta(seconds=position),
        "actor": "ann",
        "correlation_id": correlation,
        "causation_id": cause,
    }
    stream = UUID(int=position)
    return read_entry(Stored(position, stream, version, "comment.deleted.v1", orjson.dumps(told)))

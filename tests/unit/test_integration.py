"""The published language: a golden file for each event and each kind of telemetry that is told.

A golden file holds the message, byte for byte. What other programs read of it is never changed.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, get_args, get_type_hints
from uuid import UUID

import pytest
from eventsourcing.persistence import StoredEvent

from domain.model import Aggregate
from domain.upload import Upload
from engine.log import EventMapper, event_id
from engine.telemetry import TelemetryEvent
from projections.integration_events import (
    PUBLISHED,
    TELEMETRY,
    TEXTS,
    TOPICS,
    Message,
    NotPublishable,
    adapter_of,
    dead_letters,
    events_for,
    from_event,
    from_telemetry,
    topics_with_texts,
)

FOLDER = Path(__file__).parents[1] / "golden"
POSITION = 42
SEEN = TelemetryEvent(
    UUID("f3b0c1d2-0000-4000-8000-000000000001"),
    "video.viewed",
    UUID("0b9d2a52-5f3c-4a57-8d3e-2f6a51c0c0de"),
    "ann",
    datetime(2026, 11, 22, 10, 30, 15, 123456, tzinfo=timezone(timedelta(hours=1))),
    {"sessionId": "5f0c2f0a-7f0e-4a3c-9a39-1c6a54f2b7aa"},
    "8c7b1a52f0",
)
RECOMMENDED = {
    "listId": "a8b7c2de-6f37-5ab1-9c70-2f6a51c0c0de",
    "givenAt": "2026-11-22T09:00:00Z",
    "place": 3,
    "source": "neighbour",
    "variant": "b",
}
DETAILS: dict[str, dict[str, Any]] = {
    "video.viewed": {},
    "video.watch_time": {"seconds": 12.5},
    "video.watch_time+position": {"seconds": 12.5, "position": 30},
    "video.shared": {"channel": "mail"},
    "recommendation.shown": RECOMMENDED,
    "recommendation.chosen": {**RECOMMENDED, "experiment": 7},
}


def recorded(topic: str) -> Aggregate.Event:
    content = json.loads((FOLDER / "events" / f"{topic}.json").read_text())
    place = UUID(content["stream_id"]), content["version"]
    event = EventMapper().to_domain_event(StoredEvent(*place, topic, content["state"].encode()))
    assert isinstance(event, Aggregate.Event)
    return event


def telemetry(topic: str, **changes: Any) -> TelemetryEvent:
    """That of a topic; after a plus stands a member that need not be there."""
    details = {**SEEN.details, **DETAILS[topic], "beside": "not promised"}
    return SEEN._replace(topic=topic.partition("+")[0], details=details, **changes)


def message(name: str) -> Message:
    if name in DETAILS:
        return from_telemetry(POSITION, telemetry(name))
    return from_event(POSITION, recorded(name))


def as_golden(told: Message) -> dict[str, Any]:
    return {
        "topic": told.topic,
        "key": told.key,
        "headers": {name: value.decode() for name, value in told.headers()},
        "value": told.value.decode(),
    }


NAMES = sorted({event.TOPIC for event in PUBLISHED} | DETAILS.keys())


def test_everything_that_is_told_has_its_file() -> None:
    assert sorted(path.stem for path in (FOLDER / "integration").iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_recorded_gives_the_message(name: str) -> None:
    expected = json.loads((FOLDER / "integration" / f"{name}.json").read_text())
    assert as_golden(message(name)) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_cloud_event_says_what_the_message_does(name: str) -> None:
    expected = json.loads((FOLDER / "integration" / f"{name}.json").read_text())
    headers = expected["headers"]
    found = json.loads(message(name).cloud_event())
    assert found == {
        **{each: headers[f"ce_{each}"] for each in ("specversion", "id", "type", "source", "time")},
        "datacontenttype": headers["content-type"],
        "partitionkey": expected["key"],
        "position": headers["position"],
        "correlationid": headers["correlationId"],
        "data": json.loads(expected["value"]),
    }
    # As CloudEvents names attributes.
    assert all(each.isalnum() and each.islower() and len(each) <= 20 for each in found)


@pytest.mark.parametrize("name", NAMES)
def test_a_message_is_a_value_of_its_topic(name: str) -> None:
    told = message(name)
    read = adapter_of(told.topic).validate_json(told.value)
    assert read["id"] == told.id
    assert set(read) == set(json.loads(told.value))


def test_every_topic_of_the_contract_is_told() -> None:
    assert {name.partition("+")[0] for name in DETAILS} == TELEMETRY
    assert {message(name).topic for name in NAMES} == set(TOPICS)


def test_the_id_is_that_of_the_event_whenever_it_is_told() -> None:
    event = recorded("comment.posted.v1")
    ids = {from_event(position, event).id for position in (1, 2)}
    assert ids == {event_id(event.originator_id, event.originator_version)}


def test_an_expired_upload_is_an_aborted_one() -> None:
    assert json.loads(message("upload.expired.v1").value)["reason"] == "expired"
    assert json.loads(message("upload.aborted.v1").value)["reason"] == "requested"
    assert set(events_for({"upload.aborted"})) == {Upload.Aborted, Upload.Expired}


def test_what_no_topic_tells_is_refused() -> None:
    with pytest.raises(NotPublishable, match=r"upload\.started"):
        from_event(1, recorded("upload.started.v2"))


def test_telemetry_without_what_its_topic_needs_is_refused() -> None:
    with pytest.raises(NotPublishable, match="lacks sessionId"):
        from_telemetry(1, SEEN._replace(details={}))
    with pytest.raises(NotPublishable, match="no telemetry named"):
        from_telemetry(1, SEEN._replace(topic="comment.created"))


def test_what_need_not_be_known_may_be_missing() -> None:
    told = from_telemetry(1, SEEN._replace(user_id=None, correlation_id=None))
    assert json.loads(told.value)["userId"] is None
    assert "correlationId" not in dict(told.headers())
    shared = from_telemetry(1, SEEN._replace(topic="video.shared", details={}))
    assert "channel" not in json.loads(shared.value)


def test_dead_letters_lie_beside_their_topic() -> None:
    assert dead_letters("comment.created") == "comment.created.dlq"


def test_topics_with_texts_are_those_in_which_somebody_may_write() -> None:
    """Who adds a member of text to a value says whether somebody has worded it."""
    members = {
        name
        for value in TOPICS.values()
        for name, kind in get_type_hints(value).items()
        if str in (kind, *get_args(kind))
    }
    told = {"userId", "originalLang", "etag", "source", "variant"}
    assert members == TEXTS | told
    assert topics_with_texts() == [
        name
        for topic in ("comment.created", "comment.edited", "comment.translated", "video.shared")
        for name in (topic, f"{topic}.dlq")
    ]

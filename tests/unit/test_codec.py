"""Every event version that was ever stored stays readable: one golden file for each.

A golden file holds the stored payload and the event that it means. Once released it is never
edited; a new shape gets a new topic, an upcast from the old one, and a file of its own. A field
that came later under the same topic has a file with its name behind a `+`.
"""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints
from uuid import UUID

import pytest
from eventsourcing.persistence import MapperDeserialisationError, StoredEvent

from domain.model import Aggregate, Personal
from domain.operation import Operation
from domain.revocations import Revocations
from engine.log import EventMapper, later_fields, topics_of
from tests.support import aggregates

GOLDEN = Path(__file__).parents[1] / "golden" / "events"
MAPPER = EventMapper()
EVENTS = [event for aggregate in aggregates() for event in aggregate.events()]
TOPICS = [topic for event in EVENTS for topic in topics_of(event)]
PRESENT_TOPICS = [event.TOPIC for event in EVENTS]
LATER = [f"{event.TOPIC}+{name}" for event in EVENTS for name in later_fields(event)]


def golden(name: str) -> tuple[StoredEvent, dict[str, Any]]:
    content = json.loads((GOLDEN / f"{name}.json").read_text())
    place = (UUID(content["stream_id"]), content["version"])
    return StoredEvent(*place, content["topic"], content["state"].encode()), content


def broken(topic: str, **changes: Any) -> StoredEvent:
    """The golden event with other payload values; `...` takes a field away."""
    stored, _ = golden(topic)
    payload = {**json.loads(stored.state), **changes}
    left = {name: value for name, value in payload.items() if value is not ...}
    return dataclasses.replace(stored, state=json.dumps(left).encode())


def personal(event: type[Aggregate.Event]) -> dict[str, str]:
    """The event's personal fields, and whom each is about."""
    return {
        name: mark.subject
        for name, hint in get_type_hints(event, include_extras=True).items()
        if get_origin(hint) is Annotated
        for mark in get_args(hint)[1:]
        if isinstance(mark, Personal)
    }


class TestGolden:
    def test_every_event_version_has_its_file(self) -> None:
        assert sorted(path.stem for path in GOLDEN.iterdir()) == sorted([*TOPICS, *LATER])

    @pytest.mark.parametrize("name", [*TOPICS, *LATER])
    def test_stored_bytes_give_the_event(self, name: str) -> None:
        stored, expected = golden(name)
        event = MAPPER.to_domain_event(stored)
        assert stored.topic == name.partition("+")[0]
        assert isinstance(event, Aggregate.Event)
        assert type(event).__qualname__ == expected["event"]
        assert event.originator_id == stored.originator_id
        assert event.originator_version == stored.originator_version
        values = {**vars(event)}
        del values["originator_id"], values["originator_version"]
        assert isinstance(values["timestamp"], datetime)
        told = {field: _plain(value) for field, value in values.items()}
        # What was stored before a field was there has its default.
        assert told == later_fields(type(event)) | expected["fields"]

    @pytest.mark.parametrize("event", EVENTS, ids=PRESENT_TOPICS)
    def test_the_event_gives_the_stored_bytes(self, event: type[Aggregate.Event]) -> None:
        later = [f"+{name}" for name in later_fields(event)]
        stored, _ = golden(event.TOPIC + "".join(later[-1:]))
        read = MAPPER.to_domain_event(stored)
        # As a decision makes it: with its fields in the order of the class.
        decided = type(read)(**vars(read))
        assert decided == read
        assert MAPPER.to_stored_event(decided) == stored

    def test_an_old_version_comes_back_in_the_newest_shape(self) -> None:
        stored, _ = golden("upload.started.v1")
        assert b'"size":12582912' in stored.state
        assert b"category" not in stored.state
        upcast = MAPPER.to_stored_event(MAPPER.to_domain_event(stored))
        assert upcast.topic == "upload.started.v2"
        present = json.loads(golden("upload.started.v2")[0].state)
        assert json.loads(upcast.state) == {**present, "category": None}


class TestUnreadable:
    @pytest.mark.parametrize("topic", ["upload.started.v3", "upload.Started", ""])
    def test_an_unknown_topic(self, topic: str) -> None:
        stored = dataclasses.replace(golden("upload.started.v2")[0], topic=topic)
        with pytest.raises(MapperDeserialisationError, match=f"version 1 .*topic {topic}"):
            MAPPER.to_domain_event(stored)

    @pytest.mark.parametrize(
        "state", [b"", b"{", b"null", b"[]", b'"timestamp"', b"7", b"\xff\xfe", b"{}", None]
    )
    @pytest.mark.parametrize("topic", ["upload.started.v1", "comment.posted.v1"])
    def test_a_payload_that_is_no_object(self, topic: str, state: Any) -> None:
        stored = dataclasses.replace(golden(topic)[0], state=state)
        with pytest.raises(MapperDeserialisationError, match=f"topic {topic}"):
            MAPPER.to_domain_event(stored)

    @pytest.mark.parametrize("topic", TOPICS)
    def test_any_missing_field(self, topic: str) -> None:
        for name in json.loads(golden(topic)[0].state):
            with pytest.raises(MapperDeserialisationError, match=name):
                MAPPER.to_domain_event(broken(topic, **{name: ...}))

    @pytest.mark.parametrize(
        "changes", [{"timestamp": "soon"}, {"timestamp": 7}, {"video_id": "x"}, {"video_id": []}]
    )
    def test_a_value_of_another_kind(self, changes: dict[str, Any]) -> None:
        with pytest.raises(MapperDeserialisationError, match=r"comment\.posted\.v1"):
            MAPPER.to_domain_event(broken("comment.posted.v1", **changes))

    def test_a_field_that_nobody_knows_is_no_reason(self) -> None:
        event = MAPPER.to_domain_event(broken("comment.posted.v1", added_later=1))
        assert vars(event)["content"] == "¡Qué bonito! 🌧️"


class TestDeclarations:
    def test_topics_are_versioned_and_used_once(self) -> None:
        assert len(set(TOPICS)) == len(TOPICS)
        for aggregate in aggregates():
            for event in aggregate.events():
                for topic in topics_of(event):
                    name, kind, version = topic.split(".")
                    assert name == aggregate.TOPIC  # type: ignore[attr-defined]
                    assert kind
                    assert version[0] == "v"
                    assert int(version[1:]) >= 1

    def test_a_topic_can_not_be_declared_twice(self) -> None:
        with pytest.raises(TypeError, match=r"Other declares the topic comment\.posted\.v1"):

            class Other(Aggregate):
                class Posted(Aggregate.Event):
                    TOPIC = "comment.posted.v1"

    @pytest.mark.parametrize("event", EVENTS, ids=PRESENT_TOPICS)
    def test_every_event_says_who_when_and_why(self, event: type[Aggregate.Event]) -> None:
        names = [field.name for field in dataclasses.fields(event)]
        envelope = ["originator_id", "originator_version", "timestamp", "actor"]
        assert names[:6] == [*envelope, "correlation_id", "causation_id"]

    @pytest.mark.parametrize("event", EVENTS, ids=PRESENT_TOPICS)
    def test_what_tells_about_a_person_is_marked(self, event: type[Aggregate.Event]) -> None:
        about = {
            "actor": "actor",
            "owner": "owner",
            "author": "author",
            "viewer": "viewer",
            "content": "author",
            "translated_text": "author",
            "transcript": "owner",
            "title": "owner",
            "description": "owner",
            "filename": "owner",
            "user_id": "user_id",
            "video_owner": "video_owner",
            "stated_reason": "actor",
            "blocker": "blocker",
            "blocked": "blocked",
            "reporter": "reporter",
            "detail": "reporter",
            "person": "person",
        }
        if event is Operation.Requested:
            about["reason"] = "actor"
        if issubclass(event, Revocations.Event):
            about["reason"] = "user_id" if event is Revocations.UserRevoked else "actor"
        names = {field.name for field in dataclasses.fields(event)}
        assert personal(event) == {name: about[name] for name in about if name in names}
        assert set(personal(event).values()) <= names


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value

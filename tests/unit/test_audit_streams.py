"""What each event of a stream changed, and the aggregate at any version."""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import UUID

import orjson
import pytest
from eventsourcing.persistence import StoredEvent

from domain.comment import Comment
from domain.model import Aggregate
from domain.upload import Upload
from engine.inspection.streams import FieldChange, Fold, fields, read_entry
from engine.log import EventMapper, Stored
from engine.payload_mode import PayloadMode
from readapi.audit.inspector import as_state, as_step
from tests.unit.given_when_then import STREAM, by

MAPPER = EventMapper()


def recorded(aggregate: Aggregate) -> list[Stored]:
    """What the aggregate has recorded, as the log holds it from position 11 on."""
    stored: list[StoredEvent] = [MAPPER.to_stored_event(e) for e in aggregate.collect_events()]
    return [
        Stored(at, UUID(str(e.originator_id)), e.originator_version, e.topic, e.state)
        for at, e in enumerate(stored, 11)
    ]


def comment() -> list[Stored]:
    written = Comment.blank(STREAM)
    written.post(UUID(int=9), "Bonito", by("ann"))
    written.edit("Bonita", by("ann"))
    written.detect_language(2, "es", 0.9, "detector", "en", by("translation"))
    written.translate(2, "es", "en", "Pretty", "model", "prompt", by("translation"))
    written.delete(by("ann"))
    return recorded(written)


def upload() -> list[Stored]:
    started = Upload.blank(STREAM)
    started.start(
        by("ann"),
        title="Rain",
        filename="rain.mp4",
        content_type="video/mp4",
        size_bytes=10,
        description=None,
        category=None,
        part_size_bytes=10,
        object_key="videos/rain",
        store_upload_id="store",
    )
    started.complete(10, "etag", by("ann"))
    started.change_details(by("ann"), title="Sun", description="Filmed in one take.", category=None)
    return recorded(started)


def by_the_library(events: Sequence[Stored]) -> Aggregate:
    """The aggregate as the library's mapper and mutators make it."""
    aggregate: Aggregate | None = None
    for stored in events:
        event = MAPPER.to_domain_event(StoredEvent(*stored[1:]))
        aggregate = event.mutate(aggregate)  # type: ignore[attr-defined]
    assert aggregate is not None
    return aggregate


@pytest.mark.parametrize("events", [comment(), upload()], ids=["comment", "upload"])
def test_each_version_is_what_the_library_folds(events: list[Stored]) -> None:
    fold = Fold(STREAM)
    for number, stored in enumerate(events, 1):
        fold.add(read_entry(stored))
        wanted = by_the_library(events[:number])
        assert fold.aggregate is not None
        public = {k: v for k, v in vars(fold.aggregate).items() if k != "_created_on"}
        assert public == {k: v for k, v in vars(wanted).items() if k != "_created_on"}
        assert fold.fields == fields(wanted)
        assert fold.version == number


def test_changes_are_those_between_the_versions() -> None:
    fold = Fold(STREAM)
    steps = [fold.add(read_entry(stored)) for stored in comment()]
    assert steps[0].changes is not None
    assert steps[0].changes["content"] == FieldChange(None, "Bonito")
    assert steps[0].changes["revision"] == FieldChange(None, 1)
    assert steps[1].changes == {
        "content": FieldChange("Bonito", "Bonita"),
        "revision": FieldChange(1, 2),
    }
    assert steps[2].changes == {
        "language": FieldChange(None, "es"),
        "confidence": FieldChange(None, 0.9),
    }
    assert steps[3].changes == {
        "translated_text": FieldChange(None, "Pretty"),
        "translation": FieldChange(None, ["en", "model", "prompt"]),
        "translation_status": FieldChange("pending", "translated"),
    }
    assert steps[4].changes == {"standing": FieldChange("posted", "deleted")}


def test_it_is_told_as_the_contract_names_things() -> None:
    fold = Fold(STREAM)
    step = [fold.add(read_entry(stored)) for stored in upload()][-1]
    told = json.loads(as_step(step, PayloadMode.FULL).to_json())
    assert told["changed"] == {
        "title": {"from": "Rain", "to": "Sun"},
        "description": {"from": None, "to": "Filmed in one take."},
    }
    state = json.loads(as_state(fold, PayloadMode.FULL).to_json())
    assert (state["aggregate"], state["id"], state["version"]) == ("upload", str(STREAM), 3)
    assert state["createdOn"] == state["modifiedOn"] == "2026-11-01T12:30:00Z"
    assert state["fields"]["sizeBytes"] == 10
    assert state["fields"]["category"] is None
    masked = json.loads(as_step(step, PayloadMode.MASKED).to_json())
    assert masked["changed"]["title"] == {"from": "<string 4>", "to": "<string 3>"}
    assert "changed" not in json.loads(as_step(step, PayloadMode.NONE).to_json())


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"state": b"{}"}, "KeyError"),
        ({"topic": "unheard.of"}, "unheard.of"),
        ({"version": 7}, "7"),
        ({"topic": "video_likes.liked.v1", "state": orjson.dumps({})}, "KeyError"),
    ],
)
def test_from_an_unreadable_event_on_nothing_is_guessed(
    broken: dict[str, object], why: str
) -> None:
    events = comment()
    events[1] = events[1]._replace(**broken)  # type: ignore[arg-type]
    fold = Fold(STREAM)
    steps = [fold.add(read_entry(stored)) for stored in events]
    assert [step.changes is not None for step in steps] == [True, False, False, False, False]
    state = as_state(fold, PayloadMode.FULL)
    assert state.version == 1
    assert state.fields is not None
    assert state.fields["content"] == "Bonito"
    assert state.error is not None
    assert why in state.error


def test_an_event_of_another_aggregate_is_not_taken_for_one_of_this() -> None:
    events = comment()
    foreign = upload()[1]._replace(version=2)
    fold = Fold(STREAM)
    fold.add(read_entry(events[0]))
    assert fold.add(read_entry(foreign)).changes is None
    assert fold.error is not None

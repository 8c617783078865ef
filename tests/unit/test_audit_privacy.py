"""No value of a personal field leaves the audit where its mode does not admit it."""

from __future__ import annotations

import json
from typing import Annotated, get_args, get_origin, get_type_hints

import orjson
import pytest

from domain.model import EVENTS, Aggregate, Personal
from engine.inspection.streams import Fold, Surroundings, Trace, read_entry, tree
from engine.log import Stored
from engine.payload_mode import PayloadMode
from readapi.audit.inspector import as_detail, as_event, as_state, as_step, as_trace
from tests.unit.audit_events import TOPICS, golden

SECRET = "qx7-personal-value"
HIDING = [PayloadMode.MASKED, PayloadMode.NONE]


def marked(stored: Stored) -> Stored:
    """The event with a value that stands out in each personal field, and in whatever is text."""
    event = EVENTS[stored.topic]
    payload = json.loads(stored.state)
    personal = personal_fields(event)
    assert personal
    for name in personal:
        payload[name] = SECRET
    return stored._replace(state=orjson.dumps(payload))


def personal_fields(event: type[Aggregate.Event]) -> list[str]:
    return [
        name
        for name, hint in get_type_hints(event, include_extras=True).items()
        if get_origin(hint) is Annotated
        if any(isinstance(mark, Personal) for mark in get_args(hint)[1:])
    ]


def everything_told(stored: Stored, mode: PayloadMode) -> str:
    """All answers in which the event occurs, as they go over the wire."""
    entry = read_entry(stored)
    fold = Fold(stored.stream_id)
    # As if it were the stream's first, whatever the golden file says.
    step = fold.add(read_entry(stored._replace(version=1)))
    around = Surroundings(stored, stored, None, [stored])
    trace = Trace(tree("correlation", [entry]), 1, truncated=False)
    answers = [
        as_event(entry, mode),
        as_detail(entry, around, mode),
        as_step(step, mode),
        as_state(fold, mode),
        as_trace("correlation", trace, mode),
    ]
    return "\n".join(answer.to_json().decode() for answer in answers)


@pytest.mark.parametrize("mode", HIDING)
@pytest.mark.parametrize("topic", TOPICS)
def test_no_personal_value_leaves(topic: str, mode: PayloadMode) -> None:
    assert SECRET not in everything_told(marked(golden(topic)), mode)


@pytest.mark.parametrize("topic", TOPICS)
def test_admins_see_it(topic: str) -> None:
    assert SECRET in everything_told(marked(golden(topic)), PayloadMode.FULL)


@pytest.mark.parametrize("mode", HIDING)
@pytest.mark.parametrize(
    "state",
    [
        f'{{"actor":"{SECRET}","timestamp":"{SECRET}","author":"{SECRET}"}}',
        f'["{SECRET}"]',
        f'{{"content":"{SECRET}"',
        f'"{SECRET}"',
        SECRET,
    ],
)
@pytest.mark.parametrize("topic", ["comment.posted.v1", "unheard.of"])
def test_what_nobody_can_read_hides_its_bytes_and_the_message_that_quotes_them(
    topic: str, state: str, mode: PayloadMode
) -> None:
    stored = golden("comment.posted.v1")._replace(topic=topic, state=state.encode())
    told = everything_told(stored, mode)
    assert SECRET not in told
    assert '"state":"' not in told
    assert '"error":"' in told
    # In base64 nobody would see it above.
    assert '"state":"' in everything_told(stored, PayloadMode.FULL)


def test_a_message_that_quotes_a_value_is_for_admins() -> None:
    stored = golden("comment.posted.v1")
    payload = {**json.loads(stored.state), "timestamp": SECRET}
    broken = stored._replace(state=orjson.dumps(payload))
    error = as_event(read_entry(broken), PayloadMode.FULL).error
    assert error is not None
    assert SECRET in error
    for mode in HIDING:
        assert SECRET not in everything_told(broken, mode)
        hidden = as_event(read_entry(broken), mode)
        assert hidden.error == "can't be read: ValueError"


def test_masked_keeps_the_structure() -> None:
    event = as_event(read_entry(golden("comment.posted.v1")), PayloadMode.MASKED)
    assert event.actor == "<string 3>"
    assert event.payload == {
        "video_id": "<string 36>",
        "author": "<string 3>",
        "content": "<string 15>",
    }


def test_none_tells_the_envelope_only() -> None:
    told = as_event(read_entry(golden("comment.posted.v1")), PayloadMode.NONE)
    assert set(json.loads(told.to_json())) == {
        "position",
        "id",
        "streamId",
        "version",
        "topic",
        "type",
        "aggregate",
        "recordedAt",
        "correlationId",
        "causationId",
        "payloadMode",
    }


def test_an_empty_value_stays_in_what_is_told() -> None:
    stored = golden("upload.details_changed.v1")
    payload = {**json.loads(stored.state), "category": None}
    entry = read_entry(stored._replace(state=orjson.dumps(payload)))
    told = json.loads(as_event(entry, PayloadMode.FULL).to_json())
    assert told["payload"]["category"] is None

"""Pseudonyms inside, user ids outside: in the shapes of answers, and in what operators see."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import get_args
from uuid import UUID

import psycopg
import pytest
from fastapi import Request, Response
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

import backlot.features
from domain.errors import Forgotten
from domain.model import FORGOTTEN
from engine.inspection.streams import Fold, read_entries, read_entry
from engine.payload_mode import PayloadMode
from infra.http.app import HttpApp
from infra.http.auth import Authenticator, Caller, mint_token, person_admitted, person_named
from infra.http.keys import OneKey
from infra.http.responses import wire
from infra.http.shapes import PersonMark, RequestBody, UserId, Video, Wire, name_persons
from infra.key_encryption import KeyEncryptionFailed
from infra.pseudonyms import UNKNOWN, OwnNames, Pseudonyms, searched
from readapi.audit.inspector import as_event, as_state, as_step
from readapi.pages import Page
from tests.unit.audit_events import golden

SECRET = "signs the tokens of these tests only"
ANN, EVE = "a" * 32, "e" * 32
VIDEO = UUID(int=7, version=4)

# A shape that tells of a person under such a name has a pseudonym in the field, unless the call
# itself has named the user.
OF_PERSONS = {"user_id", "owner_id", "requested_by", "decided_by", "revoked_by", "actor", "author"}
AS_THE_CALL_NAMES_THEM = {
    ("PersonalExport", "user_id"),
    ("PersonPseudonym", "user_id"),
    ("Forgetting", "user_id"),
    ("ForgettingProgress", "user_id"),
    ("PersonCertificate", "user_id"),
    ("OwnerStats", "user_id"),
    # The inspector turns them around, for the command line too.
    ("AuditEvent", "actor"),
    ("AuditEventDetail", "actor"),
    ("StreamEvent", "actor"),
    ("TraceNode", "actor"),
    # Turned around for admins alone; and what a task does.
    ("OperatorAction", "actor"),
    ("DeadTask", "actor"),
}


class Known:
    """Ann, and somebody who was forgotten."""

    names_at_hand = True

    def admit(self, user_id: str) -> str:
        if user_id == "eve":
            raise Forgotten("This user was forgotten on request: nothing is taken from them.")
        return ANN if user_id == "ann" else "b" * 32

    def find(self, user_id: str) -> str | None:
        return ANN if user_id == "ann" else None

    def recall(self, pseudonyms: Iterable[str]) -> Mapping[str, str] | None:
        return self.names(pseudonyms) if self.names_at_hand else None

    def names(self, pseudonyms: Iterable[str]) -> Mapping[str, str]:
        known = {ANN: "ann", EVE: FORGOTTEN}
        return {each: known[each] for each in pseudonyms if each in known}

    def ticket_key(self) -> bytes:
        return bytes(32)


class Away(Known):
    """Nobody answers."""

    names_at_hand = False

    def __init__(self, error: Exception) -> None:
        self._error = error

    def admit(self, user_id: str) -> str:
        raise self._error

    def find(self, user_id: str) -> str | None:
        raise self._error

    def names(self, pseudonyms: Iterable[str]) -> Mapping[str, str]:
        raise self._error


def all_shapes(shape: type[Wire] = Wire) -> Iterator[type[Wire]]:
    assert backlot.features.FEATURES, "imports whatever answers"
    for each in shape.__subclasses__():
        yield each
        yield from all_shapes(each)


def answers() -> list[type[Wire]]:
    ours = ("commands.", "readapi.", "infra.", "backlot.", "workers.")
    shapes = (shape for shape in all_shapes() if not issubclass(shape, RequestBody))
    return [shape for shape in shapes if shape.__module__.startswith(ours)]


def test_every_field_that_is_a_person_is_marked() -> None:
    unmarked = [
        (shape.__name__, name)
        for shape in answers()
        for name, field in shape.model_fields.items()
        if name in OF_PERSONS and name not in shape.may_name().own
    ]
    assert set(unmarked) == AS_THE_CALL_NAMES_THEM
    assert Video.may_name().own == ("owner_id",)
    assert Page[Video].may_name().nested == ("items",)


def test_no_person_stands_where_nobody_looks() -> None:
    """Marked fields are found in shapes, in lists of shapes, and where either may be missing."""
    assert not [
        (shape.__name__, name)
        for shape in answers()
        for name, field in shape.model_fields.items()
        if name not in shape.may_name().own
        and any(isinstance(each, PersonMark) for each in _deep(field.annotation))
    ]


def _deep(annotation: object) -> Iterator[object]:
    yield from getattr(annotation, "__metadata__", ())
    for inner in get_args(annotation):
        yield from _deep(inner)


def video(owner: str = ANN) -> Video:
    return Video(
        video_id=VIDEO,
        title=ANN,
        owner_id=owner,
        status="completed",
        visibility="public",
        created_at=datetime(2026, 11, 22, tzinfo=UTC),
        likes=0,
        comments=0,
        views=0,
    )


def test_a_shape_has_names_in_the_answer_alone() -> None:
    shape = video()
    page = Page[Video](items=[shape, shape, video(EVE), video("system")])
    told = json.loads(page.to_json({ANN: "ann", EVE: FORGOTTEN}))["items"]
    assert [each["ownerId"] for each in told] == ["ann", "ann", "forgotten", "system"]
    # What somebody wrote stays as it is.
    assert told[0]["title"] == ANN
    assert json.loads(page.to_json())["items"][0]["ownerId"] == ANN
    assert shape == video()


def test_names_can_be_put_in_for_good() -> None:
    shape = video()
    name_persons([shape], Known())
    assert shape == video("ann")


@pytest.mark.parametrize(
    ("actor", "by_name", "expected"),
    [
        ("ann", True, ANN),
        ("ann", False, UNKNOWN),
        (ANN, True, ANN),
        (ANN, False, ANN),
        ("bob", True, UNKNOWN),
        ("translation", False, "translation"),
        ("operator:root", True, "operator:root"),
    ],
)
def test_names_are_searched_for_by_whoever_may_see_them(
    actor: str, by_name: bool, expected: str
) -> None:
    assert searched(Known(), actor, by_name=by_name) == expected


def test_user_ids_may_be_their_own_pseudonyms() -> None:
    assert searched(OwnNames(), "ann", by_name=False) == "ann"
    assert OwnNames().names(["ann"]) == {"ann": "ann"}


class TestEvents:
    """What operators see of events that name Ann, and one who was forgotten."""

    def entries(self, persons: Pseudonyms | None) -> list[dict[str, object]]:
        stored = golden("blocks.blocked.v1")
        payload = json.loads(stored.state) | {"actor": ANN, "blocker": ANN, "blocked": EVE}
        state = json.dumps(payload | {"correlation_id": ANN}).encode()
        (entry,) = read_entries([stored._replace(state=state)], persons)
        told: dict[str, object] = json.loads(as_event(entry, PayloadMode.FULL).to_json())
        return [told]

    def test_persons_have_their_names(self) -> None:
        (told,) = self.entries(Known())
        assert told["actor"] == "ann"
        assert told["payload"] == {"blocker": "ann", "blocked": "forgotten"}
        # Only what is a person is turned around.
        assert told["correlationId"] == ANN

    def test_without_names_they_have_pseudonyms(self) -> None:
        (told,) = self.entries(None)
        assert told["actor"] == ANN
        assert told["payload"] == {"blocker": ANN, "blocked": EVE}

    def test_states_and_changes_have_names_too(self) -> None:
        stored = golden("comment.posted.v1")
        payload = json.loads(stored.state) | {"actor": ANN, "author": ANN, "content": ANN + "!"}
        stored = stored._replace(version=1, state=json.dumps(payload).encode())
        (entry,) = read_entries([stored], Known())
        fold = Fold(stored.stream_id)
        step = json.loads(as_step(fold.add(entry), PayloadMode.FULL).to_json())
        assert step["changed"]["author"]["to"] == "ann"
        assert step["changed"]["content"]["to"] == ANN + "!"
        state = json.loads(as_state(fold, PayloadMode.FULL).to_json())
        assert state["fields"]["author"] == "ann"
        nameless = Fold(stored.stream_id)
        nameless.add(read_entry(stored))
        assert nameless.fields["author"] == ANN


def client(persons: Pseudonyms, translate: bool = False) -> TestClient:
    app = HttpApp(
        title="some",
        authenticator=Authenticator(OneKey(SECRET, ["HS256"]), persons=persons),
        body_limit=1000,
        translate={},
    )

    class Whose(Wire):
        user_id: UserId

    @app.get("/videos")
    async def read() -> Response:
        return wire(video(), headers={"Vary": "Authorization"})

    @app.get("/me")
    async def me(caller: Caller) -> Response:
        return wire(Whose(user_id=caller.person))

    @app.get("/named/{user_id}")
    async def named(user_id: str, request: Request) -> str:
        return await person_named(request, user_id)

    @app.put("/named/{user_id}")
    async def admitted(user_id: str, request: Request) -> str:
        return await person_admitted(request, user_id)

    return TestClient(app)


def bearer(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {mint_token(SECRET, user)}"}


def test_answers_have_user_ids() -> None:
    calls = client(Known())
    answer = calls.get("/videos")
    assert answer.json()["ownerId"] == "ann"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["vary"] == "Authorization"
    head = calls.head("/videos")
    assert (head.headers["content-length"], head.content) == (answer.headers["content-length"], b"")
    assert calls.get("/me", headers=bearer("ann")).json() == {"userId": "ann"}


def test_names_that_are_not_at_hand_are_asked_for() -> None:
    persons = Known()
    persons.names_at_hand = False
    assert client(persons).get("/videos").json()["ownerId"] == "ann"


def test_who_is_unknown_has_the_pseudonym_of_nobody() -> None:
    calls = client(Known())
    assert calls.get("/named/ann").json() == ANN
    assert calls.get("/named/bob").json() == UNKNOWN
    assert calls.put("/named/bob").json() == "b" * 32


def test_whoever_was_forgotten_is_told_so() -> None:
    calls = client(Known())
    for answer in (calls.get("/me", headers=bearer("eve")), calls.put("/named/eve")):
        assert (answer.status_code, answer.json()["type"]) == (410, "forgotten")


@pytest.mark.parametrize("error", [psycopg.OperationalError("gone"), KeyEncryptionFailed("no key")])
def test_while_nobody_can_be_told_apart_callers_are_asked_to_come_back(error: Exception) -> None:
    calls = client(Away(error))
    with capture_logs() as logged:
        told = [
            calls.get("/videos"),
            calls.get("/me", headers=bearer("ann")),
            calls.get("/named/ann"),
            calls.put("/named/ann"),
        ]
    assert {(each.status_code, each.json()["type"]) for each in told} == {(503, "unavailable")}
    assert {each.headers["retry-after"] for each in told} == {"1"}
    assert {line["event"] for line in logged} == {"persons_unavailable"}


def test_what_breaks_is_logged_without_the_name_in_the_path() -> None:
    calls = client(Away(ArithmeticError("broken")))
    with capture_logs() as logged:
        assert calls.get("/named/ann").status_code == 500
    assert [line["path"] for line in logged] == ["/named/{user_id}"]
    assert "ann" not in str(logged)

"""What events say about persons is encrypted: for whom, how it is bound, what a lost key leaves."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from eventsourcing.persistence import MapperDeserialisationError, StoredEvent

from domain.model import SYSTEM_ACTORS, Aggregate
from engine.log import SEALED, EventMapper, personal_fields
from engine.wrapping_keys import KeyDamaged
from tests.support import aggregates
from tests.unit.test_codec import golden

TEXT = 'Straße, "so" they say… \\ 🌧️'
EVENTS = [event for aggregate in aggregates() for event in aggregate.events()]
FIELDS = [
    (event, name)
    for event in EVENTS
    for name, person in personal_fields(event).items()
    if name != person
]
NAMES = [f"{event.TOPIC} {name}" for event, name in FIELDS]


class Keyring:
    """Keys of persons in memory; `asked` is who was prepared, each time."""

    def __init__(self, *persons: str) -> None:
        self.keys: dict[str, AESGCM | None] = {each: a_key() for each in persons}
        self.asked: list[set[str]] = []

    def cipher(self, person: str) -> AESGCM | None:
        return self.keys[person]

    def prepare(self, persons: Iterable[str]) -> None:
        self.asked.append(set(persons))


def a_key() -> AESGCM:
    return AESGCM(secrets.token_bytes(32))


def mapper_of(keyring: Keyring | None) -> EventMapper:
    mapper = EventMapper()
    mapper.ciphers = keyring
    return mapper


@pytest.fixture
def keyring() -> Keyring:
    return Keyring("alice", "bob")


@pytest.fixture
def mapper(keyring: Keyring) -> EventMapper:
    return mapper_of(keyring)


def made(kind: type[Aggregate.Event], **changes: Any) -> Aggregate.Event:
    """The event of the golden file with other values."""
    read = EventMapper().to_domain_event(golden(kind.TOPIC)[0])
    event = object.__new__(kind)
    object.__setattr__(event, "__dict__", {**vars(read), **changes})
    return event


def of_alice(kind: type[Aggregate.Event], **changes: Any) -> Aggregate.Event:
    """The same, with all that it says of anybody said of alice."""
    return made(kind, **dict.fromkeys(personal_fields(kind).values(), "alice") | changes)


def posted(mapper: EventMapper, **changes: Any) -> StoredEvent:
    """A comment of alice's, as it is stored."""
    kind = next(each for each in EVENTS if each.TOPIC == "comment.posted.v1")
    return mapper.to_stored_event(of_alice(kind, **{"content": TEXT, **changes}))


def content(mapper: EventMapper, stored: StoredEvent) -> Any:
    return vars(mapper.to_domain_event(stored))["content"]


def with_payload(stored: StoredEvent, **changes: Any) -> StoredEvent:
    return dataclasses.replace(
        stored, state=json.dumps({**json.loads(stored.state), **changes}).encode()
    )


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=NAMES)
class TestEachField:
    def test_it_is_read_with_the_key_alone(
        self, mapper: EventMapper, kind: type[Aggregate.Event], name: str
    ) -> None:
        event = of_alice(kind, **{name: TEXT})
        stored = mapper.to_stored_event(event)
        assert list(json.loads(stored.state)[name]) == [SEALED]
        assert b"Stra" not in stored.state
        assert vars(mapper.to_domain_event(stored)) == vars(event)
        place = (event.originator_id, event.originator_version, *tail(stored))
        assert mapper.payload(*place)[name] == TEXT
        for others in (mapper_of(None), mapper_of(Keyring("alice"))):
            with pytest.raises(MapperDeserialisationError):
                others.to_domain_event(stored)
            with pytest.raises(ValueError, match=r"encrypted|can't be read"):
                others.payload(*place)

    def test_whose_key_is_destroyed_has_said_nothing(
        self,
        mapper: EventMapper,
        keyring: Keyring,
        kind: type[Aggregate.Event],
        name: str,
    ) -> None:
        stored = mapper.to_stored_event(of_alice(kind, **{name: TEXT}))
        keyring.keys["alice"] = None
        assert vars(mapper.to_domain_event(stored))[name] in ("", None)
        # What is still said of somebody who is forgotten is read by nobody, later keys included.
        late = mapper.to_stored_event(of_alice(kind, **{name: TEXT}))
        assert b"Stra" not in late.state
        assert vars(mapper.to_domain_event(late))[name] in ("", None)
        keyring.keys["alice"] = a_key()
        with pytest.raises(MapperDeserialisationError):
            mapper.to_domain_event(late)


def tail(stored: StoredEvent) -> tuple[str, bytes]:
    return stored.topic, stored.state


class TestBinding:
    def test_the_same_words_are_never_stored_twice_alike(self, mapper: EventMapper) -> None:
        assert posted(mapper).state != posted(mapper).state

    @pytest.mark.parametrize(
        "changes",
        [{"originator_id": uuid4()}, {"originator_version": 2}],
        ids=["stream", "version"],
    )
    def test_it_belongs_to_its_event(self, mapper: EventMapper, changes: dict[str, Any]) -> None:
        with pytest.raises(MapperDeserialisationError, match="InvalidTag"):
            mapper.to_domain_event(dataclasses.replace(posted(mapper), **changes))

    def test_it_belongs_to_its_person(self, mapper: EventMapper) -> None:
        with pytest.raises(MapperDeserialisationError, match="InvalidTag"):
            mapper.to_domain_event(with_payload(posted(mapper), author="bob"))

    def test_it_belongs_to_its_field(self, mapper: EventMapper) -> None:
        kind = next(each for each in EVENTS if each.TOPIC == "upload.started.v2")
        stored = mapper.to_stored_event(
            of_alice(kind, title="title", filename="filename", description="more")
        )
        payload = json.loads(stored.state)
        assert vars(mapper.to_domain_event(stored))["filename"] == "filename"
        for one, other in (("title", "filename"), ("description", "title")):
            with pytest.raises(MapperDeserialisationError, match="InvalidTag"):
                mapper.to_domain_event(with_payload(stored, **{one: payload[other]}))

    @pytest.mark.parametrize(
        "value", [{}, {SEALED: 7}, {SEALED: ""}, {SEALED: "AAAA"}, {SEALED: "%"}, {"other": "AAAA"}]
    )
    def test_what_is_no_cipher_text_is_unreadable(self, mapper: EventMapper, value: object) -> None:
        with pytest.raises(MapperDeserialisationError):
            mapper.to_domain_event(with_payload(posted(mapper), content=value))


class TestWhatStaysPlain:
    def test_nothing_is_nothing(self, mapper: EventMapper) -> None:
        kind = next(each for each in EVENTS if each.TOPIC == "upload.started.v2")
        stored = mapper.to_stored_event(of_alice(kind, description=None))
        assert json.loads(stored.state)["description"] is None
        assert vars(mapper.to_domain_event(stored))["description"] is None

    @pytest.mark.parametrize("actor", [*sorted(SYSTEM_ACTORS), "operator:root"])
    def test_reasons_of_the_system_and_of_operators(self, mapper: EventMapper, actor: str) -> None:
        kind = next(each for each in EVENTS if "stated_reason" in personal_fields(each))
        stored = mapper.to_stored_event(of_alice(kind, actor=actor, stated_reason=TEXT))
        assert json.loads(stored.state)["stated_reason"] == TEXT

    @pytest.mark.parametrize("kind", EVENTS, ids=[event.TOPIC for event in EVENTS])
    def test_events_of_older_releases(
        self, mapper: EventMapper, kind: type[Aggregate.Event]
    ) -> None:
        stored, expected = golden(kind.TOPIC)
        read = vars(mapper.to_domain_event(stored))
        for name in personal_fields(kind):
            # They lack what came later.
            assert read[name] == expected["fields"].get(name)

    def test_words_that_look_like_a_cipher_text(self, mapper: EventMapper) -> None:
        words = json.dumps({SEALED: "AAAA"})
        assert content(mapper, posted(mapper, content=words)) == words


class TestPersons:
    def test_nobody_s_texts_are_not_recorded(self, mapper: EventMapper) -> None:
        with pytest.raises(KeyError, match="nobody"):
            posted(mapper, author="nobody")

    def test_a_damaged_key_is_told_of_its_events_alone(
        self, mapper: EventMapper, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours, theirs = posted(mapper), posted(mapper, author="bob")

        def cipher(person: str) -> AESGCM | None:
            if person == "alice":
                raise KeyDamaged(person)
            return keyring.keys[person]

        monkeypatch.setattr(keyring, "cipher", cipher)
        with pytest.raises(MapperDeserialisationError, match="can't be unwrapped"):
            mapper.to_domain_event(ours)
        assert content(mapper, theirs) == TEXT

    def test_a_window_asks_once_for_all_keys_that_it_needs(
        self, mapper: EventMapper, keyring: Keyring
    ) -> None:
        plain, _ = golden("comment.posted.v1")
        liked, _ = golden("video_likes.liked.v1")
        window = [posted(mapper), posted(mapper, author="bob"), posted(mapper), plain, liked]
        mapper.prepare([tail(each) for each in window])
        assert keyring.asked == [{"alice", "bob"}]
        mapper.prepare([tail(plain), tail(liked)])
        mapper.prepare([])
        assert len(keyring.asked) == 1

    @pytest.mark.parametrize(
        "state",
        [
            b'{"aes256gcm":',
            b'[{"aes256gcm":"AAAA"}]',
            b'"{"aes256gcm":"AAAA"}"',
            b'{"content":{"aes256gcm":"AAAA"}}',
            b'{"content":{"aes256gcm":"AAAA"},"author":7}',
            b'{"content":{"aes256gcm":"AAAA"},"author":["alice"]}',
            b'{"content":{"aes256gcm":"AAAA"},"author":null}',
            b'\xff{"aes256gcm":"AAAA"}',
        ],
    )
    def test_what_can_not_be_read_breaks_no_window(
        self, mapper: EventMapper, keyring: Keyring, state: bytes
    ) -> None:
        broken = dataclasses.replace(posted(mapper), state=state)
        mapper.prepare([tail(broken), ("of.another.release.v9", state), tail(posted(mapper))])
        assert keyring.asked == [{"alice"}]
        with pytest.raises(MapperDeserialisationError):
            mapper.to_domain_event(broken)

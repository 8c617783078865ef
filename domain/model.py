"""What all aggregates and events share: who acted, when and why, and how a stream begins."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self
from uuid import UUID

from eventsourcing.domain import AggregateEvent, BaseAggregate

Upcast = Callable[[dict[str, Any]], None]
EVENTS: dict[str, type[Aggregate.Event]] = {}
"""Every event that an imported module declares, by its topics: the present one and the old ones."""
BEGINNING = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Personal:
    """Marks an event field that tells something about a person.

    Used as `Annotated[str, Personal("author")]`; `subject` names the field that holds the person's
    user id, so that a codec can encrypt the field with that person's key, and destroying the key
    forgets the person.
    """

    subject: str


class ActorKind(StrEnum):
    """What an actor is.

    An `operator` has the role `admin` or `moderator`, or a shell on the machine; an `anonymous`
    viewer has no name; `system` is a part of the program.
    """

    USER = "user"
    ANONYMOUS = "anonymous"
    OPERATOR = "operator"
    SYSTEM = "system"


class SystemActor(StrEnum):
    """The parts of the program that record events of their own accord, by their names as actors."""

    SYSTEM = "system"
    EXPIRY = "expiry"
    PRIVACY = "privacy"
    PROJECTIONS = "projections"
    TRANSCRIPTION = "transcription"
    TRANSLATION = "translation"


SYSTEM_ACTORS = frozenset(SystemActor)
FORGOTTEN = "forgotten"
"""Stands in answers for the user id of whoever was forgotten."""
OPERATOR_PREFIX = "operator:"
"""What the names of operators at the command line begin with."""
RESERVED_PREFIXES = (OPERATOR_PREFIX, "system:")


def actor_kind(actor: str) -> ActorKind:
    """Return what the actor of that name is, where nobody knows better than by the name.

    No token can have one of the names that are not a user's: see `is_reserved`.
    """
    if actor in SYSTEM_ACTORS:
        return ActorKind.SYSTEM
    return ActorKind.OPERATOR if actor.startswith(OPERATOR_PREFIX) else ActorKind.USER


def is_reserved(name: str) -> bool:
    """Return whether a name is that of a part of the system or of an operator, or looks like one.

    Nor can anybody be called FORGOTTEN.

    Compared without case, compatibility forms (Unicode's NFKC), blanks and format characters.
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    seen = "".join(char for char in folded if unicodedata.category(char) not in ("Cf", "Zs"))
    return seen in (*SYSTEM_ACTORS, FORGOTTEN) or seen.startswith(RESERVED_PREFIXES)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a decision came from; every event carries it.

    `actor` is a user id (1-128 characters) or the name of a part of the system, `at` the recorded
    time (UTC), `correlation_id` names the whole conversation, `causation_id` the request or event
    that led to this decision. `kind` is what the actor is, where its name does not tell.
    """

    actor: str
    at: datetime
    correlation_id: str
    causation_id: str
    kind: ActorKind | None = None


class Aggregate(BaseAggregate[UUID]):
    """A consistency boundary with one stream; version 0 is the blank aggregate before any event.

    A public verb checks the rules and records; an event's `apply` only assigns, because it runs
    again on every load.
    """

    class Event(AggregateEvent):
        """A decision of an aggregate.

        `TOPIC` (`aggregate.event.vN`) never changes once stored. A new shape gets a new version,
        and `UPCASTS` maps each older topic to a function that turns its payload into the present
        one, in place; consumers know only the newest shape.
        """

        TOPIC: ClassVar[str]
        UPCASTS: ClassVar[Mapping[str, Upcast]] = MappingProxyType({})
        AGGREGATE: ClassVar[type[Aggregate]]
        # The field with a person of whom nothing is left from this event on, where it says so.
        FORGETS: ClassVar[str | None] = None
        # Beside the fields: events that older releases recorded have none.
        actor_kind: ClassVar[str | None] = None

        actor: Annotated[str, Personal("actor")]
        correlation_id: str
        causation_id: str

        def mutate(self, aggregate: Any) -> Any:
            if aggregate is None:
                aggregate = self.AGGREGATE.blank(self.originator_id)
            return super().mutate(aggregate)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.Event.AGGREGATE = cls
        for event in cls.events():
            for topic in (event.TOPIC, *event.UPCASTS):
                if topic in EVENTS:
                    raise TypeError(f"{cls.__name__} declares the topic {topic} a second time.")
                EVENTS[topic] = event

    @classmethod
    def events(cls) -> list[type[Aggregate.Event]]:
        """Return the event classes that this aggregate declares, in their order in the file."""
        return [
            value
            for name, value in vars(cls).items()
            if name != "Event" and isinstance(value, type) and issubclass(value, Aggregate.Event)
        ]

    @classmethod
    def blank(cls, stream_id: UUID) -> Self:
        """Return the aggregate before its first event: version 0, initial state."""
        aggregate = cls.__new__(cls)
        aggregate.__base_init__(stream_id, 0, BEGINNING)
        aggregate.__init__()  # type: ignore[misc]
        return aggregate

    @classmethod
    def stream_of(cls, fields: Mapping[str, Any]) -> UUID | None:
        """Return the id of a stream that is made from persons, given the fields of one of its
        events as JSON has them; None where persons make no id."""
        return None

    def record(self, event: type[Aggregate.Event], origin: Origin, **fields: Any) -> None:
        """Record a decision that has been checked: append the event and apply it.

        What the library's `trigger_event` does, without its search for the event's topic.
        """
        fields |= {
            "originator_id": self.id,
            "originator_version": self.version + 1,
            "timestamp": origin.at,
            "actor": origin.actor,
            "correlation_id": origin.correlation_id,
            "causation_id": origin.causation_id,
        }
        made = event(**fields)
        vars(made)["actor_kind"] = origin.kind or actor_kind(origin.actor)
        made.mutate(self)
        self.pending_events.append(made)

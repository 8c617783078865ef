"""given(aggregate, events).when(command).then(events): what an aggregate decides, as whole lists.

Every check also replays the log, so that what was decided and what a later load sees can't differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import pytest

from domain.errors import DomainError
from domain.model import Aggregate, Origin

A = TypeVar("A", bound=Aggregate)

STREAM = UUID("0b9d2a52-5f3c-4a57-8d3e-2f6a51c0c0de")
AT = datetime(2026, 11, 1, 12, 30, tzinfo=UTC)


def by(actor: str) -> Origin:
    """The origin of what this actor does; the same actor's origin is always the same."""
    return Origin(actor, AT, f"correlation of {actor}", f"causation of {actor}")


@dataclass(frozen=True)
class Fact:
    """An event apart from its place in a stream."""

    event: type[Aggregate.Event]
    origin: Origin
    fields: dict[str, Any]

    def as_event(self, version: int) -> Aggregate.Event:
        # The metaclass makes the constructor, where mypy does not see it.
        make: Any = self.event
        event: Aggregate.Event = make(
            originator_id=STREAM,
            originator_version=version,
            timestamp=self.origin.at,
            actor=self.origin.actor,
            correlation_id=self.origin.correlation_id,
            causation_id=self.origin.causation_id,
            **self.fields,
        )
        return event


def fact(event: type[Aggregate.Event], origin: Origin, **fields: Any) -> Fact:
    """What happened, who did it, and the event's own fields."""
    return Fact(event, origin, fields)


class Scenario(Generic[A]):
    """An aggregate with its history, before the command."""

    def __init__(self, aggregate: type[A], history: tuple[Fact, ...]) -> None:
        self.aggregate = aggregate
        self.history = _events(history, after=0)

    def load(self, more: list[Aggregate.Event] | None = None) -> A:
        """The aggregate as the log makes it."""
        loaded = self.aggregate.blank(STREAM)
        for event in [*self.history, *(more or [])]:
            event.mutate(loaded)
        return loaded

    def when(self, command: Callable[[A], object]) -> Outcome[A]:
        return Outcome(self, command)


class Outcome(Generic[A]):
    """What the command leads to: `then` runs it and checks."""

    def __init__(self, scenario: Scenario[A], command: Callable[[A], object]) -> None:
        self._scenario = scenario
        self._command = command

    def then(self, *expected: Fact) -> A:
        """Exactly these events in this order, none for "nothing happened"; gives the aggregate."""
        aggregate = self._scenario.load()
        self._command(aggregate)
        recorded = aggregate.collect_events()
        assert recorded == _events(expected, after=len(self._scenario.history))
        assert aggregate == self._scenario.load(recorded), "a load sees another state"
        return aggregate

    def refused(self, error: type[DomainError], message: str, **state: Any) -> None:
        """This refusal, with this state, and nothing recorded or changed."""
        aggregate = self._scenario.load()
        with pytest.raises(error, match=message) as caught:
            self._command(aggregate)
        assert type(caught.value) is error
        assert caught.value.state == state
        assert aggregate == self._scenario.load()


def given(aggregate: type[A], *history: Fact) -> Scenario[A]:
    """An aggregate to which this happened so far."""
    return Scenario(aggregate, history)


def _events(facts: tuple[Fact, ...], after: int) -> list[Any]:
    return [each.as_event(version) for version, each in enumerate(facts, start=after + 1)]

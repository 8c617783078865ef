"""One round of a batch: decide many commands on shared aggregates, and record what they decided.

Commands that share a *changed* aggregate form a group, because the later ones were decided on what
the earlier ones recorded. A group is saved atomically, and decided again when another process was
faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import structlog
from eventsourcing.persistence import StoredEvent

from commands.command import Aggregates, Command
from domain.errors import DomainError
from domain.model import Aggregate, Origin
from infra.codec import EventMapper
from infra.event_store import Answer, Save

log = structlog.get_logger(__name__)

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's name for one request; `request_hash` tells a repeat from another request.

    `render` turns the command's answer into the HTTP status and body that a repeat will get.
    """

    key: str
    request_hash: bytes
    render: Callable[[Any], tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Executed(Generic[R]):
    """A decided command: its answer, and the position from which on its effect can be read."""

    answer: R
    position: int


@dataclass(slots=True, eq=False)
class Request:
    """One command on its way through the bus."""

    command: Command[Any]
    actor: str
    correlation_id: str
    causation_id: str
    key: IdempotencyKey | None = None
    streams: Sequence[UUID] = field(init=False)
    conflicts: int = 0
    outcome: Executed[Any] | Answer | BaseException | None = None

    def __post_init__(self) -> None:
        self.streams = self.command.streams()


@dataclass(slots=True, eq=False)
class Group:
    """Commands that stand or fall together, with what they want recorded."""

    results: list[tuple[Request, Any]] = field(default_factory=list)
    streams: set[UUID] = field(default_factory=set)
    events: list[StoredEvent] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    void: bool = False

    def absorb(self, other: Group) -> None:
        """Take over what another group holds; its commands keep their order."""
        self.results += other.results
        self.streams |= other.streams
        self.events += other.events
        self.answers += other.answers
        self.void |= other.void

    def settle(self, outcome: range) -> None:
        """Give each command its outcome after the group was recorded at these positions.

        A group of nothing but answers has an empty range, which begins after the position that
        the store kept with them.
        """
        for request, result in self.results:
            failed = isinstance(result, BaseException)
            request.outcome = result if failed else Executed(result, outcome.stop - 1)

    def save(self) -> Save:
        return Save(self.events, self.answers)


@dataclass(slots=True)
class Decided:
    """What one command leads to: its answer or failure, the streams it changed, what to keep."""

    result: Any
    streams: set[UUID]
    events: Sequence[StoredEvent] = ()
    answers: Sequence[Answer] = ()


class Round:
    """Decides commands one after the other; `groups` then holds what is to be recorded."""

    def __init__(
        self, known: dict[UUID, Aggregate], head: int, at: datetime, mapper: EventMapper
    ) -> None:
        self._known = known
        self._head = head
        self._at = at
        self._mapper = mapper
        self._aggregates = Aggregates(known)
        self._changed: dict[UUID, Group] = {}
        self.groups: list[Group] = []

    def decide(self, request: Request, found: Any) -> None:
        """Decide one command; unless it depends on what is not recorded yet, settle it at once."""
        decided = self._decided(request, found)
        failed = isinstance(decided.result, BaseException)
        group = self._group(request.streams)
        if failed and decided.streams:
            # It recorded and then gave up: what is in memory now was never decided.
            request.outcome = decided.result
            group.void = True
        elif group.results or decided.events or decided.answers:
            group.results.append((request, decided.result))
        else:
            request.outcome = decided.result if failed else Executed(decided.result, self._head)
            return
        self._add(group, decided)

    def _decided(self, request: Request, found: Any) -> Decided:
        origin = Origin(request.actor, self._at, request.correlation_id, request.causation_id)
        recorded: list[Aggregate.Event] = []
        failure: Exception
        try:
            result = request.command.decide(self._aggregates, origin, found)
            recorded = self._collect(request.streams)
            events = [self._mapper.to_stored_event(event) for event in recorded]
            answers = [_answer(request, request.key, result)] if request.key else []
            return Decided(result, {event.originator_id for event in recorded}, events, answers)
        except DomainError as error:
            failure = error
        except Exception as error:
            log.exception("a command broke", command=type(request.command).__name__)
            failure = error
        recorded += self._collect(request.streams)
        return Decided(failure, {event.originator_id for event in recorded})

    def _collect(self, streams: Sequence[UUID]) -> list[Aggregate.Event]:
        return [
            event
            for stream in streams
            if stream in self._known
            for event in self._known[stream].collect_events()
            if isinstance(event, Aggregate.Event)
        ]

    def _group(self, streams: Sequence[UUID]) -> Group:
        """The group of these streams: a new one, or all that they are tied to made one."""
        tied = list({id(g): g for s in streams if (g := self._changed.get(s))}.values())
        if not tied:
            return Group()
        first, *others = sorted(tied, key=self.groups.index)
        for other in others:
            first.absorb(other)
            self.groups.remove(other)
            self._changed.update(dict.fromkeys(other.streams, first))
        return first

    def _add(self, group: Group, decided: Decided) -> None:
        if group not in self.groups:
            self.groups.append(group)
        group.streams |= decided.streams
        group.events += decided.events
        group.answers += decided.answers
        self._changed.update(dict.fromkeys(decided.streams, group))


def _answer(request: Request, key: IdempotencyKey, result: Any) -> Answer:
    status, body = key.render(result)
    return Answer(request.actor, key.key, key.request_hash, status, body)

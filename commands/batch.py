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

    def settle(self, outcome: range, head: int) -> None:
        """Give each command its outcome after the group was recorded at these positions."""
        position = outcome[-1] if outcome else head
        for request, result in self.results:
            failed = isinstance(result, BaseException)
            request.outcome = result if failed else Executed(result, position)

    def save(self) -> Save:
        return Save(self.events, self.answers)


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
        streams = request.streams
        result = self._result(request, found)
        failed = isinstance(result, BaseException)
        recorded = self._collect(streams)
        group = self._group(streams)
        if failed and recorded:
            # It recorded and then gave up: what is in memory now was never decided.
            request.outcome = result
            group.void = True
            self._add(group, recorded, [])
            return
        keeps_answer = request.key is not None and not failed
        if not (group.results or recorded or keeps_answer):
            request.outcome = result if failed else Executed(result, self._head)
            return
        group.results.append((request, result))
        self._add(group, recorded, [self._answer(request, result)] if keeps_answer else [])

    def _result(self, request: Request, found: Any) -> Any:
        origin = Origin(request.actor, self._at, request.correlation_id, request.causation_id)
        try:
            return request.command.decide(self._aggregates, origin, found)
        except DomainError as error:
            return error
        except Exception as error:
            log.exception("a command broke", command=type(request.command).__name__)
            return error

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

    def _add(
        self, group: Group, recorded: Sequence[Aggregate.Event], answers: Sequence[Answer]
    ) -> None:
        if group not in self.groups:
            self.groups.append(group)
        for event in recorded:
            group.events.append(self._mapper.to_stored_event(event))
            group.streams.add(event.originator_id)
            self._changed[event.originator_id] = group
        group.answers += answers

    def _answer(self, request: Request, result: Any) -> Answer:
        if request.key is None:
            raise TypeError("An answer is kept under a key only.")
        status, body = request.key.render(result)
        return Answer(request.actor, request.key.key, request.key.request_hash, status, body)

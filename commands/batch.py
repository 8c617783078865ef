"""One round of a batch: decide many commands on shared aggregates, and record what they decided.

Commands that share a *changed* aggregate form a group, because the later ones were decided on what
the earlier ones recorded. A group is saved atomically, and decided again when another process was
faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Generic, TypeVar
from uuid import UUID

import structlog
from eventsourcing.persistence import StoredEvent

from commands.command import Aggregates, Command, Lookup, Query, Slot
from domain.errors import DomainError
from domain.model import Origin
from infra.codec import EventMapper
from infra.saves import Save, StoredAnswer

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
    """A decided command: its answer, and the position from which on its effect can be read.

    `telemetry` is the head of the telemetry as the command found it.
    """

    answer: R
    position: int
    telemetry: int = 0


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
    telemetry: int = 0
    outcome: Executed[Any] | StoredAnswer | BaseException | None = None

    def __post_init__(self) -> None:
        self.streams = self.command.streams()

    def settle(self, result: Any, position: int) -> None:
        """Give the outcome: what the command answered at this position, or its failure."""
        failed = isinstance(result, BaseException)
        self.outcome = result if failed else Executed(result, position, self.telemetry)


@dataclass(slots=True, eq=False)
class Group:
    """Commands that stand or fall together, with what they want recorded."""

    results: list[tuple[Request, Any]] = field(default_factory=list)
    changed: list[Slot] = field(default_factory=list)
    events: list[StoredEvent] = field(default_factory=list)
    answers: list[StoredAnswer] = field(default_factory=list)
    void: bool = False

    def absorb(self, other: Group) -> None:
        """Take over what another group holds; its commands keep their order."""
        self.results += other.results
        self.changed += other.changed
        self.events += other.events
        self.answers += other.answers
        self.void |= other.void
        for slot in other.changed:
            slot.group = self

    def settle(self, positions: range) -> None:
        """Give each command its outcome after the group was recorded at these positions.

        A group of nothing but answers has an empty range, which begins after the position that
        the store kept with them.
        """
        for request, result in self.results:
            request.settle(result, positions.stop - 1)

    def add(self, decided: Decided) -> None:
        """Take in what one command wants recorded."""
        self.changed += decided.changed
        self.events += decided.events
        self.answers += decided.answers
        for slot in decided.changed:
            slot.group = self

    def save(self) -> Save:
        return Save(self.events, self.answers)


@dataclass(slots=True)
class Decided:
    """What one command leads to: its answer or failure, the streams it changed, what to keep."""

    result: Any
    changed: Sequence[Slot]
    events: Sequence[StoredEvent] = ()
    answers: Sequence[StoredAnswer] = ()


class Round:
    """Decides commands one after the other; `groups` then holds what is to be recorded."""

    def __init__(
        self,
        slots: Mapping[UUID, Slot],
        head: int,
        at: datetime,
        mapper: EventMapper,
        answers: Mapping[Lookup[Any], Any] = MappingProxyType({}),
    ) -> None:
        self._slots = slots
        self._head = head
        self._at = at
        self._mapper = mapper
        self._aggregates = Aggregates(slots, answers)
        self.groups: list[Group] = []

    def decide(self, request: Request) -> None:
        """Decide one command; unless it depends on what is not recorded yet, settle it at once."""
        slots = [self._slots[stream] for stream in request.streams]
        tied = [slot.group for slot in slots if slot.group]
        decided = self._decided(request, slots)
        failed = isinstance(decided.result, BaseException)
        if not (tied or decided.changed or decided.answers):
            request.settle(decided.result, self._head)
            return
        group = self._join(tied)
        if failed and decided.changed:
            # It recorded and then gave up: what is in memory now was never decided.
            request.outcome = decided.result
            group.void = True
        else:
            group.results.append((request, decided.result))
        group.add(decided)

    def _decided(self, request: Request, slots: Sequence[Slot]) -> Decided:
        origin = Origin(request.actor, self._at, request.correlation_id, request.causation_id)
        changed: list[Slot] = []
        failure: Exception
        try:
            result = request.command.decide(self._aggregates, origin)
            changed = [slot for slot in slots if slot.has_changed()]
            if changed and isinstance(request.command, Query):
                raise TypeError("A query records nothing.")
            events = [self._mapper.to_stored_event(e) for slot in changed for e in slot.collect()]
            answers = [_answer(request, request.key, result)] if request.key else ()
            return Decided(result, changed, events, answers)
        except DomainError as error:
            failure = error
        except Exception as error:
            log.exception("command_broke", command=type(request.command).__name__)
            failure = error
        changed = changed or [slot for slot in slots if slot.has_changed()]
        for slot in changed:
            slot.collect()
        return Decided(failure, changed)

    def _join(self, tied: Sequence[Group]) -> Group:
        """The group of a command: a new one, or all that its streams are tied to made one."""
        if not tied:
            self.groups.append(Group())
            return self.groups[-1]
        first, *others = sorted(set(tied), key=self.groups.index) if len(tied) > 1 else tied
        for other in others:
            first.absorb(other)
            self.groups.remove(other)
        return first


def _answer(request: Request, key: IdempotencyKey, result: Any) -> StoredAnswer:
    status, body = key.render(result)
    return StoredAnswer(request.actor, key.key, key.request_hash, status, body)

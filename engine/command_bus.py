"""The command bus: many commands, one load, one decision each, one commit."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar, overload
from uuid import UUID

import structlog
from eventsourcing.persistence import (
    InterfaceError,
    MapperDeserialisationError,
    OperationalError,
    StoredEvent,
)
from psycopg import Cursor
from psycopg.rows import TupleRow

from domain.errors import Conflict, DomainError
from domain.model import Aggregate, Origin
from engine.command import Aggregates, Command, Lookup, Query, Reader, Slot
from engine.event_store import GroupCommitRecorder, Save, StoredAnswer
from engine.log import MAPPER
from infra.batcher import Batcher
from infra.metrics import SIZES, counter, gauge, histogram

log = structlog.get_logger(__name__)

R = TypeVar("R")

COMMANDS = counter(
    "backlot_commands",
    "Commands decided, by type and outcome (accepted, repeated, refused, conflict, failed).",
    ("command", "outcome"),
)
COMMAND_BATCH_SIZE = histogram(
    "backlot_command_batch_size",
    "Commands executed in one transaction.",
    buckets=SIZES,
)
COMMAND_BATCH_SECONDS = histogram(
    "backlot_command_batch_seconds",
    "Time to load, decide and commit one batch of commands.",
)
COMMAND_QUEUE = gauge(
    "backlot_command_queue",
    "Commands waiting for their batch.",
)
EVENTS_APPENDED = counter(
    "backlot_events_appended",
    "Events committed to the event store.",
)
APPEND_CONFLICTS = counter(
    "backlot_append_conflicts",
    "Saves refused because another writer was first at the same stream version.",
)


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's name for one request; `request_hash` differs when another request reuses the name.

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
        the store recorded with them.
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
    """What one command leads to: its answer or failure, the streams it changed, what to store."""

    result: Any
    changed: Sequence[Slot]
    events: Sequence[StoredEvent] = ()
    answers: Sequence[StoredAnswer] = ()


class Loaded(NamedTuple):
    """What a round knows before it decides."""

    slots: dict[UUID, Slot]
    answers: dict[tuple[str, str], StoredAnswer]
    head: int
    telemetry: int
    found: dict[Lookup[Any], Any]


class Round:
    """Decides commands one after the other; `groups` then holds what is to be recorded."""

    def __init__(
        self,
        slots: Mapping[UUID, Slot],
        head: int,
        at: datetime,
        answers: Mapping[Lookup[Any], Any] = MappingProxyType({}),
    ) -> None:
        self._slots = slots
        self._head = head
        self._at = at
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
            events = [MAPPER.to_stored_event(e) for slot in changed for e in slot.collect()]
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
        """Return the group of a command: a new one, or those of its streams joined."""
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


class Contended(Conflict):
    """Other writers were faster again and again."""


class KeyReused(Conflict):
    """The idempotency key was used for another request before."""


class CommandBus:
    """Executes commands in batches; one per process.

    Recently used aggregates stay in memory: a load reads only the events after the version that is
    known, so its cost does not grow with the length of a stream in use, and what other processes
    recorded is always seen.
    """

    def __init__(
        self,
        recorder: GroupCommitRecorder,
        *,
        readers: Mapping[type[Lookup[Any]], Reader] | None = None,
        telemetry: Callable[[Cursor[TupleRow]], int] = lambda _: 0,
        max_batch: int = 256,
        max_waiting: int = 10_000,
        retries: int = 5,
        remember: int = 50_000,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`readers` answer the commands' lookups, by their type; without one, the default holds.

        `telemetry` reads the head of what is recorded beside the log: a position has both.
        """
        self._recorder = recorder
        self._readers = dict(readers or {})
        self._telemetry = telemetry
        self._retries = retries
        self._remember = remember
        self._clock = clock
        self._cache: OrderedDict[UUID, Aggregate] = OrderedDict()
        self._batcher: Batcher[Request, Executed[Any] | StoredAnswer] = Batcher(
            self._process,
            name="commands",
            max_batch=max_batch,
            max_waiting=max_waiting,
            outages=(OperationalError, InterfaceError),
        )

    @overload
    async def execute(
        self,
        command: Command[R],
        *,
        actor: str,
        correlation_id: str,
        causation_id: str | None = None,
        key: None = None,
    ) -> Executed[R]: ...

    @overload
    async def execute(
        self,
        command: Command[R],
        *,
        actor: str,
        correlation_id: str,
        causation_id: str | None = None,
        key: IdempotencyKey | None,
    ) -> Executed[R] | StoredAnswer: ...

    async def execute(
        self,
        command: Command[R],
        *,
        actor: str,
        correlation_id: str,
        causation_id: str | None = None,
        key: IdempotencyKey | None = None,
    ) -> Executed[R] | StoredAnswer:
        """Decide the command, and return once its events are durable.

        With an idempotency key that was used before: the stored answer. Raise DomainError when a
        rule refuses it, Contended when other processes were first each time, QueueFull when too
        many wait or the store is away already, and the library's PersistenceError when the store
        goes away: then the outcome is unknown, and the client may repeat it with the same key.
        """
        request = Request(command, actor, correlation_id, causation_id or correlation_id, key)
        return await self._batcher.submit(request)

    async def close(self) -> None:
        """Finish what was accepted, and take nothing more."""
        await self._batcher.close()

    def _process(
        self, requests: Sequence[Request]
    ) -> Sequence[Executed[Any] | StoredAnswer | BaseException]:
        started = time.perf_counter()
        COMMAND_QUEUE.set(len(self._batcher))
        waiting = list(requests)
        try:
            while waiting:
                waiting = self._round(waiting)
        except Exception as error:  # noqa: BLE001 - each waiting caller gets it
            self._cache.clear()
            for request in requests:
                request.outcome = request.outcome or error
        _measure(requests, time.perf_counter() - started)
        return [request.outcome or RuntimeError("lost by the bus") for request in requests]

    def _round(self, requests: list[Request]) -> list[Request]:
        """Load, decide and record once; return the requests that have to be decided again."""
        now, later = _one_per_key(requests)
        loaded = self._load(now)
        this = Round(loaded.slots, loaded.head, self._clock(), loaded.found)
        for request in now:
            request.telemetry = loaded.telemetry
            request.outcome = _outcome_before(request, loaded)
            if request.outcome is None:
                this.decide(request)
        failed = self._record(this.groups)
        for group in failed:
            for slot in group.changed:
                slot.aggregate = None
        self._keep(loaded.slots)
        again = [request for group in failed for request, _ in group.results]
        return [*(request for request in again if request.outcome is None), *later]

    def _load(self, requests: Sequence[Request]) -> Loaded:
        slots: dict[UUID, Slot] = {}
        for request in requests:
            for stream in request.streams:
                if stream not in slots:
                    slots[stream] = Slot(self._cache.get(stream))
        wanted = [
            (stream, slot.aggregate.version if slot.aggregate else 0)
            for stream, slot in slots.items()
        ]
        keys = [(request.actor, request.key.key) for request in requests if request.key]
        rows, stored, head, (telemetry, found) = self._recorder.fetch(
            wanted, keys, lambda cursor: (self._telemetry(cursor), self._look_up(cursor, requests))
        )
        for stream, version, topic, state in rows:
            slot = slots[stream]
            if slot.broken is not None:
                continue
            try:
                event = MAPPER.decode(stream, version, topic, state)
            except MapperDeserialisationError as error:
                # Such as one of a newer release; it must not stop the rest of the batch.
                log.error("stream_unreadable", stream=str(stream), error=str(error))
                slot.broken, slot.aggregate = error, None
            else:
                slot.aggregate = event.mutate(slot.aggregate)
        answers = {(answer.actor, answer.key): answer for answer in stored}
        return Loaded(slots, answers, head, telemetry, found)

    def _look_up(
        self, cursor: Cursor[TupleRow], requests: Sequence[Request]
    ) -> dict[Lookup[Any], Any]:
        by_type: dict[type[Lookup[Any]], list[Lookup[Any]]] = {}
        for request in requests:
            for lookup in request.command.lookups():
                if type(lookup) in self._readers:
                    by_type.setdefault(type(lookup), []).append(lookup)
        found: dict[Lookup[Any], Any] = {}
        for kind, lookups in by_type.items():
            found.update(zip(lookups, self._readers[kind](cursor, lookups), strict=True))
        return found

    def _record(self, groups: Sequence[Group]) -> list[Group]:
        """Save the groups in one transaction; return those that were not recorded."""
        sound = [group for group in groups if not group.void]
        failed = [group for group in groups if group.void]
        outcomes = self._recorder.append([g.save() for g in sound]).outcomes if sound else []
        appended = 0
        for group, outcome in zip(sound, outcomes, strict=True):
            if outcome is None:
                failed.append(group)
                self._count_conflict(group)
            else:
                group.settle(outcome)
                appended += len(outcome)
        EVENTS_APPENDED.inc(appended)
        return failed

    def _count_conflict(self, group: Group) -> None:
        APPEND_CONFLICTS.inc()
        for request, _ in group.results:
            request.conflicts += 1
            if request.conflicts > self._retries:
                request.outcome = Contended(
                    "Others keep changing this at the same time; please try again."
                )

    def _keep(self, slots: Mapping[UUID, Slot]) -> None:
        for stream, slot in slots.items():
            if slot.aggregate is None or slot.aggregate.version == 0:
                self._cache.pop(stream, None)
            else:
                self._cache[stream] = slot.aggregate
                self._cache.move_to_end(stream)
        while len(self._cache) > self._remember:
            self._cache.popitem(last=False)


def _one_per_key(requests: Sequence[Request]) -> tuple[list[Request], list[Request]]:
    """Return the requests to decide now, and repeats of keys, which wait for a stored answer."""
    now: list[Request] = []
    later: list[Request] = []
    seen: set[tuple[str, str]] = set()
    for request in requests:
        name = (request.actor, request.key.key) if request.key else None
        (later if name in seen else now).append(request)
        if name is not None:
            seen.add(name)
    return now, later


def _outcome_before(request: Request, loaded: Loaded) -> StoredAnswer | Exception | None:
    """Return what needs no decision: a stored answer, a reused key, an unreadable stream."""
    answer = loaded.answers.get((request.actor, request.key.key)) if request.key else None
    if answer is None or request.key is None:
        broken = (loaded.slots[stream].broken for stream in request.streams)
        return next(filter(None, broken), None)
    if answer.request_hash == request.key.request_hash:
        return replace(answer, telemetry=loaded.telemetry)
    return KeyReused("This Idempotency-Key was used for another request; choose a new one.")


def _measure(requests: Sequence[Request], seconds: float) -> None:
    COMMAND_BATCH_SIZE.observe(len(requests))
    COMMAND_BATCH_SECONDS.observe(seconds)
    kinds = Counter((type(request.command).__name__, _kind(request)) for request in requests)
    for (command, kind), count in kinds.items():
        COMMANDS.labels(command, kind).inc(count)


def _kind(request: Request) -> str:
    match request.outcome:
        case Executed():
            return "accepted"
        case StoredAnswer():
            return "repeated"
        case Contended():
            return "conflict"
        case DomainError():
            return "refused"
        case _:
            return "failed"

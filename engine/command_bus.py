"""Commands and the bus: many commands, one load, one decision each, one commit."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, TypeVar, cast
from uuid import UUID

import structlog
from eventsourcing.domain import CanMutateAggregate
from eventsourcing.persistence import (
    InterfaceError,
    MapperDeserialisationError,
    OperationalError,
    StoredEvent,
)

from domain.errors import Conflict, DomainError, Forgotten
from domain.model import ActorKind, Aggregate, Origin
from engine.event_store import GroupCommitRecorder, IdempotencyKey, Save, StoredAnswer
from engine.log import MAPPER
from engine.lookups import Lookup, LookupResults, Lookups, Readers, Sum
from infra.batcher import AGAIN, Again, Batcher
from infra.metrics import SIZES, counter, gauge, histogram

log = structlog.get_logger(__name__)

R = TypeVar("R")
F = TypeVar("F")
A = TypeVar("A", bound=Aggregate)

COMMANDS = counter(
    "backlot_commands",
    "Commands decided, by type and outcome (accepted, repeated, refused, conflict, failed).",
    ("command", "outcome"),
)
COMMAND_BATCH_SIZE = histogram(
    "backlot_command_batch_size", "Commands executed in one transaction.", buckets=SIZES
)
COMMAND_BATCH_SECONDS = histogram(
    "backlot_command_batch_seconds", "Time to load, decide and commit one batch of commands."
)
COMMAND_QUEUE = gauge("backlot_command_queue", "Commands waiting for their batch.")
EVENTS_APPENDED = counter("backlot_events_appended", "Events committed to the event store.")
APPEND_CONFLICTS = counter(
    "backlot_append_conflicts",
    "Saves refused because another writer was first at the same stream version.",
)


@dataclass(frozen=True)
class Command(ABC, Generic[R]):
    """A wish, with everything needed to decide it; `despite_fence`: of a fenced actor too."""

    despite_fence: ClassVar[bool] = False

    @abstractmethod
    def streams(self) -> Sequence[UUID]:
        """Return the streams to load; `decide` may touch no others."""

    def lookups(self) -> Sequence[Lookup[Any]]:
        """Return what has to be looked up beside the streams."""
        return ()

    @abstractmethod
    def decide(self, aggregates: Aggregates, origin: Origin) -> R:
        """Check the rules, let the aggregates record, and return the answer.

        May run more than once (after a conflict), each time on freshly loaded aggregates. Raise
        DomainError.
        """


class Query(Command[R]):
    """A question that is decided like a command: it sees the log as it is, and records nothing."""


@dataclass(slots=True, eq=False)
class Slot:
    """A stream in a batch: its aggregate as far as known, or the error of reading the stream."""

    aggregate: Aggregate | None
    broken: Exception | None = None
    group: Group | None = None

    def collect(self) -> Sequence[CanMutateAggregate[UUID]]:
        """Take what the aggregate recorded."""
        return self.aggregate.collect_events() if self.aggregate is not None else ()


class Aggregates:
    """The aggregates and sums of a batch, as the commands before have left them, and answers to
    other lookups."""

    def __init__(self, slots: Mapping[UUID, Slot], found: LookupResults | None = None) -> None:
        self._slots = slots
        self._found = found or LookupResults({}, {})

    def get(self, aggregate: type[A], stream_id: UUID) -> A:
        """Return the aggregate of a declared stream; blank (version 0) when it is new."""
        slot = self._slots[stream_id]
        found = slot.aggregate
        if isinstance(found, aggregate):
            return found
        blank = aggregate.blank(stream_id)
        # A stream with events of another kind, whose id a client sent, does not exist for this
        # command. An empty one is of the kind that was asked for last: no client can block
        # it by naming its id as something else in the same batch.
        if found is None or found.version == 0:
            slot.aggregate = blank
        return blank

    def look_up(self, lookup: Lookup[F]) -> F:
        """Return the answer to a lookup that the command declared."""
        if isinstance(lookup, Sum):
            return cast("F", self._found.sums.get(lookup.place, lookup.default))
        answer: F = self._found.answers.get(lookup, lookup.default)
        return answer

    def add(self, what: Sum, change: int) -> int:
        """Return a sum with what this command adds to it; to be called by one that succeeds."""
        sums, key = self._found.sums, what.place
        sums[key] = total = sums.get(key, 0) + change
        return total


@dataclass(frozen=True, slots=True)
class Executed(Generic[R]):
    """A decided command: its answer, and the position from which on its effect can be read.

    `telemetry` is the head of the telemetry as the command found it.
    """

    answer: R
    position: int
    telemetry: int = 0


Outcome = Executed[Any] | StoredAnswer | BaseException


@dataclass(slots=True, eq=False)
class Request:
    """One command on its way through the bus."""

    command: Command[Any]
    actor: str
    correlation_id: str
    causation_id: str
    key: IdempotencyKey | None = None
    kind: ActorKind | None = None
    streams: Sequence[UUID] = field(init=False)
    name: tuple[str, str] | None = None
    conflicts: int = 0
    telemetry: int = 0
    outcome: Outcome | None = None

    def __post_init__(self) -> None:
        self.streams = self.command.streams()
        self.name = (self.actor, self.key.key) if self.key else None

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
        self.events += other.events
        self.answers += other.answers
        self.void |= other.void
        self.take(other.changed)

    def take(self, changed: Sequence[Slot]) -> None:
        """Be the group of these streams from now on."""
        self.changed += changed
        for slot in changed:
            slot.group = self

    def settle(self, positions: range) -> None:
        """Give each command its outcome after the group was recorded at these positions.

        A group of nothing but answers has an empty range, which begins after the position that
        the store recorded with them.
        """
        for request, result in self.results:
            request.settle(result, positions.stop - 1)


@dataclass(slots=True)
class Round:
    """What was loaded for some commands, to decide them one after the other.

    `found` is what was looked up, `stored` the answers under idempotency keys, `fenced` the actors
    from whom nothing is taken any more, `broken` whether some stream can't be read; `groups` then
    holds what is to be recorded.
    """

    slots: Mapping[UUID, Slot]
    head: int
    at: datetime
    found: LookupResults = field(default_factory=lambda: LookupResults({}, {}))
    stored: Mapping[tuple[str, str], StoredAnswer] = field(default_factory=dict)
    telemetry: int = 0
    fenced: frozenset[str] = frozenset()
    broken: bool = False
    groups: list[Group] = field(default_factory=list, init=False)

    def outcome_before(self, request: Request) -> StoredAnswer | Exception | None:
        """Return what needs no decision: a refusal, a stored answer, an unreadable stream."""
        if request.actor in self.fenced and not request.command.despite_fence:
            return Forgotten(Forgotten.TOLD)
        answer = self.stored.get(request.name) if request.name else None
        if request.key is None or answer is None:
            return self._broken(request) if self.broken else None
        if answer.request_hash == request.key.request_hash:
            return replace(answer, telemetry=self.telemetry)
        return KeyReused("This Idempotency-Key was used for another request; choose a new one.")

    def _broken(self, request: Request) -> Exception | None:
        return next(filter(None, (self.slots[each].broken for each in request.streams)), None)

    def decide(self, request: Request) -> None:
        """Decide one command; unless it depends on what is not recorded yet, settle it at once."""
        slots = [self.slots[stream] for stream in request.streams]
        tied = [slot.group for slot in slots if slot.group]
        own = self._decided(request, slots)
        if not (tied or own.changed or own.answers):
            request.settle(own.results[0][1], self.head)
            return
        if len(tied) > 1:
            tied = sorted(set(tied), key=self.groups.index)
        group, *others = *tied, own
        for other in others:
            group.absorb(other)
            if other is not own:
                self.groups.remove(other)
        if group is own:
            self.groups.append(own)

    def _decided(self, request: Request, slots: Sequence[Slot]) -> Group:
        """Return a group of this command alone, with its answer or its failure."""
        ids = (request.correlation_id, request.causation_id)
        origin = Origin(request.actor, self.at, *ids, request.kind)
        own = Group()
        try:
            result: Any = request.command.decide(Aggregates(self.slots, self.found), origin)
            own.take(_changed(slots))
            if own.changed and isinstance(request.command, Query):
                raise TypeError("A query records nothing.")
            own.events = [MAPPER.to_stored_event(e) for slot in own.changed for e in slot.collect()]
            if (key := request.key) is not None:
                stored = StoredAnswer(request.actor, key.key, key.request_hash, *key.render(result))
                own.answers.append(stored)
        except Exception as error:
            if not isinstance(error, DomainError):
                log.exception("command_broke", command=type(request.command).__name__)
            changed = own.changed or _changed(slots)
            for slot in changed:
                slot.collect()
            own, result = Group(void=bool(changed)), error
            own.take(changed)
        if own.void:
            # It recorded and then gave up: what is in memory now was never decided.
            request.outcome = result
        else:
            own.results.append((request, result))
        return own


def _changed(slots: Sequence[Slot]) -> list[Slot]:
    return [slot for slot in slots if slot.aggregate and slot.aggregate.pending_events]


class Contended(Conflict):
    """Other writers were faster again and again."""

    TOLD = "Others keep changing this at the same time; please try again."


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
        readers: Readers | None = None,
        telemetry: bytes = b"SELECT 0",
        fenced: bytes = b"SELECT '' LIMIT 0",
        max_batch: int = 256,
        max_waiting: int = 10_000,
        retries: int = 5,
        remember: int = 50_000,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`readers` answer the commands' lookups, by their type; without one, the default holds.
        One type at most is summed up by a tally, which is this bus's own.

        `telemetry` asks for the head of what is recorded beside the log: a position has both.
        `fenced` asks for the actors who are being forgotten: their commands are refused.
        """
        self._recorder = recorder
        self._lookups = Lookups(readers or {})
        self._heads = (b"(%b)" % telemetry, b"ARRAY(%b)" % fenced)
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

    async def execute(
        self,
        command: Command[R],
        *,
        actor: str,
        correlation_id: str,
        causation_id: str | None = None,
    ) -> Executed[R]:
        """Decide the command, and return once its events are durable.

        Raise DomainError when a rule refuses it, Contended when other processes were first each
        time, QueueFull when too many wait or the store is away already, and the library's
        PersistenceError when the store goes away: then the outcome is unknown.
        """
        request = Request(command, actor, correlation_id, causation_id or correlation_id)
        return cast("Executed[R]", await self._batcher.submit(request))

    async def execute_once(
        self,
        command: Command[R],
        key: IdempotencyKey | None,
        *,
        actor: str,
        correlation_id: str,
        kind: ActorKind | None = None,
    ) -> Executed[R] | StoredAnswer:
        """The same under a key: its repeats, also of what is unknown, get the stored answer."""
        request = Request(command, actor, correlation_id, correlation_id, key, kind)
        return await self._batcher.submit(request)

    async def close(self) -> None:
        """Finish what was accepted, and take nothing more."""
        await self._batcher.close()

    def _process(self, requests: Sequence[Request]) -> Sequence[Outcome | Again]:
        started = time.perf_counter()
        COMMAND_QUEUE.set(len(self._batcher))
        try:
            self._round(requests)
        except Exception as error:  # noqa: BLE001 - each waiting caller gets it
            self._cache.clear()
            for request in requests:
                request.outcome = request.outcome or error
        _measure([each for each in requests if each.outcome], time.perf_counter() - started)
        return [request.outcome or AGAIN for request in requests]

    def _round(self, requests: Sequence[Request]) -> None:
        """Load, decide and record once; who has no outcome then has to be decided again."""
        # A repeat of a key waits for the stored answer of the request that has it first.
        now, seen = list[Request](), set[tuple[str, str]]()
        for request in requests:
            if request.name not in seen:
                now.append(request)
            if request.name:
                seen.add(request.name)
        this = self._load(now)
        for request in now:
            request.telemetry = this.telemetry
            request.outcome = this.outcome_before(request)
            if request.outcome is None:
                this.decide(request)
        for group in self._record(this.groups):
            for slot in group.changed:
                slot.aggregate = None
        self._keep(this.slots)

    def _load(self, requests: Sequence[Request]) -> Round:
        # A new slot takes what is remembered of its stream. Seldom looked up: the hash of a UUID is
        # computed in Python.
        slots: dict[UUID, Slot] = {}
        for request in requests:
            for stream in request.streams:
                if stream not in slots:
                    slots[stream] = Slot(self._cache.pop(stream, None))
        wanted = [(id_, s.aggregate.version if s.aggregate else 0) for id_, s in slots.items()]
        keys = [request.name for request in requests if request.name]
        lookups = [each for request in requests for each in request.command.lookups()]
        loaded, found = self._lookups.load(self._recorder, wanted, keys, lookups, self._heads)
        MAPPER.prepare((topic, state) for _, _, topic, state, *_ in loaded.rows)
        broken = False
        for stream, version, topic, state, *_ in loaded.rows:
            slot = slots[stream]
            if slot.broken is not None:
                continue
            try:
                event = MAPPER.decode(stream, version, topic, state)
            except MapperDeserialisationError as error:
                # Such as one of a newer release; it must not stop the rest of the batch.
                log.error("stream_unreadable", stream=str(stream), error=str(error))
                broken, slot.broken, slot.aggregate = True, error, None
            else:
                slot.aggregate = event.mutate(slot.aggregate)
        stored = {(answer.actor, answer.key): answer for answer in loaded.answers}
        telemetry, fenced, *_ = loaded.beside
        return Round(
            slots,
            loaded.head,
            self._clock(),
            found,
            stored,
            telemetry,
            frozenset(fenced),
            broken,
        )

    def _record(self, groups: Sequence[Group]) -> list[Group]:
        """Save the groups in one transaction; return those that were not recorded."""
        sound = [group for group in groups if not group.void]
        failed = [group for group in groups if group.void]
        saves = [Save(group.events, group.answers) for group in sound]
        outcomes: Sequence[range | None] = ()
        if saves:
            appended = self._recorder.append(saves)
            outcomes = appended.outcomes
            self._lookups.record(saves, appended)
        for group, outcome in zip(sound, outcomes, strict=True):
            if outcome is not None:
                group.settle(outcome)
                continue
            failed.append(group)
            APPEND_CONFLICTS.inc()
            for request, _ in group.results:
                request.conflicts += 1
                if request.conflicts > self._retries:
                    request.outcome = Contended(Contended.TOLD)
        EVENTS_APPENDED.inc(sum(map(len, filter(None, outcomes))))
        return failed

    def _keep(self, slots: Mapping[UUID, Slot]) -> None:
        for stream, slot in slots.items():
            if slot.aggregate is not None and slot.aggregate.version:
                self._cache[stream] = slot.aggregate
        while len(self._cache) > self._remember:
            self._cache.popitem(last=False)


def _measure(requests: Sequence[Request], seconds: float) -> None:
    COMMAND_BATCH_SIZE.observe(len(requests))
    COMMAND_BATCH_SECONDS.observe(seconds)
    counts = Counter([(type(each.command), type(each.outcome)) for each in requests])
    for (command, outcome), count in counts.items():
        COMMANDS.labels(command.__name__, _kind(outcome)).inc(count)


def _kind(outcome: type) -> str:
    return next((kind for kind, of in KINDS.items() if issubclass(outcome, of)), "failed")


NAMES = ("accepted", "repeated", "conflict", "refused")
KINDS = dict(zip(NAMES, (Executed, StoredAnswer, Contended, DomainError), strict=True))

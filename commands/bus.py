"""The command bus: many commands, one load, one decision each, one commit."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import structlog
from eventsourcing.persistence import (
    InterfaceError,
    MapperDeserialisationError,
    OperationalError,
)
from psycopg import Cursor
from psycopg.rows import TupleRow

from commands.batch import Executed, Group, IdempotencyKey, Request, Round
from commands.command import Command, Lookup, Reader, Slot
from domain.errors import Conflict, DomainError
from domain.model import Aggregate
from infra.batching import Batcher
from infra.codec import MAPPER, EventMapper
from infra.event_store import GroupCommitRecorder
from infra.metrics import SIZES, counter, gauge, histogram
from infra.saves import StoredAnswer

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


class Contended(Conflict):
    """Other writers were faster again and again."""


class KeyReused(Conflict):
    """The idempotency key was used for another request before."""


class Loaded(NamedTuple):
    """What a round knows before it decides."""

    slots: dict[UUID, Slot]
    answers: dict[tuple[str, str], StoredAnswer]
    head: int
    telemetry: int
    found: dict[Lookup[Any], Any]


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
        mapper: EventMapper = MAPPER,
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
        self._mapper = mapper
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
        key: IdempotencyKey | None = None,
    ) -> Executed[R] | StoredAnswer:
        """Decide the command, and return once its events are durable.

        With an idempotency key that was used before: the stored Answer. Raises DomainError when a
        rule refuses it, Contended when other processes kept winning, QueueFull when too many wait
        or the store is away already, and the library's PersistenceError when the store goes away:
        then nothing is known of the outcome, and the client may repeat it with the same key.
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
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait
            self._cache.clear()
            for request in requests:
                request.outcome = request.outcome or error
        _measure(requests, time.perf_counter() - started)
        return [request.outcome or RuntimeError("lost by the bus") for request in requests]

    def _round(self, requests: list[Request]) -> list[Request]:
        """Load, decide and record once; returns the requests that have to be decided again."""
        now, later = _one_per_key(requests)
        loaded = self._load(now)
        this = Round(loaded.slots, loaded.head, self._clock(), self._mapper, loaded.found)
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
        rows, kept, head, (telemetry, found) = self._recorder.fetch(
            wanted, keys, lambda cursor: (self._telemetry(cursor), self._look_up(cursor, requests))
        )
        for stream, version, topic, state in rows:
            slot = slots[stream]
            if slot.broken is not None:
                continue
            try:
                event = self._mapper.decode(stream, version, topic, state)
            except MapperDeserialisationError as error:
                # Such as one of a newer release; it must not stop the rest of the batch.
                log.error("stream_unreadable", stream=str(stream), error=str(error))
                slot.broken, slot.aggregate = error, None
            else:
                slot.aggregate = event.mutate(slot.aggregate)
        answers = {(answer.actor, answer.key): answer for answer in kept}
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
        """Save the groups in one transaction; returns those that were not recorded."""
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
    """The requests to decide now, and repeats of their keys, which wait for the stored answer."""
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
    """What is settled without deciding: a kept answer, a reused key, a stream nobody can read."""
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

"""Group commit for threads: a thread that finds no commit under way commits for all that wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from eventsourcing.persistence import IntegrityError, StoredEvent

from infra.postgres.connection import array

NO_ANSWERS = ("{}",) * 6
MAX_EVENTS_PER_COMMIT = 10_000


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """The answer to a command, stored under its idempotency key together with the events.

    `telemetry` is not stored: it is the head of the telemetry when the answer is given.
    """

    actor: str
    key: str
    request_hash: bytes
    status: int
    body: bytes
    position: int = 0
    telemetry: int = 0


@dataclass(frozen=True, slots=True)
class Save:
    """Events that are recorded together or not at all, with the answers that they led to."""

    events: Sequence[StoredEvent]
    answers: Sequence[StoredAnswer] = ()

    def keys(self) -> set[Any]:
        """Return what must not exist yet.

        Raise IntegrityError when the save contradicts itself.
        """
        keys: set[Any] = {(e.originator_id, e.originator_version) for e in self.events}
        if len(keys) < len(self.events):
            raise IntegrityError("One save holds the same version of a stream twice.")
        keys.update((answer.actor, answer.key) for answer in self.answers)
        return keys


@dataclass(frozen=True, slots=True)
class Appended:
    """Outcome of one append: the head before it, and for each save its positions or a conflict."""

    head: int
    outcomes: list[range | None] = field(default_factory=list)


def columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def arguments(saves: Sequence[Save]) -> tuple[Any, ...]:
    events = [event for save in saves for event in save.events]
    return (
        array(str(index) for index, save in enumerate(saves) for _ in save.events),
        array(_id(event) for event in events),
        array(str(event.originator_version) for event in events),
        [event.topic for event in events],
        [event.state for event in events],
        *_answer_columns(saves),
    )


def _answer_columns(saves: Sequence[Save]) -> Sequence[Any]:
    answers = [(index, answer) for index, save in enumerate(saves) for answer in save.answers]
    if not answers:
        # An empty list takes psycopg as long as a full one; few requests have a key.
        return NO_ANSWERS
    return (
        [index for index, _ in answers],
        [answer.actor for _, answer in answers],
        [answer.key for _, answer in answers],
        [answer.request_hash for _, answer in answers],
        [answer.status for _, answer in answers],
        [answer.body for _, answer in answers],
    )


def _id(event: StoredEvent) -> str:
    stream = event.originator_id
    if isinstance(stream, UUID):
        return stream.hex
    # A text id of the library's; only such ids can need quotes.
    return '"' + stream.replace("\\", "\\\\").replace('"', '\\"') + '"'


def outcomes(
    saves: Sequence[Save], head: int, refused: set[int], ours: dict[int, range]
) -> Iterable[range | None]:
    position = head
    for index, save in enumerate(saves):
        if index in refused:
            yield ours.get(index)
        else:
            yield range(position + 1, position + 1 + len(save.events))
            position += len(save.events)


class Ticket:
    """A save in the queue of the group commit; its thread sleeps until `wake`."""

    __slots__ = ("_gate", "error", "keys", "leads", "outcome", "save")

    def __init__(self, save: Save) -> None:
        self.save = save
        self.keys = save.keys()
        self.outcome: range | None = None
        self.error: BaseException | None = None
        self.leads = False
        self._gate = threading.Lock()
        self._gate.acquire()

    def sleep(self) -> None:
        self._gate.acquire()

    def wake(self) -> None:
        self._gate.release()


class GroupCommit:
    """Hands the saves of many threads to `append` together; no two of one batch want the same."""

    def __init__(self, append: Callable[[Sequence[Save]], Appended]) -> None:
        self._append = append
        self._queue: deque[Ticket] = deque()
        self._lock = threading.Lock()
        self._has_leader = False

    def __len__(self) -> int:
        """Return how many saves wait for their batch."""
        return len(self._queue)

    def save(self, save: Save) -> range:
        """Return its positions, once it is durable.

        IntegrityError when one of its versions exists.
        """
        ticket = Ticket(save)
        with self._lock:
            self._queue.append(ticket)
            ticket.leads, self._has_leader = not self._has_leader, True
        if not ticket.leads:
            ticket.sleep()
        # Woken up as the leader, it commits for all that wait; else another thread did.
        if ticket.leads:
            self._lead(ticket)
        if ticket.error is not None:
            raise ticket.error
        if ticket.outcome is None:
            raise IntegrityError("The stream has that version already.")
        return ticket.outcome

    def _lead(self, leader: Ticket) -> None:
        """Commit one batch, hand the lead to the thread that waits longest, and wake the others."""
        with self._lock:
            tickets = self._take_disjoint()
        try:
            appended = self._append([ticket.save for ticket in tickets])
        except BaseException as error:  # noqa: BLE001 - every waiting thread has to be woken
            for ticket in tickets:
                ticket.error = error
        else:
            for ticket, outcome in zip(tickets, appended.outcomes, strict=True):
                ticket.outcome = outcome
        with self._lock:
            successor = self._queue[0] if self._queue else None
            self._has_leader = successor is not None
        leader.leads = False
        if successor is not None:
            successor.leads = True
            successor.wake()
        for ticket in tickets:
            if ticket is not leader:
                ticket.wake()

    def _take_disjoint(self) -> list[Ticket]:
        """Return the oldest waiting saves of which no two want the same version.

        The others wait on.
        """
        taken: list[Ticket] = []
        waiting: list[Ticket] = []
        keys: set[Any] = set()
        events = 0
        while self._queue and events < MAX_EVENTS_PER_COMMIT:
            ticket = self._queue.popleft()
            if keys.isdisjoint(ticket.keys):
                taken.append(ticket)
                events += len(ticket.save.events)
            else:
                waiting.append(ticket)
            keys |= ticket.keys
        self._queue.extendleft(reversed(waiting))
        return taken

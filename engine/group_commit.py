"""The saves of many threads in one transaction: what arrives while one commits shares the next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from eventsourcing.persistence import IntegrityError

if TYPE_CHECKING:
    from engine.event_store import Appended, Save

MAX_EVENTS_PER_COMMIT = 10_000


class Ticket:
    """A save in the queue of the group commit; its thread waits at the gate."""

    __slots__ = ("error", "gate", "keys", "leads", "outcome", "save")

    def __init__(self, save: Save) -> None:
        self.save = save
        self.keys = save.keys()
        self.outcome: range | None = None
        self.error: BaseException | None = None
        self.leads = False
        self.gate = threading.Lock()
        self.gate.acquire()


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
        """Return the positions of a durable save; raise IntegrityError where a version exists."""
        ticket = Ticket(save)
        with self._lock:
            self._queue.append(ticket)
            ticket.leads, self._has_leader = not self._has_leader, True
        if not ticket.leads:
            ticket.gate.acquire()
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
            successor.gate.release()
        for ticket in tickets:
            if ticket is not leader:
                ticket.gate.release()

    def _take_disjoint(self) -> list[Ticket]:
        """Return the oldest waiting saves of which no two want the same version."""
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

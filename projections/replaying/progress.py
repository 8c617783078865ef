"""How a replay tells how far it is and hears that it is to end: now and then, not at each step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

from psycopg import Connection
from psycopg.rows import TupleRow

from projections.replaying.rows import Replay, ReplayState, checkpoint, find

TELL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay is. `events` were applied; `rate` is in positions per second.

    `target` is the position that is to be reached; it moves while the log grows.
    """

    name: str
    state: ReplayState
    position: int
    target: int
    events: int
    rate: float
    eta_seconds: float | None


Report = Callable[[Progress], None]


def tell_nobody(news: object) -> None:
    """For who does not want to hear of it."""


class Telling:
    """One stretch of a replay, from a position to a goal."""

    def __init__(
        self,
        conn: Connection[TupleRow],
        replay: Replay,
        stretch: tuple[int, int],
        report: Report,
        stopping: Event,
    ) -> None:
        self._conn = conn
        self._replay = replay
        self._first, self._goal = stretch
        self._report = report
        self._stopping = stopping
        self._started = self._told = time.monotonic()

    def at(self, position: int) -> bool:
        """Tell that it is at this position; False when the work is to end there.

        That is when this process stops, and when the replay was paused or cancelled.
        """
        now = time.monotonic()
        if self._stopping.is_set():
            return False
        if now - self._told < TELL_SECONDS:
            return True
        self._told = now
        return self.tell(position)

    def tell(self, position: int) -> bool:
        """The same, whenever it was told before."""
        seconds = time.monotonic() - self._started
        rate = (position - self._first) / seconds if seconds > 0 else 0.0
        checkpoint(self._conn, self._replay, position, rate)
        seen = find(self._conn, self._replay.id)
        eta = (self._goal - position) / rate if rate > 0 else None
        state, events = seen.state, seen.events_applied
        self._report(Progress(seen.name, state, position, self._goal, events, rate, eta))
        return not seen.rests and not self._stopping.is_set()

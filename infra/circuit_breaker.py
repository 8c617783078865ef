"""A circuit breaker: a service that fails is left alone for a while, so that nobody waits for it.

The pattern is described at https://martinfowler.com/bliki/CircuitBreaker.html
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from threading import Lock, RLock
from weakref import WeakSet


class CircuitState(StrEnum):
    """Calls are made; none is; one is under way to try whether they can be made again."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class CircuitBreaker(ABC):
    """Opens after `failures` in a row, for `seconds`; then one call is tried, the others refused.

    A trial that tells nothing within `trial_seconds` gives way to another. Threads may share it.
    `service` is what it stands before, as operators are told.
    """

    service = "other"

    def __init__(
        self,
        seconds: float,
        *,
        failures: int = 1,
        trial_seconds: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._most = failures
        self._trial_seconds = trial_seconds
        self._clock = clock
        self._lock = RLock()
        self._failed = 0
        self._until = 0.0
        self._state = CircuitState.CLOSED
        with _known_lock:
            _known.add(self)

    @abstractmethod
    def refusal(self, retry_after: float | None) -> Exception:
        """Return what is raised instead of a call, which may be made after so many seconds."""

    @abstractmethod
    def blames(self, error: BaseException) -> bool | None:
        """Return whether the error is a failure of the service; None where that is not known."""

    def changed(self, before: CircuitState, error: BaseException | None) -> None:  # noqa: B027
        """Log and count that the state is another one now, because of an error or without."""

    @property
    def state(self) -> CircuitState:
        return self._state

    @property
    def seconds_left(self) -> float:
        """For how long no call is made; infinite while a trial without a limit is under way."""
        return 0.0 if self._is_closed() else self._until - self._clock()

    def check(self) -> None:
        """Raise the refusal while no call would be made."""
        left = self.seconds_left
        if left > 0:
            raise self.refusal(left if math.isfinite(left) else None)

    def enter(self) -> bool:
        """Admit one call, and return whether it is the trial; raise the refusal otherwise."""
        if self._is_closed():
            return False
        with self._lock:
            self.check()
            if self._is_closed():
                return False
            self._until = self._clock() + self._trial_seconds
            self._become(CircuitState.HALF_OPEN, None)
            return True

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Make one call in the block; the refusal is raised instead of entering it.

        A call that began before the circuit opened says nothing about the time after.
        """
        trial = self.enter()
        try:
            yield
        except BaseException as error:
            self._judge(trial, self.blames(error), error)
            raise
        self._judge(trial, False, None)

    def fail(self, error: BaseException | None = None) -> None:
        """Count a failure of the service; an error's `retry_after` prolongs the pause."""
        with self._lock:
            self._failed += 1
            if self._failed >= self._most or not self._is_closed():
                pause = max(self._seconds, getattr(error, "retry_after", None) or 0.0)
                self._until = self._clock() + pause
                self._become(CircuitState.OPEN, error)

    def succeed(self) -> None:
        """Forget the failures: the service did answer."""
        if self._is_closed() and not self._failed:
            return
        with self._lock:
            self._failed = 0
            self._become(CircuitState.CLOSED, None)

    def leave(self, trial: bool) -> None:
        """End a call that told nothing; after a trial, the next call is one."""
        with self._lock:
            if trial and self._state is CircuitState.HALF_OPEN:
                self._until = self._clock()
                self._become(CircuitState.OPEN, None)

    def _judge(self, trial: bool, failed: bool | None, error: BaseException | None) -> None:
        if failed is None:
            self.leave(trial)
        elif trial or self._is_closed():
            self.fail(error) if failed else self.succeed()

    def _is_closed(self) -> bool:
        return self._state is CircuitState.CLOSED

    def _become(self, state: CircuitState, error: BaseException | None) -> None:
        before, self._state = self._state, state
        if before is not state:
            self.changed(before, error)


_known: WeakSet[CircuitBreaker] = WeakSet()
_known_lock = Lock()


def breaker_states() -> dict[str, CircuitState]:
    """Return the states of this process's breakers by the service; of several, the worst."""
    order = [CircuitState.CLOSED, CircuitState.HALF_OPEN, CircuitState.OPEN]
    with _known_lock:
        found = list(_known)
    worst: dict[str, CircuitState] = {}
    for each in found:
        before = worst.get(each.service, CircuitState.CLOSED)
        worst[each.service] = max(before, each.state, key=order.index)
    return worst

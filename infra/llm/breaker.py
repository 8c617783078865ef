"""A circuit breaker: a provider that fails again and again is left alone for a while.

The pattern is described at https://martinfowler.com/bliki/CircuitBreaker.html
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

import structlog

from infra.llm.errors import BreakerOpen, LanguageModelError
from infra.metrics import gauge

log = structlog.get_logger(__name__)

LLM_BREAKER_STATE = gauge(
    "backlot_llm_breaker_state",
    "1 for the state of the circuit breaker before the language model (closed, open, half-open).",
    ("state",),
)


class State(StrEnum):
    """Calls are made; none is; one is on its way to try whether they can be made again."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class CircuitBreaker:
    """Opens after `failures` provider failures in a row, for `seconds`; then one call is tried.

    An answer that can't be used is no failure of the provider. To be used from one event loop.
    """

    def __init__(
        self, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = failures
        self._seconds = seconds
        self._clock = clock
        self._failed = 0
        self._until = 0.0
        self._become(State.CLOSED)

    @property
    def state(self) -> State:
        return self._state

    def check(self) -> None:
        """Raise BreakerOpen while no call would be made."""
        left = self._until - self._clock()
        if self._state is State.HALF_OPEN or (self._state is State.OPEN and left > 0):
            raise BreakerOpen(
                f"The language model has failed {self._most} times in a row and is left alone.",
                retry_after=left if left > 0 else None,
            )

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """One call of the provider; BreakerOpen instead of it while it is left alone."""
        self.check()
        trial = self._state is State.OPEN
        if trial:
            self._become(State.HALF_OPEN)
        try:
            yield
        except LanguageModelError as error:
            self._ended(trial, error)
            raise
        except BaseException:
            if trial:
                # Cancelled: nothing is known, so the next one tries.
                self._become(State.OPEN)
            raise
        else:
            self._ended(trial, None)

    def _ended(self, trial: bool, error: LanguageModelError | None) -> None:
        if not trial and self._state is not State.CLOSED:
            # It was on its way before the breaker opened, and says nothing about now.
            return
        if error is None or not error.provider_failed:
            self._succeeded(trial)
        else:
            self._count(trial, error)

    def _succeeded(self, trial: bool) -> None:
        self._failed = 0
        if trial:
            self._become(State.CLOSED)
            log.info("llm_breaker_closed")

    def _count(self, trial: bool, error: LanguageModelError) -> None:
        self._failed += 1
        if trial or self._failed >= self._most:
            pause = max(self._seconds, error.retry_after or 0.0)
            self._until = self._clock() + pause
            self._become(State.OPEN)
            log.warning("llm_breaker_opened", seconds=round(pause, 3), error=str(error))

    def _become(self, state: State) -> None:
        self._state = state
        for each in State:
            LLM_BREAKER_STATE.labels(each).set(each is state)

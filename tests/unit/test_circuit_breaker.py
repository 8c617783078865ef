"""What every circuit breaker does, whatever service it stands before."""

from __future__ import annotations

import asyncio
import gc
import math
from contextlib import suppress
from threading import Barrier, Thread

import pytest

from infra.circuit_breaker import CircuitBreaker, CircuitState, breaker_states


class LeftAlone(Exception):
    """No call is made."""

    def __init__(self, retry_after: float | None) -> None:
        super().__init__()
        self.retry_after = retry_after


class Breaker(CircuitBreaker):
    """Of a service that fails with OSError; LookupError is an answer; notes how it changes."""

    def __init__(
        self, failures: int = 1, seconds: float = 10.0, trial_seconds: float = math.inf
    ) -> None:
        self.now = 1000.0
        self.changes: list[tuple[CircuitState, CircuitState]] = []
        super().__init__(
            seconds, failures=failures, trial_seconds=trial_seconds, clock=lambda: self.now
        )

    def refusal(self, retry_after: float | None) -> Exception:
        return LeftAlone(retry_after)

    def blames(self, error: BaseException) -> bool | None:
        return isinstance(error, OSError) if isinstance(error, OSError | LookupError) else None

    def changed(self, before: CircuitState, error: BaseException | None) -> None:
        self.changes.append((before, self.state))


CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


def test_each_change_is_told_once() -> None:
    breaker = Breaker()
    for _ in range(3):
        breaker.fail()
    breaker.now += 10
    with breaker.attempt():
        pass
    breaker.succeed()
    assert breaker.changes == [(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, CLOSED)]


def test_an_answer_that_is_an_error_closes_it_too() -> None:
    breaker = Breaker()
    breaker.fail()
    breaker.now += 10
    with suppress(LookupError), breaker.attempt():
        raise LookupError
    assert breaker.state is CLOSED


def test_a_trial_without_an_end_gives_way_to_another() -> None:
    breaker = Breaker(trial_seconds=5.0)
    breaker.fail()
    breaker.now += 10
    assert breaker.enter()
    with pytest.raises(LeftAlone) as refused:
        breaker.enter()
    assert refused.value.retry_after == 5
    breaker.now += 5
    assert breaker.enter()


def test_during_a_trial_without_a_limit_nobody_knows_when() -> None:
    breaker = Breaker()
    breaker.fail()
    breaker.now += 10
    assert breaker.enter()
    with pytest.raises(LeftAlone) as refused:
        breaker.check()
    assert refused.value.retry_after is None


def test_an_answer_elsewhere_closes_it_at_once() -> None:
    breaker = Breaker()
    breaker.fail()
    breaker.succeed()
    breaker.check()
    assert not breaker.enter()


@pytest.mark.parametrize("error", [asyncio.CancelledError, ValueError])
def test_a_call_that_tells_nothing_changes_nothing(error: type[BaseException]) -> None:
    breaker = Breaker(failures=2)
    breaker.fail()
    with pytest.raises(error), breaker.attempt():
        raise error
    breaker.fail()
    assert breaker.state is OPEN


def test_of_threads_at_once_one_makes_the_trial() -> None:
    breaker, crowd, trials = Breaker(), Barrier(8), list[bool]()
    breaker.fail()
    breaker.now += 10

    def call() -> None:
        crowd.wait()
        with suppress(LeftAlone):
            trials.append(breaker.enter())

    threads = [Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trials == [True]


def test_of_several_breakers_before_one_service_the_worst_is_told() -> None:
    class Named(Breaker):
        service = "a service of this test"

    one, other = Named(), Named()
    assert breaker_states()[Named.service] is CircuitState.CLOSED
    other.fail()
    assert breaker_states()[Named.service] is CircuitState.OPEN
    other.succeed()
    assert breaker_states()[Named.service] is CircuitState.CLOSED
    one.fail()
    del one
    gc.collect()
    assert breaker_states()[Named.service] is CircuitState.CLOSED

"""The circuit breaker and the pace of calls, by a clock that stands still until it is moved."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from contextlib import suppress

import pytest

from infra.circuit_breaker import CircuitState
from infra.llm.client import LanguageModelBreaker
from infra.llm.errors import BreakerOpen, Overloaded, Refused, Throttled, TooManyCalls
from infra.llm.limits import Pace, Usage, usage_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> LanguageModelBreaker:
    return LanguageModelBreaker(3, 30.0, clock)


def call(breaker: LanguageModelBreaker, error: Exception | None = None) -> None:
    """One call that fails with `error`, or answers."""
    with suppress(Overloaded, Refused, Throttled), breaker.attempt():
        if error is not None:
            raise error


def state(breaker: LanguageModelBreaker) -> CircuitState:
    """Asked anew each time; mypy would take the first answer for all."""
    return breaker.state


def fail(breaker: LanguageModelBreaker, times: int) -> None:
    for _ in range(times):
        call(breaker, Overloaded("500"))


def test_it_opens_after_failures_in_a_row_only(breaker: LanguageModelBreaker) -> None:
    fail(breaker, 2)
    call(breaker)
    fail(breaker, 2)
    assert state(breaker) is CircuitState.CLOSED
    fail(breaker, 1)
    assert state(breaker) is CircuitState.OPEN


def test_an_answer_of_no_use_is_an_answer(breaker: LanguageModelBreaker) -> None:
    fail(breaker, 2)
    call(breaker, Refused("no"))
    fail(breaker, 2)
    assert state(breaker) is CircuitState.CLOSED


def test_while_it_is_open_it_says_for_how_long(breaker: LanguageModelBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 10
    with pytest.raises(BreakerOpen) as raised:
        breaker.check()
    assert raised.value.retry_after == 20
    with pytest.raises(BreakerOpen):
        call(breaker)


def test_a_provider_that_names_a_longer_time_is_left_alone_for_it(
    breaker: LanguageModelBreaker, clock: Clock
) -> None:
    for _ in range(3):
        call(breaker, Throttled("429", 100.0))
    clock.now += 99
    with pytest.raises(BreakerOpen):
        breaker.check()
    clock.now += 1
    breaker.check()


def test_one_call_tries_and_the_others_wait(breaker: LanguageModelBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 30
    with breaker.attempt():
        assert state(breaker) is CircuitState.HALF_OPEN
        with pytest.raises(BreakerOpen):
            breaker.check()
        with pytest.raises(BreakerOpen):
            call(breaker)
    assert state(breaker) is CircuitState.CLOSED
    fail(breaker, 2)
    assert state(breaker) is CircuitState.CLOSED


def test_a_failed_trial_opens_it_again_at_once(breaker: LanguageModelBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 30
    fail(breaker, 1)
    assert state(breaker) is CircuitState.OPEN
    clock.now += 29
    with pytest.raises(BreakerOpen):
        breaker.check()


def test_what_was_on_its_way_when_it_opened_decides_nothing(
    breaker: LanguageModelBreaker, clock: Clock
) -> None:
    with breaker.attempt():
        fail(breaker, 3)
    assert state(breaker) is CircuitState.OPEN

    breaker = LanguageModelBreaker(3, 30.0, clock)
    with suppress(Overloaded), breaker.attempt():
        fail(breaker, 3)
        clock.now += 20
        raise Overloaded("500")
    clock.now += 10
    breaker.check()


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyError])
def test_a_trial_that_tells_nothing_leaves_it_to_the_next(
    breaker: LanguageModelBreaker, clock: Clock, error: type[BaseException]
) -> None:
    fail(breaker, 3)
    clock.now += 30
    with pytest.raises(error), breaker.attempt():
        raise error
    assert state(breaker) is CircuitState.OPEN
    call(breaker)
    assert state(breaker) is CircuitState.CLOSED


@pytest.mark.parametrize(("per_minute", "at_once"), [(60, 1), (600, 10), (6000, 100), (6, 1)])
async def test_a_second_of_calls_may_be_made_at_once(
    clock: Clock, per_minute: int, at_once: int
) -> None:
    pace = Pace(per_minute, clock=clock)
    for _ in range(at_once):
        await pace.turn(0)
    with pytest.raises(TooManyCalls) as raised:
        await pace.turn(0)
    assert raised.value.retry_after == pytest.approx(60 / per_minute)


@pytest.mark.parametrize("per_minute", [1, 7, 60, 600])
async def test_no_minute_has_more_calls_than_may_be(clock: Clock, per_minute: int) -> None:
    pace = Pace(per_minute, clock=clock)
    made: list[float] = []
    for _ in range(3000):
        with suppress(TooManyCalls):
            await pace.turn(0)
            made.append(clock.now)
        clock.now += 0.05
    for start in made:
        within = bisect_left(made, start + 60) - bisect_left(made, start)
        assert within <= per_minute + max(1, per_minute // 60)


async def test_whoever_is_turned_away_takes_no_turn(clock: Clock) -> None:
    pace = Pace(60, clock=clock)
    await pace.turn(0)
    for _ in range(10):
        with pytest.raises(TooManyCalls):
            await pace.turn(0.5)
    clock.now += 1
    await pace.turn(0)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"usage": null}', b'{"usage": {"prompt_tokens": "many"}}']
)
def test_a_usage_in_no_known_form_is_none(body: bytes) -> None:
    assert usage_of(body) == Usage(0, 0)

"""Rates and quantiles out of two looks at the counters."""

from __future__ import annotations

import pytest

from infra.request_rates import RequestRates

HEAD = "# TYPE backlot_http_requests_total counter\n"


def page(answers: int, *, errors: int = 0, slow: int = 0, route: str = "/videos") -> str:
    """A page with so many answers, all within 10 ms but the slow ones, which took up to 100."""
    whole = answers + errors
    labels = f'method="GET",route="{route}"'
    return HEAD + "".join(
        f"{line}\n"
        for line in (
            f'backlot_http_requests_total{{{labels},status="200"}} {answers}.0',
            f'backlot_http_requests_total{{{labels},status="503"}} {errors}.0',
            f'backlot_http_request_seconds_bucket{{{labels},le="0.01"}} {whole - slow}.0',
            f'backlot_http_request_seconds_bucket{{{labels},le="0.1"}} {whole}.0',
            f'backlot_http_request_seconds_bucket{{{labels},le="+Inf"}} {whole}.0',
        )
    )


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_figures_are_of_the_time_between_two_looks() -> None:
    clock = Clock()
    rates = RequestRates(clock)
    assert rates.take(page(1_000)) is None
    clock.now += 2
    found = rates.take(page(1_080, errors=20, slow=2))
    assert found is not None
    assert (found.per_second, found.errors_per_second) == (50.0, 10.0)
    # 98 of 100 took up to 10 ms; the 99th is half way through the slow bucket.
    assert found.p50_ms == pytest.approx(10 * 50 / 98)
    assert found.p99_ms == pytest.approx(10 + 90 * 0.5)


def test_rates_are_of_ten_seconds_and_quantiles_of_a_minute() -> None:
    clock = Clock()
    rates = RequestRates(clock)
    found = rates.take(page(0))
    for second in range(1, 41):
        clock.now += 1
        found = rates.take(page(100 * min(second, 20), slow=100 * min(second, 20)))
    assert found is not None
    assert found.per_second == 0
    assert found.p50_ms == pytest.approx(10 + 90 * 0.5)


def test_where_counters_fell_nothing_is_made_up() -> None:
    clock = Clock()
    rates = RequestRates(clock)
    rates.take(page(1_000))
    clock.now += 1
    assert rates.take(page(5)) is None
    clock.now += 1
    found = rates.take(page(7))
    assert found is not None
    assert found.per_second == 2


def test_streams_tell_nothing_of_how_fast_answers_are() -> None:
    clock = Clock()
    rates = RequestRates(clock)
    stream = "/videos/{video_id}/events"
    rates.take(page(0, route=stream))
    clock.now += 1
    found = rates.take(page(10, slow=10, route=stream))
    assert found is not None
    assert (found.per_second, found.p50_ms, found.p99_ms) == (10, None, None)

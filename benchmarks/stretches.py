"""CPU of a server that has something switched on and off all the time, while clients load it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, pairwise
from statistics import median, quantiles
from typing import NamedTuple

import httpx

from benchmarks.like import Server, redis_seconds
from benchmarks.results import Comparison, Side

# Of each four stretches of time, so that neither comes after the other more often (ABBA).
ORDER = ("on", "off", "off", "on")


class Stretch(NamedTuple):
    """What one thing done cost in a stretch of time: CPU of the server and of Redis, in µs."""

    switch: str
    server: float
    redis: float


def stretches(
    server: Server,
    switch: str,
    counted: str,
    load: Callable[[], object],
    *,
    warmup_seconds: float,
    seconds: float,
) -> list[Stretch]:
    """Switch every second by `POST /<switch>/on|off`, while the load runs.

    `counted` is what the server's answers count: `likes` or `comments`. What a process reports to
    Redis every few seconds falls on both kinds of stretches alike.
    """
    marks, switches = [], cycle(ORDER)
    with ThreadPoolExecutor(1) as pool, httpx.Client(trust_env=False) as http:
        loaded = pool.submit(load)
        time.sleep(warmup_seconds)
        # Not the last of it, when the first clients have stopped already.
        end = time.monotonic() + seconds - 1.0
        while time.monotonic() < end:
            answer = http.post(f"http://127.0.0.1:{server.served.port}/{switch}/{next(switches)}")
            mark = answer.raise_for_status().json()
            marks.append((mark["cpuSeconds"], mark[counted], redis_seconds(server)))
            time.sleep(1.0)
        loaded.result()
    whole = (len(marks) - 1) // len(ORDER) * len(ORDER)
    return [
        Stretch(
            switch,
            (after[0] - before[0]) / (after[1] - before[1]) * 1e6,
            (after[2] - before[2]) / (after[1] - before[1]) * 1e6,
        )
        for switch, (before, after) in zip(cycle(ORDER), pairwise(marks[: whole + 1]), strict=False)
    ]


def compared(
    benchmark: str, unit: str, names: tuple[str, str], found: Sequence[Stretch], *, at_most: float
) -> Comparison:
    """Pair neighbours in time, and tell between what values half of the ratios lie.

    `names` are those of what is switched on, and off.
    """
    with_it, without = ([each for each in found if each.switch == s] for s in ("on", "off"))
    ratios = [on.server / off.server for on, off in zip(with_it, without, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    notes = {"half the ratios from": low, "to": high}
    ours, baseline = _side(names[0], with_it, notes), _side(names[1], without, {})
    return Comparison(benchmark, unit, ours, baseline, at_most=at_most, paired=True)


def _side(name: str, found: Sequence[Stretch], notes: dict[str, float]) -> Side:
    redis = median(each.redis for each in found)
    told = {**notes, "Redis CPU µs": redis} if redis else notes
    return Side(name, [each.server for each in found], told)

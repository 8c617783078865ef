"""How many requests are answered, and how fast: from two looks at the counters of all processes.

Counters only grow, so that two of their pages tell what happened between them. The looks are kept
for a minute; who asks for the first time in a long while gets figures with the second look.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

RATE_SECONDS = 10.0
"""Rates are of so long, where looks lie so far back."""
QUANTILE_SECONDS = 60.0
"""Quantiles of so long: of the few requests of ten seconds they would tell nothing."""

# What takes as long as somebody listens, or waits for news, says nothing of how fast answers are.
ENDLESS = frozenset({"/videos/{video_id}/events", "/events"})

LINE = r"^backlot_http_{}\{{(?P<labels>[^\n]*)\}} (?P<value>\S+)$"
ANSWERS = re.compile(LINE.format("requests_total"), re.MULTILINE)
TIMES = re.compile(LINE.format("request_seconds_bucket"), re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted by then (`at` in seconds of a monotonic clock).

    `below` has, by its upper bound, how many answers took at most so long.
    """

    at: float
    answers: float
    errors: float
    below: Mapping[float, float]

    @classmethod
    def of(cls, page: str, at: float) -> Counted:
        """Return what a page of metrics says; an answer of status 500 or above is an error."""
        answers = errors = 0.0
        for found in ANSWERS.finditer(page):
            value, labels = float(found["value"]), dict(LABEL.findall(found["labels"]))
            answers += value
            errors += value if labels["status"].startswith("5") else 0.0
        below: defaultdict[float, float] = defaultdict(float)
        for found in TIMES.finditer(page):
            labels = dict(LABEL.findall(found["labels"]))
            if labels["route"] not in ENDLESS:
                below[float(labels["le"])] += float(found["value"])
        return cls(at, answers, errors, below)


@dataclass(frozen=True, slots=True)
class RequestFigures:
    """Requests of the last seconds: how many were answered, how many with an error of ours.

    Half of them took at most `p50_ms`, and 99 of 100 `p99_ms`; None where there were none.
    """

    per_second: float
    errors_per_second: float
    p50_ms: float | None
    p99_ms: float | None


class RequestRates:
    """The looks of the last minute; to be used from one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looks: deque[Counted] = deque()

    def take(self, page: str) -> RequestFigures | None:
        """Return the figures as of now, given the page of all processes; None at the first look.

        Where counters fell, since a machine came or went, that is a first look.
        """
        now = Counted.of(page, self._clock())
        if self._looks and now.answers < self._looks[-1].answers:
            self._looks.clear()
        while self._looks and self._looks[0].at < now.at - QUANTILE_SECONDS:
            self._looks.popleft()
        before = next((e for e in self._looks if e.at >= now.at - RATE_SECONDS), None)
        before = before or (self._looks[-1] if self._looks else None)
        first = self._looks[0] if self._looks else None
        self._looks.append(now)
        if before is None or first is None or now.at <= before.at:
            return None
        seconds = now.at - before.at
        took = {bound: count - first.below.get(bound, 0.0) for bound, count in now.below.items()}
        return RequestFigures(
            (now.answers - before.answers) / seconds,
            max(0.0, now.errors - before.errors) / seconds,
            quantile(took, 0.5),
            quantile(took, 0.99),
        )


def quantile(below: Mapping[float, float], share: float) -> float | None:
    """Return how many milliseconds that share of the answers took at most, None without any.

    Between two bounds that is a straight line, as Prometheus has it; above the last one, the bound.
    """
    bounds = sorted(below)
    whole = below[bounds[-1]] if bounds else 0
    if whole <= 0:
        return None
    wanted = share * whole
    for lower, upper in pairwise((0.0, *bounds)):
        if below[upper] >= wanted:
            if upper == float("inf"):
                return lower * 1000
            under = below.get(lower, 0.0)
            inside = below[upper] - under
            part = (wanted - under) / inside if inside else 1.0
            return (lower + (upper - lower) * part) * 1000
    return None

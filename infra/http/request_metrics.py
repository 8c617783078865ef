"""How many requests of which kind were answered, and how fast."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.metrics import REGISTRY, SECONDS


@dataclass(slots=True)
class Timings:
    """Requests of one method and route: how many fell into each bucket, and their seconds."""

    counts: list[int]
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)


class RequestMetrics(Collector):
    """Requests by method, route template and status, and the time that they took.

    prometheus_client's own counters cost a request as much as its route. One event loop observes;
    the figures get Prometheus' shape when somebody scrapes them.
    """

    def __init__(self, prefix: str, buckets: Sequence[float]) -> None:
        """`buckets` are upper bounds in seconds, in rising order."""
        self._prefix = prefix
        self._bounds = list(buckets)
        self._timed: dict[tuple[str, str], Timings] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Take in one answered request."""
        timed = self._timed.get((method, route))
        if timed is None:
            timed = self._timed[method, route] = Timings([0] * (len(self._bounds) + 1))
        timed.counts[bisect_left(self._bounds, seconds)] += 1
        timed.seconds += seconds
        timed.statuses[status] += 1

    def collect(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            f"{self._prefix}_requests",
            "HTTP requests answered, by route template.",
            labels=("method", "route", "status"),
        )
        seconds = HistogramMetricFamily(
            f"{self._prefix}_request_seconds",
            "Time to answer an HTTP request, by route template.",
            labels=("method", "route"),
        )
        names = [*map(str, self._bounds), "+Inf"]
        for labels, timed in list(self._timed.items()):
            for status, count in list(timed.statuses.items()):
                requests.add_metric((*labels, str(status)), count)
            below = list(zip(names, accumulate(timed.counts), strict=True))
            seconds.add_metric(labels, below, timed.seconds)
        return (requests, seconds)


HTTP = RequestMetrics("backlot_http", SECONDS)
REGISTRY.register(HTTP)

"""Our request metrics say the same as prometheus_client's own counter and histogram."""

from __future__ import annotations

import random

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from infra.http.requests import RequestMetrics

BUCKETS = (0.001, 0.01, 0.1, 1.0)
# When the library's own series began is all that ours leave out.
NOT_OURS = ("_created",)


def lines(registry: CollectorRegistry) -> list[str]:
    text = generate_latest(registry).decode()
    return sorted(line for line in text.splitlines() if not any(n in line for n in NOT_OURS))


def test_every_line_is_the_librarys() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    metrics = RequestMetrics("some_http", BUCKETS)
    ours.register(metrics)
    counter = Counter(
        "some_http_requests",
        "HTTP requests answered, by route template.",
        ("method", "route", "status"),
        registry=theirs,
    )
    histogram = Histogram(
        "some_http_request_seconds",
        "Time to answer an HTTP request, by route template.",
        ("method", "route"),
        buckets=BUCKETS,
        registry=theirs,
    )
    dice = random.Random(7)
    for _ in range(500):
        method, route = dice.choice(["GET", "POST"]), dice.choice(["/a", "/b/{id}"])
        status = dice.choice([200, 404, 503])
        # Exactly on a bound too: a bucket's bound belongs to the bucket.
        seconds = dice.choice([*BUCKETS, 0.25, 0.0005, 7.0])
        metrics.observe(method, route, status, seconds)
        counter.labels(method, route, str(status)).inc()
        histogram.labels(method, route).observe(seconds)
    assert lines(ours) == lines(theirs)

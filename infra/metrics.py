"""The registry of Prometheus metrics; each metric is declared beside what it measures.

The registry is this program's own: nothing that another library registers leaks in, and a test
reads a metric before and after with ``value``.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of a time."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of the buckets of a number of things."""


def counter(name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
    """Declare what only grows; it is exposed as ``<name>_total``."""
    return Counter(name, help_text, labels, registry=REGISTRY)


def gauge(name: str, help_text: str, labels: Sequence[str] = ()) -> Gauge:
    """Declare what goes up and down."""
    return Gauge(name, help_text, labels, registry=REGISTRY)


def histogram(
    name: str, help_text: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = SECONDS
) -> Histogram:
    """Declare what is observed again and again; ``buckets`` are upper bounds in rising order."""
    return Histogram(name, help_text, labels, buckets=buckets, registry=REGISTRY)


def render() -> bytes:
    """Return all metrics in the Prometheus text format, to be sent with ``CONTENT_TYPE``."""
    return generate_latest(REGISTRY)


async def own_page() -> bytes:
    """Return the metrics of this process alone."""
    return render()


def value(name: str, **labels: str) -> float:
    """Return one sample as it stands now, 0 when it was never touched.

    ``name`` is the exposed one: counters end in ``_total``, histograms in ``_count`` or ``_sum``.
    """
    sample = REGISTRY.get_sample_value(name, labels)
    return 0.0 if sample is None else sample

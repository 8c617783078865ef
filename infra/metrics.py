"""Every Prometheus metric in one place, so that dashboards and alerts have one list to follow.

They live in a registry of their own: nothing that another library registers leaks in, and a
test reads a metric before and after with ``value``.
"""

from __future__ import annotations

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
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

HTTP_REQUESTS = Counter(
    "backlot_http_requests",
    "HTTP requests answered, by route template.",
    ("method", "route", "status"),
    registry=REGISTRY,
)
HTTP_SECONDS = Histogram(
    "backlot_http_request_seconds",
    "Time to answer an HTTP request, by route template.",
    ("method", "route"),
    buckets=SECONDS,
    registry=REGISTRY,
)

COMMANDS = Counter(
    "backlot_commands",
    "Commands decided, by type and outcome (accepted, repeated, refused, conflict, failed).",
    ("command", "outcome"),
    registry=REGISTRY,
)
COMMAND_BATCH_SIZE = Histogram(
    "backlot_command_batch_size",
    "Commands executed in one transaction.",
    buckets=SIZES,
    registry=REGISTRY,
)
COMMAND_BATCH_SECONDS = Histogram(
    "backlot_command_batch_seconds",
    "Time to load, decide and commit one batch of commands.",
    buckets=SECONDS,
    registry=REGISTRY,
)
COMMAND_QUEUE = Gauge(
    "backlot_command_queue",
    "Commands waiting for their batch.",
    registry=REGISTRY,
)

EVENTS_APPENDED = Counter(
    "backlot_events_appended",
    "Events committed to the event store.",
    registry=REGISTRY,
)
APPEND_CONFLICTS = Counter(
    "backlot_append_conflicts",
    "Saves refused because another writer was first at the same stream version.",
    registry=REGISTRY,
)

PROJECTION_LAG_EVENTS = Gauge(
    "backlot_projection_lag_events",
    "Positions between the end of the event store and the projection.",
    ("projection",),
    registry=REGISTRY,
)
PROJECTION_LAG_SECONDS = Gauge(
    "backlot_projection_lag_seconds",
    "Age of the oldest event that the projection has not applied; 0 when it is caught up.",
    ("projection",),
    registry=REGISTRY,
)
PROJECTION_POSITION = Gauge(
    "backlot_projection_position",
    "Position up to which the projection has applied the event store.",
    ("projection",),
    registry=REGISTRY,
)
PROJECTION_EVENTS = Counter(
    "backlot_projection_events_applied",
    "Events applied by the projection; its rate is the projection's speed.",
    ("projection",),
    registry=REGISTRY,
)
PROJECTION_PARKED = Gauge(
    "backlot_projection_parked",
    "Events set aside because the projection failed on them.",
    ("projection",),
    registry=REGISTRY,
)
PROJECTION_STATE = Gauge(
    "backlot_projection_state",
    "1 for the state that the projection is in, 0 for the others.",
    ("projection", "state"),
    registry=REGISTRY,
)

POSTGRES_RESTARTS = Counter(
    "backlot_postgres_restarts",
    "Times that the embedded PostgreSQL died and was started again.",
    registry=REGISTRY,
)

OBJECT_STORE_FAILURES = Counter(
    "backlot_object_store_failures",
    "Times that the object store could not do what was asked (disk, network).",
    registry=REGISTRY,
)


def render() -> bytes:
    """All metrics in the Prometheus text format, to be sent with ``CONTENT_TYPE``."""
    return generate_latest(REGISTRY)


def value(name: str, **labels: str) -> float:
    """One sample as it stands now, 0 when it was never touched.

    ``name`` is the exposed one: counters end in ``_total``, histograms in ``_count`` or ``_sum``.
    """
    sample = REGISTRY.get_sample_value(name, labels)
    return 0.0 if sample is None else sample

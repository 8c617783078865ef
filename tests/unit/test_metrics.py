"""The page that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.command_bus import COMMANDS
from infra import metrics
from infra.http.rate_limits import DECISIONS
from infra.http.requests import HTTP

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.txt"


def declared() -> Iterator[str]:
    """Name, type and labels of each metric; the library has them in attributes of two shapes."""
    for collector in metrics.REGISTRY._collector_to_names:
        own: Any = collector
        if hasattr(own, "_labelnames"):
            yield " ".join([own._name, own._type, *own._labelnames])
    for family in (*HTTP.collect(), *DECISIONS.collect()):
        own = family
        yield " ".join([own.name, own.type, *own._labelnames])


def test_the_metrics_are_those_that_dashboards_and_alerts_know() -> None:
    import_module("backlot.up")
    assert sorted(declared()) == GOLDEN.read_text().splitlines()


def test_the_page_names_what_operators_watch() -> None:
    page = metrics.render().decode()
    for name in (
        "backlot_events_appended_total",
        "backlot_append_conflicts_total",
        "backlot_postgres_restarts_total",
        "backlot_command_batch_size_bucket",
        "process_resident_memory_bytes",
    ):
        assert f"\n{name}" in page


def test_a_sample_can_be_read_before_and_after() -> None:
    before = metrics.value("backlot_commands_total", command="LikeVideo", outcome="accepted")
    COMMANDS.labels("LikeVideo", "accepted").inc(2)
    after = metrics.value("backlot_commands_total", command="LikeVideo", outcome="accepted")
    assert after - before == 2

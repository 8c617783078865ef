"""The page that Prometheus reads."""

from __future__ import annotations

from infra import metrics


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
    metrics.COMMANDS.labels("LikeVideo", "accepted").inc(2)
    after = metrics.value("backlot_commands_total", command="LikeVideo", outcome="accepted")
    assert after - before == 2

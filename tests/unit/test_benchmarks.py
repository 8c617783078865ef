"""The benchmarks' table, JSON and arguments; what they measure is not measured here."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.__main__ import BENCHMARKS, LATEST, parse
from benchmarks.log import VIDEOS, like_event, uploads
from benchmarks.results import Comparison, Side, as_table, machine, write_json
from domain.video_likes import VideoLikes

FAST = Side("ours", [900, 1234.5678, 2000], {"p50 ms": 1.23456})
SLOW = Side("theirs", [100, 90])
FACTS = {"python": "3.11.7", "cores": 2, "postgres": "18.4"}


def test_the_ratio_is_that_of_the_medians() -> None:
    assert Comparison("x", "1/s", FAST, SLOW).ratio == pytest.approx(1234.5678 / 95)


@pytest.mark.parametrize(
    ("comparison", "target", "passed"),
    [
        (Comparison("x", "1/s", FAST, SLOW, at_least=10), "≥ 10", True),
        (Comparison("x", "1/s", FAST, SLOW, at_least=20), "≥ 20", False),
        (Comparison("x", "µs", FAST, SLOW, at_most=1.1), "≤ 1.1", False),
        (Comparison("x", "µs", SLOW, FAST, at_most=1.1), "≤ 1.1", True),
        (Comparison("x", "1/s", FAST, SLOW), "", True),
    ],
)
def test_a_target_is_met_or_missed(comparison: Comparison, target: str, passed: bool) -> None:
    assert (comparison.target, comparison.passed) == (target, passed)


def rendered(comparison: Comparison, *, judged: bool) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(as_table([comparison], judged=judged))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_both_sides_the_ratio_and_the_verdict() -> None:
    table = rendered(Comparison("append", "events/s", FAST, SLOW, at_least=20), judged=True)
    for text in ("append", "1,235 events/s", "95 events/s", "13.00", "≥ 20", "FAIL"):
        assert text in table


def test_a_quick_run_judges_nothing(tmp_path: Path) -> None:
    comparison = Comparison("append", "events/s", FAST, SLOW, at_least=20)
    write_json(tmp_path / "quick.json", [comparison], FACTS, judged=False)
    data = json.loads((tmp_path / "quick.json").read_text())
    assert "FAIL" not in rendered(comparison, judged=False)
    assert data["meaningful"] is False
    assert data["comparisons"][0]["passed"] is None


def test_the_json_keeps_every_round(tmp_path: Path) -> None:
    path = tmp_path / "new" / "latest.json"
    write_json(path, [Comparison("append", "1/s", FAST, SLOW, at_least=10)], FACTS, judged=True)
    assert json.loads(path.read_text()) == {
        "meaningful": True,
        "machine": FACTS,
        "comparisons": [
            {
                "benchmark": "append",
                "unit": "1/s",
                "ours": {
                    "name": "ours",
                    "median": 1235,
                    "rounds": [900, 1235, 2000],
                    "notes": {"p50 ms": 1.235},
                },
                "baseline": {"name": "theirs", "median": 95, "rounds": [100, 90], "notes": {}},
                "ratio": 13,
                "target": "≥ 10",
                "passed": True,
            }
        ],
    }


def test_the_machine_is_described_but_not_named() -> None:
    assert set(machine("18.4")) == {"python", "system", "cores", "postgres"}


def test_a_whole_run_is_kept_as_the_latest() -> None:
    options = parse([])
    assert (options.names, options.json, options.quick) == (list(BENCHMARKS), LATEST, False)


@pytest.mark.parametrize("arguments", [["--quick"], ["append"]])
def test_a_partial_run_replaces_no_result(arguments: list[str]) -> None:
    assert parse(arguments).json is None


def test_named_benchmarks_run_once_and_in_order(tmp_path: Path) -> None:
    options = parse(["growth", "append", "growth", "--json", str(tmp_path / "x.json")])
    assert (options.names, options.json) == (["append", "growth"], tmp_path / "x.json")


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["apend"])
    assert "no benchmark apend; there are append, like" in capsys.readouterr().err


def test_the_made_log_has_each_version_of_each_stream_once() -> None:
    events = [*uploads(), *(like_event(index) for index in range(1_000))]
    keys = {(event.originator_id, event.originator_version) for event in events}
    unliked = [event for event in events if event.topic == VideoLikes.Unliked.TOPIC]
    assert len(events) == len(keys) == 2 * len(VIDEOS) + 1_000
    assert len(unliked) == 200
    assert all((event.originator_id, 1) in keys for event in unliked)

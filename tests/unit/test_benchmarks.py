"""The benchmarks' table, JSON and arguments; what they measure is not measured here."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
from rich.console import Console

import benchmarks.__main__
from benchmarks import erasure
from benchmarks.__main__ import BENCHMARKS, STDOUT, keep, main, merged, parse
from benchmarks.bench import Scale
from benchmarks.load import SLICE_SECONDS, Load, Order, Report
from benchmarks.log import VIDEOS, like_event, uploads
from benchmarks.reading import Size
from benchmarks.results import Comparison, Result, Side, as_dict, as_table, machine
from domain.comment import Comment
from domain.upload import Upload
from domain.video_likes import VideoLikes
from infra.errors import ExitCode

FAST = Side("ours", [900, 1234.5678, 2000], {"p50 ms": 1.23456})
SLOW = Side("theirs", [100, 90])
FACTS = {"python": "3.11.7", "cores": 2, "postgres": "18.4"}


def test_the_ratio_is_that_of_the_medians() -> None:
    assert Comparison("x", "1/s", FAST, SLOW).ratio == pytest.approx(1234.5678 / 95)


def test_the_ratio_of_paired_rounds_is_the_median_of_theirs() -> None:
    slower = Side("on", [110, 1_030, 2_000]), Side("off", [100, 1_000, 2_000])
    comparison = Comparison("x", "µs", *slower, at_most=1.05, paired=True)
    assert comparison.ratio == pytest.approx(1.03)
    assert comparison.passed
    assert not replace(comparison, at_most=1.02).passed


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


NOTHING = Side("theirs", [0, 0])


@pytest.mark.parametrize(
    ("comparison", "passed"),
    [
        (Comparison("x", "NDCG@10", FAST, NOTHING), True),
        (Comparison("x", "NDCG@10", FAST, NOTHING, at_least=1.5), True),
        (Comparison("x", "NDCG@10", FAST, NOTHING, at_most=1.5), False),
        (Comparison("x", "NDCG@10", NOTHING, NOTHING, at_most=1.5), True),
    ],
)
def test_to_a_baseline_that_is_nothing_there_is_no_ratio(
    comparison: Comparison, passed: bool
) -> None:
    assert (comparison.ratio, comparison.passed) == (None, passed)
    assert "\u2013" in rendered(comparison, judged=True)
    assert comparison.as_dict(judged=True)["ratio"] is None


def of(comparison: Comparison) -> dict[str, Result]:
    return {"append": Result(1.23456, [comparison])}


def rendered(comparison: Comparison, *, judged: bool) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(as_table(of(comparison), judged=judged))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_both_sides_the_ratio_and_the_verdict() -> None:
    table = rendered(Comparison("append", "events/s", FAST, SLOW, at_least=20), judged=True)
    for text in ("append", "1,235 events/s", "95 events/s", "13.00", "≥ 20", "FAIL"):
        assert text in table


def test_a_quick_run_judges_nothing(tmp_path: Path) -> None:
    comparison = Comparison("append", "events/s", FAST, SLOW, at_least=20)
    keep(
        tmp_path / "quick.json", as_dict({"append": Result(1.0, [comparison])}, FACTS, judged=False)
    )
    data = json.loads((tmp_path / "quick.json").read_text())
    assert "FAIL" not in rendered(comparison, judged=False)
    assert data["meaningful"] is False
    assert data["benchmarks"]["append"]["comparisons"][0]["passed"] is None


def test_the_json_keeps_every_round(tmp_path: Path) -> None:
    path = tmp_path / "new" / "latest.json"
    comparison = Comparison("append", "1/s", FAST, SLOW, at_least=10)
    keep(path, as_dict(of(comparison), FACTS, judged=True))
    assert json.loads(path.read_text()) == {
        "meaningful": True,
        "machine": FACTS,
        "benchmarks": {
            "append": {
                "minutes": 1.235,
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
                        "baseline": {
                            "name": "theirs",
                            "median": 95,
                            "rounds": [100, 90],
                            "notes": {},
                        },
                        "ratio": 13,
                        "target": "≥ 10",
                        "passed": True,
                    }
                ],
            }
        },
    }


def test_the_machine_is_described_but_not_named() -> None:
    assert set(machine("18.4")) == {"python", "system", "cores", "postgres"}


def test_a_whole_run_is_kept_as_the_latest() -> None:
    options = parse([])
    assert (options.names, options.keep, options.scale) == (list(BENCHMARKS), True, Scale.USUAL)


@pytest.mark.parametrize("arguments", [["--quick"], ["--large"], ["append"], ["--json", "x"]])
def test_other_runs_are_not_kept(arguments: list[str]) -> None:
    assert parse(arguments).keep is False


@pytest.mark.parametrize("arguments", [["--quick"], ["--large"], ["--json", "x.json"]])
def test_only_results_of_the_usual_size_are_kept(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["append", "--keep", *arguments])


def test_kept_results_take_the_place_of_those_of_the_same_benchmarks() -> None:
    before = {"machine": FACTS, "benchmarks": {"growth": "old", "append": "old", "gone": "old"}}
    found = {"meaningful": True, "machine": FACTS, "benchmarks": {"growth": "new"}}
    assert merged(before, found)["benchmarks"] == {"append": "old", "growth": "new"}
    assert list(merged(before, found)["benchmarks"]) == ["append", "growth"]
    elsewhere = merged(before, found | {"machine": FACTS | {"cores": 64}})
    assert elsewhere["benchmarks"] == {"growth": "new"}


def latest(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Where the latest results are kept from now on."""
    path = folder / "latest.json"
    monkeypatch.setattr("benchmarks.__main__.LATEST", path)
    return path


def pretend(
    monkeypatch: pytest.MonkeyPatch, runs: dict[str, Callable[[object], list[Comparison]]]
) -> None:
    """Let there be these benchmarks, and no server."""

    @contextmanager
    def no_server(scale: Scale) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(postgres_version="18.4")

    monkeypatch.setattr("benchmarks.__main__.open_bench", no_server)
    monkeypatch.setattr("benchmarks.__main__.signal.signal", lambda *_: None)
    monkeypatch.setattr("benchmarks.__main__._module", lambda name: SimpleNamespace(run=runs[name]))


def test_a_run_that_is_kept_leaves_the_results_of_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = latest(monkeypatch, tmp_path)
    pretend(monkeypatch, {name: lambda _: [] for name in ("growth", "append")})
    for name in ("growth", "append"):
        assert main([name, "--keep"]) == 0
    assert list(json.loads(path.read_text())["benchmarks"]) == ["append", "growth"]


@pytest.mark.parametrize("kept", [["--keep"], ["--json", "latest.json"]])
def test_a_run_that_is_interrupted_keeps_what_it_has_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: list[str]
) -> None:
    def interrupted(bench: object) -> NoReturn:
        found.extend(json.loads(path.read_text())["benchmarks"])
        raise KeyboardInterrupt

    found: list[str] = []
    path = latest(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    pretend(monkeypatch, {"append": lambda _: [], "like": lambda _: [], "growth": interrupted})
    assert main(["append", "like", "growth", *kept]) == 130
    assert found == list(json.loads(path.read_text())["benchmarks"]) == ["append", "like"]


def test_named_benchmarks_run_once_and_in_order(tmp_path: Path) -> None:
    options = parse(["growth", "append", "growth", "--json", str(tmp_path / "x.json")])
    assert (options.names, options.json) == (["append", "growth"], tmp_path / "x.json")


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["apend"])
    assert "no benchmark apend; there are append, like" in capsys.readouterr().err


def test_a_history_is_for_the_recommendations_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse(["recommendations", "--history", "x.csv"]).history == Path("x.csv")
    monkeypatch.setenv("RECOMMENDATIONS_HISTORY", "y.csv")
    assert parse(["recommendations"]).history == Path("y.csv")
    assert parse(["recommendations", "--own"]).history is None
    assert parse([]).history is None
    with pytest.raises(SystemExit):
        parse(["append", "--history", "x.csv"])
    assert "--history, --own and --days are for" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "many", "1e3"])
def test_days_cuts_and_users_are_counts(number: str) -> None:
    with pytest.raises(SystemExit):
        parse(["recommendations", "--days", number])


def test_results_are_not_kept_in_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["append", "--json", str(tmp_path)])
    assert "is a folder" in capsys.readouterr().err


def test_json_without_a_file_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    path = parse(["append", "--json"]).json
    assert path == STDOUT
    keep(path, {"meaningful": True})
    assert json.loads(capsys.readouterr().out) == {"meaningful": True}


def test_a_benchmark_that_lacks_a_library_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = benchmarks.__main__._module
    pretend(monkeypatch, {})
    monkeypatch.setattr("benchmarks.__main__._module", find)
    monkeypatch.delitem(sys.modules, "benchmarks.translating", raising=False)
    monkeypatch.setitem(sys.modules, "tests.openai_server", None)
    assert main(["translating"]) == ExitCode.FAILED
    assert "backlot: the benchmark translating needs what only" in capsys.readouterr().err


def test_a_benchmark_that_breaks_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: object) -> NoReturn:
        raise RuntimeError("the film tore")

    pretend(
        monkeypatch,
        {"append": broken, "growth": lambda _: [Comparison("x", "1/s", FAST, SLOW)]},
    )
    path = tmp_path / "kept.json"
    assert main(["append", "growth", "--json", str(path)]) == 1
    assert list(json.loads(path.read_text())["benchmarks"]) == ["growth"]
    said = capsys.readouterr().err
    assert "append broke; the others go on" in said
    assert "the film tore" in said


def test_every_benchmark_is_a_module_that_runs() -> None:
    for name in BENCHMARKS:
        assert callable(import_module(f"benchmarks.{name}").run)


def test_the_made_log_has_each_version_of_each_stream_once() -> None:
    events = [*uploads(), *(like_event(index) for index in range(1_000))]
    keys = {(event.originator_id, event.originator_version) for event in events}
    unliked = [event for event in events if event.topic == VideoLikes.Unliked.TOPIC]
    assert len(events) == len(keys) == 2 * len(VIDEOS) + 1_000
    assert len(unliked) == 200
    assert all((event.originator_id, 1) in keys for event in unliked)


def test_what_is_read_has_all_that_its_size_says() -> None:
    size = Size(events=3_000, videos=400, comments=500, viewers=50)
    events = [*uploads(), *map(size.event, range(size.events - 2 * len(VIDEOS)))]
    assert len({(each.originator_id, each.originator_version) for each in events}) == size.events
    counts = Counter(event.topic for event in events)
    assert counts[Upload.Completed.TOPIC] == size.videos
    assert counts[Comment.Posted.TOPIC] == size.comments
    likes = Counter(
        json.loads(e.state)["viewer"] for e in events if e.topic == VideoLikes.Liked.TOPIC
    )
    assert len(likes) == size.viewers
    # More than a page of each.
    assert min(likes.values()) > 20


def test_a_load_with_a_pace_sends_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("benchmarks.load.time.perf_counter", lambda: now)

    async def pauses(pace: float) -> list[float]:
        load = Load(Order(1, ["/"], [], 1, 0.0, 1.0, pace=pace))
        return [load.pause() for _ in range(3)]

    assert asyncio.run(pauses(1_000)) == pytest.approx([0.001, 0.002, 0.003])
    assert asyncio.run(pauses(0)) == [0, 0, 0]


def test_a_stretch_of_work_is_compared_with_what_lies_around_it() -> None:
    """Ten seconds at 100 likes/s, five at work at 80, ten at 120; a moment at work is none."""
    rates = [100] * 40 + [80] * 20 + [120] * 20 + [10] * 2 + [120] * 18
    working = [*[False] * 40, *[True] * 20, *[False] * 20, *[True] * 2, *[False] * 18]
    slices = [int(rate * SLICE_SECONDS) for rate in rates]
    looks = [
        erasure.Look(1000 + (number + place) * SLICE_SECONDS, busy)
        for number, busy in enumerate(working)
        for place in (0.2, 0.6)
    ]
    halves = [
        Report(100, 1, 1, 0, 0, 1000 + number * SLICE_SECONDS, slices[number : number + 50])
        for number in (0, 50)
    ]
    assert list(erasure._pairs(halves, looks)) == [(80, 110)]

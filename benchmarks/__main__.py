"""Measure Backlot: run the benchmarks named, print the table, keep the JSON."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from benchmarks.bench import Scale, open_bench, say
from benchmarks.results import Result, as_dict, as_table, machine, to_json
from infra.errors import OperatorError
from infra.logging import configure_logging
from infra.settings import load_settings

BENCHMARKS = (
    "append",
    "like",
    "reading",
    "counters",
    "cores",
    "limits",
    "engagement",
    "encryption",
    "erasure",
    "projecting",
    "memory",
    "replaying",
    "relaying",
    "ingesting",
    "sealing",
    "growth",
    "finalize",
    "parts",
    "audit",
    "pages",
    "languages",
    "translating",
    "trending",
    "viewers",
    "puppets",
    "attraction",
    "recommending",
    "recommended",
    "recommendations",
)
"""The modules of the benchmarks; imported when they run, since some need more than Backlot does."""
LATEST = Path(__file__).parent / "results" / "latest.json"
WIDTH, REPORT_WIDTH = 110, 130
STDOUT = Path("-")
RECOMMENDATIONS, HISTORY = "recommendations", "RECOMMENDATIONS_HISTORY"
MOST = 1_000_000
SCALES = {
    Scale.QUICK: "only check that everything works",
    Scale.LARGE: "with up to ten times as many events where cost could grow with them; for hours",
}
NOT_MEANINGFUL = "A quick run: it shows that the benchmarks work; its figures mean nothing."


class BenchmarkUnavailable(OperatorError):
    """An installation lacks what a benchmark needs."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """`names` (all when none is given, in our order), `json` (a path or None), `scale`.

    `history` is a file, or None for made-up communities; it is for `recommendations` alone.
    """
    parser = argparse.ArgumentParser(prog="backlot bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--json", nargs="?", type=Path, const=STDOUT, metavar="FILE",
        help="where to keep the results; without a file, print them",
    )  # fmt: skip
    parser.add_argument(
        "--keep", action="store_true",
        help=f"keep these results in {LATEST.name}, in place of those of the same benchmarks",
    )  # fmt: skip
    scale = parser.add_mutually_exclusive_group()
    for each, help_ in SCALES.items():
        scale.add_argument(
            f"--{each}", dest="scale", action="store_const", const=each, default=Scale.USUAL,
            help=help_,
        )  # fmt: skip
    _add_recommendations(parser)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if options.json is not None and options.json.is_dir():
        parser.error(f"--json: {options.json} is a folder")
    alone = options.names == [RECOMMENDATIONS]
    if not alone and (options.history or options.own or options.days):
        parser.error(f"--history, --own and --days are for: backlot bench {RECOMMENDATIONS}")
    if options.history is None and alone and not options.own:
        told = os.environ.get(HISTORY)
        options.history = Path(told) if told else None
    options.names = [name for name in BENCHMARKS if name in options.names or not options.names]
    if options.keep and (options.scale is not Scale.USUAL or options.json is not None):
        parser.error("--keep: results of the usual size are kept, and in one place")
    whole = len(options.names) == len(BENCHMARKS) and options.scale is Scale.USUAL
    options.keep |= whole and options.json is None and os.access(LATEST.parent, os.W_OK)
    return options


def _add_recommendations(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("recommendations by the history of a site")
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--history", type=Path, metavar="FILE",
        help=f"CSV, JSON lines, Parquet, or an export of the event log (also {HISTORY})",
    )  # fmt: skip
    source.add_argument("--own", action="store_true", help="what this installation has recorded")
    group.add_argument("--days", type=_count, help="also ask for the next so many days")
    group.add_argument("--cuts", type=_count, default=5, help="at so many times (5)")
    group.add_argument("--users", type=_count, default=1_000, help="ask so many at most (1000)")


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MOST}")
    return int(text)


def main(arguments: Sequence[str]) -> int:
    """Return the exit code: 1 when a target was missed, which a quick run never does, or when a
    benchmark broke."""
    options = parse(arguments)
    configure_logging(load_settings({"LOG_LEVEL": "error"}).logs)
    # Else a stopped run would leave its servers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if options.history is not None or options.own:
            return judge_history(options)
        results, facts = measure(options.names, options.scale, partial(keep_found, options))
        broken = [name for name in options.names if name not in results]
    except OperatorError as error:
        print(f"backlot: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    judged = options.scale is not Scale.QUICK
    if options.json == STDOUT:
        keep(STDOUT, as_dict(results, facts, judged=judged))
    else:
        show(results, facts, judged=judged)
    missed = [each for result in results.values() for each in result.comparisons if not each.passed]
    return int(bool(broken) or (judged and bool(missed)))


def keep_found(
    options: argparse.Namespace, results: Mapping[str, Result], facts: Mapping[str, Any]
) -> None:
    """Keep what was found so far in the file that the options name, if they do."""
    found = as_dict(results, facts, judged=options.scale is not Scale.QUICK)
    if options.keep:
        before = json.loads(LATEST.read_bytes()) if LATEST.exists() else {}
        keep(LATEST, merged(before, found))
    elif options.json not in (None, STDOUT):
        keep(options.json, found)


def judge_history(options: argparse.Namespace) -> int:
    """Judge recommendations by a history; there is no target to miss."""
    from benchmarks.history_files import read_history
    from benchmarks.history_report import Request, judge
    from benchmarks.own_history import own_history

    settings = load_settings()
    if options.own:
        history = own_history(settings)
    else:
        history = read_history(options.history, settings.watch.view_repeat)
    request = Request(options.days, options.cuts, options.users)
    report = judge(history, request, settings)
    if options.json != STDOUT:
        console = Console(width=max(REPORT_WIDTH, Console().width), highlight=False)
        console.print(report.as_table())
    if options.json is not None:
        keep(options.json, report.as_dict())
    return 0


def measure(
    names: Sequence[str],
    scale: Scale,
    after_each: Callable[[Mapping[str, Result], Mapping[str, Any]], None],
) -> tuple[dict[str, Result], dict[str, Any]]:
    """Run these benchmarks on a server of their own; also what the machine is.

    One that breaks has no result, and costs the others nothing. What was found so far is told
    after each, so that a run which is interrupted loses only what it was at.
    """
    results: dict[str, Result] = {}
    with open_bench(scale) as bench:
        facts = machine(bench.postgres_version)
        for name in names:
            print(f"{name} …", file=sys.stderr, flush=True)
            started = time.monotonic()
            module = _module(name)
            try:
                comparisons = module.run(bench)
            except Exception:  # noqa: BLE001 - told, and its result is missing
                traceback.print_exc()
                say(f"{name} broke; the others go on")
                continue
            results[name] = Result((time.monotonic() - started) / 60, comparisons)
            after_each(results, facts)
        return results, facts


def _module(name: str) -> ModuleType:
    """Return a benchmark's module; raise BenchmarkUnavailable where a library is missing."""
    try:
        return import_module(f"benchmarks.{name}")
    except ImportError as error:
        raise BenchmarkUnavailable(
            f"the benchmark {name} needs what only `make bench` in a checkout has: {error}"
        ) from error


def merged(before: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return kept results with what was found now, in our order; none of another machine stay."""
    kept = before.get("benchmarks", {}) if before.get("machine") == found["machine"] else {}
    each = {**kept, **found["benchmarks"]}
    return {**found, "benchmarks": {name: each[name] for name in BENCHMARKS if name in each}}


def keep(path: Path, whole: Mapping[str, Any]) -> None:
    """Write results as JSON to a file, or to standard output."""
    if path == STDOUT:
        print(to_json(whole), end="")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_json(whole), encoding="utf-8")
        say(f"kept in {path}")


def show(results: Mapping[str, Result], facts: Mapping[str, Any], *, judged: bool) -> None:
    """Print the table to standard output, wide enough for the names wherever it goes."""
    console = Console(width=max(WIDTH, Console().width), highlight=False)
    console.print(as_table(results, judged=judged))
    console.print(", ".join(f"{name} {fact}" for name, fact in facts.items()))
    if not judged:
        console.print(NOT_MEANINGFUL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m benchmarks`: run the benchmarks named, print the table, keep the JSON."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import (
    append,
    attraction,
    audit,
    counters,
    finalize,
    growth,
    ingesting,
    languages,
    like,
    memory,
    parts,
    projecting,
    recommendations,
    recommended,
    recommending,
    relaying,
    replaying,
    sealing,
    translating,
    trending,
)
from benchmarks.bench import Bench, open_bench, say
from benchmarks.results import Comparison, as_table, machine, write_json
from infra.errors import OperatorError
from infra.logging import configure_logging
from infra.settings import load_settings

BENCHMARKS: dict[str, Callable[[Bench], list[Comparison]]] = {
    "append": append.run,
    "like": like.run,
    "counters": counters.run,
    "projecting": projecting.run,
    "memory": memory.run,
    "replaying": replaying.run,
    "relaying": relaying.run,
    "ingesting": ingesting.run,
    "sealing": sealing.run,
    "growth": growth.run,
    "finalize": finalize.run,
    "parts": parts.run,
    "audit": audit.run,
    "languages": languages.run,
    "translating": translating.run,
    "trending": trending.run,
    "attraction": attraction.run,
    "recommending": recommending.run,
    "recommended": recommended.run,
    "recommendations": recommendations.run,
}
LATEST = Path(__file__).parent / "results" / "latest.json"
WIDTH = 110
NOT_MEANINGFUL = "A quick run: it shows that the benchmarks work; its figures mean nothing."


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """`names` (all when none is given, in our order), `json` (a path or None), `quick`."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to keep the results")
    parser.add_argument("--quick", action="store_true", help="only check that everything works")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    options.names = [name for name in BENCHMARKS if name in options.names or not options.names]
    # A partial result must not replace a whole one.
    if options.json is None and not options.quick and len(options.names) == len(BENCHMARKS):
        options.json = LATEST
    return options


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 when a target was missed or a benchmark failed; a quick run misses none."""
    options = parse(arguments)
    configure_logging(load_settings({"LOG_LEVEL": "error"}).logs)
    # Else a stopped run would leave its servers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        comparisons, facts = measure(options.names, quick=options.quick)
    except OperatorError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    show(comparisons, facts, judged=not options.quick)
    if options.json is not None:
        write_json(options.json, comparisons, facts, judged=not options.quick)
        say(f"kept in {options.json}")
    return 0 if options.quick or all(item.passed for item in comparisons) else 1


def measure(names: Sequence[str], *, quick: bool) -> tuple[list[Comparison], dict[str, Any]]:
    """Run these benchmarks on a server of their own; also what the machine is."""
    comparisons: list[Comparison] = []
    with open_bench(quick=quick) as bench:
        for name in names:
            print(f"{name} …", file=sys.stderr, flush=True)
            comparisons += BENCHMARKS[name](bench)
        return comparisons, machine(bench.postgres_version)


def show(comparisons: Sequence[Comparison], facts: dict[str, Any], *, judged: bool) -> None:
    """Print the table to standard output, wide enough for the names wherever it goes."""
    console = Console(width=max(WIDTH, Console().width), highlight=False)
    console.print(as_table(comparisons, judged=judged))
    console.print(", ".join(f"{name} {fact}" for name, fact in facts.items()))
    if not judged:
        console.print(NOT_MEANINGFUL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

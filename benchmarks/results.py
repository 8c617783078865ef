"""What was measured against what, as a table for people and as JSON for machines."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import median
from typing import Any

from rich.table import Table

NO_BREAK = "\u00a0"
NOTHING = "\u2013"
"""In the place of a ratio to nothing."""


@dataclass(frozen=True, slots=True)
class Side:
    """One contender: a value per round in the comparison's unit, and the medians of the rest."""

    name: str
    rounds: Sequence[float]
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        return median(self.rounds)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "median": _short(self.value),
            "rounds": [_short(value) for value in self.rounds],
            "notes": {name: _short(value) for name, value in self.notes.items()},
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours against a baseline; the ratio of the medians has to reach (or stay under) a limit.

    Without a limit it is shown for information only. Where both sides are `paired`, it is the
    median of the rounds' ratios, which a machine that is slower for a while does not change.
    """

    benchmark: str
    unit: str
    ours: Side
    baseline: Side
    at_least: float | None = None
    at_most: float | None = None
    paired: bool = False

    @property
    def ratio(self) -> float | None:
        """Ours over the baseline; None where the baseline is nothing."""
        ours, baseline = self._values
        return ours / baseline if baseline else None

    @property
    def _values(self) -> tuple[float, float]:
        if not self.paired:
            return self.ours.value, self.baseline.value
        pairs = zip(self.ours.rounds, self.baseline.rounds, strict=True)
        return median(ours / baseline for ours, baseline in pairs), 1.0

    @property
    def passed(self) -> bool:
        ours, baseline = self._values
        enough = self.at_least is None or ours >= self.at_least * baseline
        return enough and (self.at_most is None or ours <= self.at_most * baseline)

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    def as_dict(self, *, judged: bool) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "unit": self.unit,
            "ours": self.ours.as_dict(),
            "baseline": self.baseline.as_dict(),
            "ratio": None if self.ratio is None else _short(self.ratio),
            "target": self.target or None,
            "passed": self.passed if judged and self.target else None,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark came to, and how many minutes it took."""

    minutes: float
    comparisons: Sequence[Comparison]

    def as_dict(self, *, judged: bool) -> dict[str, Any]:
        return {
            "minutes": _short(self.minutes),
            "comparisons": [item.as_dict(judged=judged) for item in self.comparisons],
        }


def machine(postgres: str) -> dict[str, Any]:
    """What a reader needs to judge the figures; nothing that names the machine."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "postgres": postgres,
    }


def as_table(results: Mapping[str, Result], *, judged: bool) -> Table:
    """A row per comparison; `judged` says whether the figures can pass or fail."""
    table = Table(title="Backlot benchmarks (medians)", title_justify="left")
    table.add_column("benchmark")
    table.add_column("ours")
    table.add_column("baseline")
    for name in ("ratio", "target", "result"):
        table.add_column(name, justify="right", no_wrap=True)
    for item in chain.from_iterable(result.comparisons for result in results.values()):
        table.add_row(
            item.benchmark,
            _cell(item.ours, item.unit),
            _cell(item.baseline, item.unit),
            NOTHING if item.ratio is None else f"{item.ratio:.2f}",
            item.target,
            _verdict(item) if judged and item.target else "",
            end_section=True,
        )
    return table


def as_dict(
    results: Mapping[str, Result], facts: Mapping[str, Any], *, judged: bool
) -> dict[str, Any]:
    """Return the results for JSON; those of a quick run say that nobody should judge by them."""
    return {
        "meaningful": judged,
        "machine": dict(facts),
        "benchmarks": {name: result.as_dict(judged=judged) for name, result in results.items()},
    }


def to_json(whole: Mapping[str, Any]) -> str:
    """Return results as they are kept."""
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _verdict(item: Comparison) -> str:
    return "[green]pass[/]" if item.passed else "[red]FAIL[/]"


def _cell(side: Side, unit: str) -> str:
    lines = [side.name, f"{_short(side.value):,} {unit}"]
    if side.notes:
        notes = (f"{name} {_short(value):,}" for name, value in side.notes.items())
        lines.append(", ".join(note.replace(" ", NO_BREAK) for note in notes))
    return "\n".join(lines)


def _short(value: float) -> float:
    """Four significant digits; more would only be noise."""
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() else rounded

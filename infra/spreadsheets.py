"""CSV that spreadsheets open without running any of it (RFC 4180, with line feeds)."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from io import StringIO
from typing import TextIO

CSV = "text/csv"
# What a spreadsheet takes for the beginning of a formula; and what it skips before one.
FORMULAS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # noqa: RUF001 - as wide as East Asian text
GUARD = "'"


def harmless(cell: object) -> object:
    """Return what a cell holds, with an apostrophe before a text that would be a formula.

    Numbers stay as they are: of these no formula can be made.
    """
    if not isinstance(cell, str):
        return cell
    begun = cell.lstrip()
    is_formula = begun.startswith(FORMULAS) or cell.startswith(("\t", "\r", "\n"))
    return f"{GUARD}{cell}" if is_formula else cell


class Sheet:
    """Writes rows to a file as CSV; nothing stands for None."""

    def __init__(self, file: TextIO, columns: Iterable[str]) -> None:
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(columns)

    def write(self, rows: Iterable[Iterable[object]]) -> None:
        self._writer.writerows([[harmless(cell) for cell in row] for row in rows])


def as_csv(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> bytes:
    """Return a table as CSV in UTF-8."""
    text = StringIO(newline="")
    Sheet(text, columns).write(rows)
    return text.getvalue().encode()


def wants_csv(accept: str | None) -> bool:
    """Return whether a client names CSV in `Accept`, and JSON not before it (RFC 9110, 12.5.1)."""
    best: tuple[float, str] | None = None
    for each in (accept or "").split(","):
        kind, *parameters = (part.strip().lower() for part in each.split(";"))
        if kind in (CSV, "application/json", "application/*"):
            weight = _weight(parameters)
            if weight > 0 and (best is None or weight > best[0]):
                best = weight, kind
    return best is not None and best[1] == CSV


def _weight(parameters: Iterable[str]) -> float:
    given = [
        value for name, _, value in (each.partition("=") for each in parameters) if name == "q"
    ]
    try:
        return float(given[0]) if given else 1.0
    except ValueError:
        return 0.0

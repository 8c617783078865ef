"""How results are laid out for people: nothing is cut, however narrow the terminal is."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from rich.cells import cell_len, chop_cells, set_cell_size

UNLIMITED = sys.maxsize
GAP = "  "
NUMBER = re.compile(r"[0-9][0-9,.]*")
NO_NUMBER = ("-", "never")
# What stands around a change in a long text.
AROUND = 20


def width() -> int:
    """How many columns there are: `COLUMNS`, or the terminal's; elsewhere any number."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or UNLIMITED
    except (OSError, ValueError):
        return UNLIMITED


def table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], columns: int | None = None
) -> Iterator[str]:
    """Rows under their headings, numbers to the right.

    Where that does not fit, each row is a block of lines, each a heading and its cell.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    sizes = [max(map(cell_len, column)) for column in zip(headings, *texts, strict=True)]
    if sum(sizes) + len(GAP) * (len(sizes) - 1) > (width() if columns is None else columns):
        yield from _blocks(headings, texts)
        return
    right = [_counts(column) for column in zip(*texts, strict=True)] or [False] * len(sizes)
    for line in (headings, *texts):
        cells = zip(line, sizes, right, strict=True)
        yield GAP.join(_filled(*cell) for cell in cells).rstrip()


def flow(cells: Iterable[str], columns: int | None = None) -> Iterator[str]:
    """Cells side by side; those that don't fit go on in the next lines, a little to the right."""
    limit = width() if columns is None else columns
    line = ""
    for cell in cells:
        if line and cell_len(f"{line}{GAP}{cell.rstrip()}") > limit:
            yield line.rstrip()
            *full, line = chop_cells(cell.strip(), max(limit - len(GAP), 1)) or [""]
            yield from (GAP + part for part in full)
            line = GAP + line
        else:
            line = f"{line}{GAP}{cell}" if line else cell
    yield line.rstrip()


def changed(old: str, new: str) -> tuple[str, str]:
    """Two texts without the long parts that they begin or end with alike."""
    first = _alike(old, new)
    last = min(_alike(old[::-1], new[::-1]), len(old) - first, len(new) - first)
    start, end = max(first - AROUND, 0), max(last - AROUND, 0)
    # Where leaving out saves nothing, everything is shown.
    start, end = (0 if left <= 1 else left for left in (start, end))
    return _excerpt(old, start, end), _excerpt(new, start, end)


def _blocks(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    named = max(map(cell_len, headings))
    for number, row in enumerate(rows):
        if number:
            yield ""
        for heading, cell in zip(headings, row, strict=True):
            yield f"{set_cell_size(heading, named)}{GAP}{cell}".rstrip()


def _counts(cells: Sequence[str]) -> bool:
    numbers = [cell for cell in cells if cell not in NO_NUMBER]
    return numbers != [] and all(map(NUMBER.fullmatch, numbers))


def _filled(text: str, size: int, right: bool) -> str:
    space = " " * (size - cell_len(text))
    return space + text if right else text + space


def _alike(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = zip_longest(one, other)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), len(one))


def _excerpt(text: str, start: int, end: int) -> str:
    before, after = "…" if start else "", "…" if end else ""
    return f"{before}{text[start : len(text) - end]}{after}"

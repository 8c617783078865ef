"""How results are laid out for people: nothing is cut, however narrow the terminal is."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len, set_cell_size

# What stands for no limit; rich takes no larger numbers.
UNLIMITED = 100_000
GAP = "  "
# Columns that the last cell of a row needs.
LEAST = 24
NUMBER = re.compile(r"[0-9][0-9,.]*")
NO_NUMBER = ("-", "never")


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
    """Rows under their headings, numbers to the right; what a terminal would obey is replaced.

    What is too wide for that has its last column broken between words; where no room is left for
    one, each row is a block of lines, each a heading and its cell.
    """
    limit = width() if columns is None else columns
    texts = [[printable(" ".join(str(cell).split())) for cell in row] for row in rows]
    *sizes, last = (max(map(cell_len, column)) for column in zip(headings, *texts, strict=True))
    room = limit - sum(sizes) - len(GAP) * len(sizes)
    words = " ".join(row[-1] for row in (headings, *texts)).split()
    if room < max(min(last, LEAST), *map(cell_len, words)):
        yield from _blocks(headings, texts, limit)
        return
    sizes.append(min(last, room))
    right = [_counts(column) for column in zip(*texts, strict=True)] or [False] * len(sizes)
    for line in (headings, *texts):
        yield from _lines(line, sizes, right)


def flow(cells: Iterable[str], columns: int | None = None) -> Iterator[str]:
    """Cells side by side; those that don't fit go on in the next lines, a little to the right."""
    limit = width() if columns is None else columns
    line = ""
    for cell in cells:
        if line and cell_len(f"{line}{GAP}{cell.rstrip()}") > limit:
            yield line.rstrip()
            *full, last = _wrapped(cell, limit - len(GAP))
            yield from (GAP + part for part in full)
            line = GAP + last
        else:
            line = f"{line}{GAP}{cell}" if line else cell
    yield line.rstrip()


def printable(text: str) -> str:
    """The text without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _lines(cells: Sequence[str], sizes: Sequence[int], right: Sequence[bool]) -> Iterator[str]:
    """A row, with its last cell in as many lines as it takes."""
    *before, last = cells
    aligned = [_filled(*each) for each in zip(before, sizes, right, strict=False)]
    for number, part in enumerate(_wrapped(last, sizes[-1])):
        if number:
            aligned = [" " * size for size in sizes[:-1]]
        yield GAP.join([*aligned, _filled(part, sizes[-1], right[-1])]).rstrip()


def _blocks(headings: Sequence[str], rows: Sequence[Sequence[str]], limit: int) -> Iterator[str]:
    named = max(map(cell_len, headings))
    for number, row in enumerate(rows):
        if number:
            yield ""
        for heading, cell in zip(headings, row, strict=True):
            first, *more = _wrapped(cell, limit - named - len(GAP))
            yield f"{set_cell_size(heading, named)}{GAP}{first}".rstrip()
            yield from (f"{' ' * named}{GAP}{part}" for part in more)


def _wrapped(text: str, size: int) -> list[str]:
    """The text in lines of that many columns, broken between words only: ids stay whole."""
    if cell_len(text) <= size:
        return [text]
    words = textwrap.wrap(text, max(size, 1), break_long_words=False, break_on_hyphens=False)
    return words or [""]


def _counts(cells: Sequence[str]) -> bool:
    numbers = [cell for cell in cells if cell not in NO_NUMBER]
    return numbers != [] and all(map(NUMBER.fullmatch, numbers))


def _filled(text: str, size: int, right: bool) -> str:
    space = " " * max(size - cell_len(text), 0)
    return space + text if right else text + space

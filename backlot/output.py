"""What commands print: text for people, JSON for programs."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Annotated

import typer
from rich.cells import cell_len

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def show(text: str, data: object, as_json: bool) -> None:
    """Print a result to standard output, as text or as JSON."""
    typer.echo(json.dumps(data, ensure_ascii=False, indent=2) if as_json else text)


def show_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    data: object,
    as_json: bool,
    *,
    empty: str | None = None,
) -> None:
    """Print rows under their headings, or `empty` where there are none; as JSON, the data."""
    show(empty if empty and not rows else "\n".join(table(headings, rows)), data, as_json)


def given(**parameters: object) -> dict[str, object]:
    """Return the parameters that were given: what is not said is not recorded."""
    return {name: value for name, value in parameters.items() if value not in (None, False)}


# What stands for no limit; rich takes no larger numbers.
UNLIMITED = 100_000
GAP = "  "
# Columns that the last cell of a row needs.
LEAST = 24
NUMBER = re.compile(r"[0-9][0-9,.]*")
NO_NUMBER = ("-", "never")


def width() -> int:
    """Return how many columns fit: `COLUMNS`, else the terminal's, else UNLIMITED."""
    return shutil.get_terminal_size((UNLIMITED, 1)).columns


def table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], columns: int | None = None
) -> Iterator[str]:
    """Yield rows under their headings, numbers to the right; control characters are replaced.

    A table that is wider than `columns` has its last column broken between words; where no room is
    left for that column, each row is a block of lines, each a heading and its cell.
    """
    limit = columns or width()
    texts = [[printable(" ".join(str(cell).split())) for cell in row] for row in rows]
    *sizes, last = (max(map(cell_len, column)) for column in zip(headings, *texts, strict=True))
    room = limit - sum(sizes) - len(GAP) * len(sizes)
    words = " ".join(row[-1] for row in (headings, *texts)).split()
    if room >= max(min(last, LEAST), *map(cell_len, words)):
        right = [_counts(column) for column in zip(*texts, strict=True)] or [False] * len(headings)
        for line in (headings, *texts):
            yield from _lines(line, [*sizes, min(last, room)], right)
        return
    named = max(map(cell_len, headings))
    for number, row in enumerate(texts):
        if number:
            yield ""
        for pair in zip(headings, row, strict=True):
            yield from _lines(pair, [named, limit - named - len(GAP)], [False, False])


def flow(cells: Iterable[str], columns: int | None = None) -> Iterator[str]:
    """Yield cells side by side; those that don't fit go on in the next lines, indented."""
    limit = columns or width()
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
    """Return the text with a replacement character for each that a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _lines(cells: Sequence[str], sizes: Sequence[int], right: Sequence[bool]) -> Iterator[str]:
    """Yield a row, with its last cell in as many lines as it takes."""
    *before, last = cells
    for part in _wrapped(last, sizes[-1]):
        yield GAP.join(map(_filled, [*before, part], sizes, right)).rstrip()
        before = [""] * len(before)


def _wrapped(text: str, size: int) -> list[str]:
    """Return the text in lines of that many columns, broken between words: ids stay whole."""
    if cell_len(text) <= size:
        return [text]
    words = textwrap.wrap(text, max(size, 1), break_long_words=False, break_on_hyphens=False)
    return words or [""]


def _counts(cells: Sequence[str]) -> bool:
    numbers = [cell for cell in cells if cell not in NO_NUMBER]
    return numbers != [] and all(map(NUMBER.fullmatch, numbers))


def _filled(text: str, size: int, right: bool) -> str:
    space = " " * (size - cell_len(text))
    return space + text if right else text + space


# Longer values stand below each other, so that one sees what differs.
SHORT = 40
MAX_VALUE = 300
# What stands around a change in a long text.
AROUND = 20


def change_lines(name: str, old: object, new: object, columns: int | None = None) -> Iterator[str]:
    """Yield a value and what it became: in one line, or in several where one is too short."""
    if isinstance(old, str) and isinstance(new, str):
        old, new = excerpts(old, new)
    before, after = _value(old), _value(new)
    line = f"{name}: {before} → {after}"
    if max(map(len, (before, after))) <= SHORT and cell_len(line) <= (columns or width()):
        yield line
        return
    indent = " " * (len(name) - len(name.lstrip()))
    yield from (f"{name}:", f"{indent}  - {before}", f"{indent}  + {after}")


def excerpts(old: str, new: str) -> tuple[str, str]:
    """Return both texts without the long parts that they begin or end with alike."""
    first = _alike(old, new)
    last = _alike(old[first:][::-1], new[first:][::-1])
    # Where leaving out saves nothing, everything is shown.
    start, end = (alike - AROUND if alike > AROUND + 1 else 0 for alike in (first, last))

    def excerpt(text: str) -> str:
        return f"{'…' * bool(start)}{text[start : len(text) - end]}{'…' * bool(end)}"

    return excerpt(old), excerpt(new)


def _alike(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _value(value: object) -> str:
    text = printable(json.dumps(value, ensure_ascii=False))
    more = len(text) - MAX_VALUE
    return text if more <= 0 else f"{text[:MAX_VALUE]}… ({more:,} more characters)"

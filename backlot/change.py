"""How a value changed, in lines for people: of a long text, the part that did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import zip_longest

from rich.cells import cell_len

from backlot.layout import printable, width

# Longer values stand below each other, so that one sees what differs.
SHORT = 40
MAX_VALUE = 300
# What stands around a change in a long text.
AROUND = 20


def change_lines(name: str, old: object, new: object, columns: int | None = None) -> Iterator[str]:
    """One value and what it became: in one line, or below each other where that does not fit."""
    if isinstance(old, str) and isinstance(new, str):
        old, new = changed(old, new)
    before, after = _value(old), _value(new)
    line = f"{name}: {before} → {after}"
    if max(map(len, (before, after))) <= SHORT and cell_len(line) <= (columns or width()):
        yield line
        return
    indent = " " * (len(name) - len(name.lstrip()))
    yield from (f"{name}:", f"{indent}  - {before}", f"{indent}  + {after}")


def changed(old: str, new: str) -> tuple[str, str]:
    """Two texts without the long parts that they begin or end with alike."""
    first = _alike(old, new)
    last = min(_alike(old[::-1], new[::-1]), len(old) - first, len(new) - first)
    start, end = max(first - AROUND, 0), max(last - AROUND, 0)
    # Where leaving out saves nothing, everything is shown.
    start, end = (0 if left <= 1 else left for left in (start, end))
    return _excerpt(old, start, end), _excerpt(new, start, end)


def _value(value: object) -> str:
    text = printable(json.dumps(value, ensure_ascii=False))
    more = len(text) - MAX_VALUE
    return text if more <= 0 else f"{text[:MAX_VALUE]}… ({more:,} more characters)"


def _alike(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = zip_longest(one, other)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), len(one))


def _excerpt(text: str, start: int, end: int) -> str:
    before, after = "…" if start else "", "…" if end else ""
    return f"{before}{text[start : len(text) - end]}{after}"

"""Inputs that real users of other systems sent; `tests/inputs/` has a file for each kind.

Each line of such a file is one input: `input`, `right` and `why`, separated by tabs, under a line
with these names. `right` is what Backlot must make of it, in the words of that kind; `why` says
where the input comes from or what is special about it. A cell that begins with a double quote is a
JSON string, so that what nobody can see is written as an escape: "\\u200b".

A new input is a new line: every tier that reads the kind tries it, if only in `make chaos`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "inputs"
COLUMNS = ["input", "right", "why"]


@dataclass(frozen=True, slots=True)
class RealInput:
    """One input, what is right for it, and why it is here."""

    text: str
    right: str
    why: str


def real_inputs(kind: str, right: str | None = None) -> list[RealInput]:
    """The inputs of `tests/inputs/<kind>.tsv`; with `right`, those for which this is right."""
    head, *lines = (FOLDER / f"{kind}.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert head.split("\t") == COLUMNS, f"{kind}.tsv begins with {head!r}"
    inputs = [RealInput(*map(_cell, line.split("\t"))) for line in lines]
    return [one for one in inputs if right in (None, one.right)]


def each(kind: str, right: str | None = None, *, always: int = 1) -> pytest.MarkDecorator:
    """Run a test once for each input of this kind, as its argument `real`.

    With `always` only each so-manieth always, and all others with the mark `chaos`: for tests of
    which each takes long, and whose inputs a lower tier tries as well.
    """
    inputs = []
    for place, one in enumerate(real_inputs(kind, right)):
        marks = [pytest.mark.chaos] if place % always else []
        inputs.append(pytest.param(one, id=ascii(one.text)[1:41], marks=marks))
    return pytest.mark.parametrize("real", inputs)


def _cell(written: str) -> str:
    return str(json.loads(written)) if written.startswith('"') else written

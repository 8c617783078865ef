"""Every threat is met by tests that exist, or says why it stays open."""

from __future__ import annotations

import re
from functools import cache

import pytest

from tests.structure import ROOT

PAGE = (ROOT / "docs" / "threat-model.md").read_text()
THREATS = PAGE.partition("\n## Threats\n")[2]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
FUNCTION = re.compile(r"^(?: {4})?(?:async )?def (\w+)\(", re.MULTILINE)
OPEN = re.compile(r"open: \w+")


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table, heads and rules left out."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [each for each in cells if each[0] != "threat"]


ROWS = rows(THREATS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_a_threat_is_met_or_says_why_it_is_open(row: list[str]) -> None:
    _, how, met = row
    tests = TEST.findall(met)
    assert tests or OPEN.match(met), "name a test, or begin with `open: ` and the reason"
    assert how or met.startswith("open: ")
    # Nothing that looks like a test and is none.
    assert met.count("::") == len(tests)
    for path, name in tests:
        assert name in functions(path), f"{path} has no {name}"


@cache
def functions(path: str) -> set[str]:
    file = ROOT / path
    assert file.exists(), f"{path} is not there"
    return set(FUNCTION.findall(file.read_text()))


def test_no_threat_is_told_twice() -> None:
    names = [row[0] for row in ROWS]
    assert len(names) > 60
    assert sorted(set(names)) == sorted(names)


def test_assets_actors_and_boundaries_are_there() -> None:
    assert re.findall(r"^## (.+)$", PAGE, re.MULTILINE) == [
        "Assets",
        "Actors",
        "Trust boundaries",
        "Threats",
    ]

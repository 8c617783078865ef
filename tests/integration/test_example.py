"""The example on the engine, run as a program, as a stranger to the product runs it."""

from __future__ import annotations

import subprocess
import sys
import tomllib

from tests.support import DEADLINE_SECONDS, PROJECT

PRINTED = """\
ann votes for soup: votes 1, position 1
bob votes for rice: votes 2, position 2
bob votes for soup: votes 2, position 2
cem votes for soup: votes 3, position 4
damaged tally: [('rice', 99), ('soup', 2)]
replay switched, tally: [('rice', 1), ('soup', 2)]
event poll.voted.v1 by ann
event poll.voted.v1 by bob
event poll.voted.v1 by cem
event poll.closed.v1 by cem
state: {'is_open': False, 'votes': {'ann': 'soup', 'bob': 'rice', 'cem': 'soup'}}
sealed and verified: 4 events
"""
FAULT = "the event at position 2 is not the one that was sealed"


def test_the_poll_prints_what_it_does() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "examples.poll"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    printed, _, changed = ran.stdout.partition("changed: ")
    assert printed == PRINTED
    assert FAULT in changed


def test_the_wheel_does_not_contain_the_examples() -> None:
    build = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert "examples" not in build["targets"]["wheel"]["packages"]


def test_the_examples_are_short() -> None:
    files = (PROJECT / "examples").rglob("*.py")
    assert sum(len(file.read_text().splitlines()) for file in files) < 150

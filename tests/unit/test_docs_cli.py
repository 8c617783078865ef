"""docs/cli.md describes the commands that there are; every command that is named anywhere is one.

That the commands do what is said is tried on a running program: `tests/e2e/test_docs_commands.py`.
"""

from __future__ import annotations

import re

import pytest

from backlot.arguments import ListingGroup
from infra.errors import ExitCode
from tests.command_line import described, every_command, tree
from tests.docs_commands import GUIDES, PAGES, ROOT, Named, in_messages, in_pages

PAGE = (ROOT / "docs" / "cli.md").read_text()
ROW = re.compile(r"^\| (`backlot .*) \|$", re.MULTILINE)
# They act as soon as they are read.
OF_THE_ROOT = {"--version", "--install-completion", "--show-completion"}
NAMED = sorted({*in_pages([*PAGES, *GUIDES]), *in_messages()})


def row(usage: str, about: str, options: tuple[str, ...], codes: tuple[int, ...]) -> str:
    cells = f"`{usage}`", about, " ".join(f"`{name}`" for name in options)
    return " | ".join([*cells, ", ".join(map(str, codes))]).replace("|  |", "| |").rstrip()


def test_every_command_is_described_with_its_options_and_exit_codes() -> None:
    told = {found.replace("| |", "| |").rstrip(" |") for found in ROW.findall(PAGE)}
    assert told == {row(*each).rstrip(" |") for each in described()}


def test_every_exit_code_is_described() -> None:
    told = re.findall(r"^\| ([0-9]+) \| `(\w+)` \|", PAGE, re.MULTILINE)
    assert told == [(str(int(code)), code.name) for code in ExitCode]


def test_no_command_names_an_exit_code_that_is_none() -> None:
    assert {code for each in described() for code in each.codes} <= set(ExitCode)


def test_every_command_has_json() -> None:
    plain = {
        words
        for words, command in every_command()
        if not hasattr(command, "commands")
        and not command.hidden
        and all("--json" not in parameter.opts for parameter in command.params)
    }
    assert plain == {"up", "bench"}


def read(words: tuple[str, ...]) -> None:
    """Read a command as the program would, without carrying it out; raises a usage error.

    Without more than its name it may be a mention in a sentence.
    """
    command, rest = tree(), list(words)
    if set(rest) <= OF_THE_ROOT:
        return
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    if isinstance(command, ListingGroup) and rest and rest[0].startswith("-"):
        command = command.commands["list"]
    assert not (rest and hasattr(command, "commands")), f"No such command: {' '.join(words)}"
    if rest:
        command.make_context("backlot", rest)


@pytest.mark.parametrize("named", NAMED, ids=str)
def test_a_command_that_is_named_is_one(named: Named) -> None:
    read(named.words)


@pytest.mark.parametrize(
    "words",
    [
        ("events", "lst"),
        ("events", "list", "--since", "1h"),
        ("projections", "replay", "lkes"),
        ("events", "show", "first"),
    ],
)
def test_a_command_that_is_none_is_found(words: tuple[str, ...]) -> None:
    with pytest.raises(Exception, match=r"No such|there is no|a valid integer"):
        read(words)

"""The commands that the program has, for tests of what is said about them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import typer
from typer.exceptions import TyperException

from backlot.arguments import ListingGroup
from backlot.cli import app

# Said once for all commands, not for each.
EVERYWHERE = {"--help", "-h", "--json"}


class Described(NamedTuple):
    """A command as its row of docs/cli.md has it."""

    usage: str
    about: str
    options: tuple[str, ...]
    codes: tuple[int, ...]


@cache
def tree() -> Any:
    """The root of all commands."""
    return typer.main.get_group(app)


def every_command() -> Iterator[tuple[str, Any]]:
    """Each group and command with the words that lead to it, the hidden ones included."""
    todo: list[tuple[str, Any]] = [("", tree())]
    while todo:
        words, command = todo.pop(0)
        yield words, command
        inner = getattr(command, "commands", {})
        todo[:0] = [(f"{words} {name}".strip(), each) for name, each in inner.items()]


def described() -> Iterator[Described]:
    """Every command that is shown to people, as the program describes it."""
    for words, command in every_command():
        if not hasattr(command, "commands") and not command.hidden:
            yield _described(words, command)


def readable(words: tuple[str, ...]) -> bool:
    """Whether the words are a whole command: not a group, nor one that lacks what it acts on."""
    command, rest = tree(), list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    if hasattr(command, "commands"):
        return isinstance(command, ListingGroup) or rest != []
    try:
        command.make_context("backlot", rest)
    except TyperException:
        return False
    return True


def _described(words: str, command: Any) -> Described:
    context = command.make_context("", [], resilient_parsing=True)
    pieces = [piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]"]
    arguments = [piece.strip("{}").upper() for piece in pieces]
    options = tuple(name for each in command.params for name in _options(each))
    told = " ".join(command.help.split())
    codes = {int(code) for code in re.findall(r"Exit code ([0-9]+)", told)}
    codes |= {3} if "--yes" in options else set()
    about = re.split(r"(?<=\.) Exit code", command.help.partition("\n\n")[0])[0]
    return Described(
        " ".join(["backlot", words, *arguments]),
        " ".join(about.split()),
        tuple(name for name in options if name not in EVERYWHERE),
        tuple(sorted(codes)),
    )


def _options(parameter: Any) -> list[str]:
    """Its long names; none for an argument."""
    names = [*parameter.opts, *parameter.secondary_opts]
    return [name for name in names if name.startswith("--")]

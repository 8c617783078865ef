"""Questions to whoever typed a command; where nobody can answer, none is asked."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from infra.errors import ExitCode, OperatorError, UsageError

Yes = Annotated[bool, typer.Option("--yes", help="Ask nothing.")]


class NobodyThere(UsageError):
    """A question has to be asked, and no terminal is there for it."""


class Declined(OperatorError):
    """The answer was no, and nothing was done."""

    exit_code = ExitCode.UNCONFIRMED


def require_yes(question: str, *, yes: bool) -> None:
    """Return when `--yes` was given or the answer is yes; raises NobodyThere and Declined."""
    if yes:
        return
    if not _terminal():
        raise NobodyThere(f"{question} There is no terminal to answer on: say --yes")
    if not typer.confirm(question, err=True):
        raise Declined("nothing was changed")


def agrees(question: str, *about: str) -> bool:
    """Whether somebody, having read the lines before it, answers yes; nobody there: no."""
    if not _terminal():
        return False
    typer.echo("\n".join(about), err=True)
    return typer.confirm(question, err=True)


def _terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()

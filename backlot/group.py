"""Groups of commands, and what stands for none of theirs."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from infra.errors import ExitCode


class CommandGroup(TyperGroup):
    """Without a command it explains itself."""

    unnamed = "--help"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # A shell that completes what is typed so far may still get a command.
        unnamed = not (ctx.resilient_parsing or self._named(ctx, args))
        return super().parse_args(ctx, [self.unnamed, *args] if unnamed else args)

    def invoke(self, ctx: Any) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            # Else the interpreter tries once more at its end, and complains.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.CUT_OFF) from None

    def _named(self, ctx: Any, args: list[str]) -> bool:
        return bool(args)


class ListingGroup(CommandGroup):
    """Without a command it is its `list`, with the options of that."""

    unnamed = "list"

    def _named(self, ctx: Any, args: list[str]) -> bool:
        return bool(args) and (not args[0].startswith("-") or args[0] in ctx.help_option_names)


def group(about: str, kind: type[CommandGroup] = CommandGroup) -> typer.Typer:
    """A group of commands, a sentence about them, and what it does without a command."""
    return typer.Typer(cls=kind, help=about, callback=_begin, rich_markup_mode=None)


def _begin() -> None:
    """Nothing; with it, one command alone is a group too."""

"""What long work shows on standard error: a progress bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from infra.errors import ExitCode, OperatorError, UsageError

BYTES = "bytes"
QUARTERS = 4
LINE_SECONDS = 30.0
ROOM_FOR_BAR = 80


class Act:
    """A piece of work whose progress is shown: `show` is told of steps done."""

    def __init__(self, show: Callable[[int], None]) -> None:
        self._show = show

    def advance(self, steps: int = 1) -> None:
        """Count steps that are done; a negative number takes back steps to be done again."""
        self._show(steps)


class Screen:
    """Shows work on standard error, so that standard output is the result's."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def act(self, title: str, total: int, unit: str) -> Iterator[Act]:
        """`total` is how many steps the work has; `unit` is what a step is called."""
        if not self._console.is_terminal:
            yield Act(ProgressLines(self, title, total, unit))
            return
        columns: tuple[ProgressColumn, ...] = (
            MofNCompleteColumn(table_column=Column()),
            Rate(unit),
        )
        if unit == BYTES:
            columns = (DownloadColumn(), TransferSpeedColumn())
        shown = (label("{task.description}"), *bar(self._console), *columns, TimeRemainingColumn())
        with Progress(*shown, console=self._console) as progress:
            task = progress.add_task(title, total=total)
            # Not `advance`, which would take a step back for negative speed.
            yield Act(lambda done: progress.update(task, advance=done))


def label(text: str) -> TextColumn:
    """Return a part of a progress display that takes several lines where one is too short."""
    return TextColumn(text, table_column=Column())


def bar(console: Console) -> tuple[ProgressColumn, ...]:
    """Return the bar, where the numbers beside it leave room for one."""
    return (BarColumn(),) if console.width >= ROOM_FOR_BAR else ()


class Rate(ProgressColumn):
    """How many steps a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self._unit}/s" if speed else "")


class ProgressLines:
    """Shows an act where there is no terminal: a line a quarter, and after a while without one."""

    def __init__(self, screen: Screen, title: str, total: int, unit: str) -> None:
        self._screen = screen
        self._title, self._total, self._unit = title, total, unit
        self._done = self._quarter = 0
        self._told_at = time.monotonic()

    def __call__(self, steps: int) -> None:
        self._done += steps
        quarter = self._done * QUARTERS // self._total
        if quarter > self._quarter or time.monotonic() - self._told_at > LINE_SECONDS:
            self._quarter = max(quarter, self._quarter)
            self._told_at = time.monotonic()
            self._screen.say(f"{self._title}: {self._done}/{self._total} {self._unit}")


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
    """Print the lines and ask; return whether somebody answers yes. Without a terminal: no."""
    if not _terminal():
        return False
    typer.echo("\n".join(about), err=True)
    return typer.confirm(question, err=True)


def _terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()

"""What the demo shows: a progress bar on a terminal and lines elsewhere, then a summary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from backlot.demo.report import Report

QUARTERS = 4


class Act(Protocol):
    """A piece of work whose progress is shown."""

    def advance(self, steps: int = 1) -> None: ...


class Screen:
    """Shows the acts of the demo on standard error, so that standard output is the result's."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def act(self, title: str, total: int, unit: str) -> Iterator[Act]:
        """`total` is how many steps the work has; `unit` is what a step is called."""
        if not self._console.is_terminal:
            yield Lines(self, title, total, unit)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(unit),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            yield Bar(progress, progress.add_task(title, total=total))


class Rate(ProgressColumn):
    """How many steps a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self._unit}/s" if speed else "")


class Bar:
    """An act on a terminal."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, steps: int = 1) -> None:
        self._progress.advance(self._task, steps)


class Lines:
    """An act elsewhere: a line at each quarter."""

    def __init__(self, screen: Screen, title: str, total: int, unit: str) -> None:
        self._screen = screen
        self._title, self._total, self._unit = title, total, unit
        self._done = 0

    def advance(self, steps: int = 1) -> None:
        before = self._done * QUARTERS // self._total
        self._done += steps
        if self._done * QUARTERS // self._total > before:
            self._screen.say(f"{self._title}: {self._done}/{self._total} {self._unit}")


def show(report: Report) -> None:
    """The summary, on standard output."""
    console = Console()
    table = Table(title=f"Backlot's first day, at {report.url}")
    table.add_column("video")
    for heading in ("MB", "parts", "views", "likes", "comments"):
        table.add_column(heading, justify="right")
    for line in report.lines:
        numbers = (line.parts, line.views, line.likes, line.comments)
        table.add_row(line.title, f"{line.size_bytes / 1e6:.2f}", *map(str, numbers))
    console.print(table)
    for text in report.sentences():
        console.print(text, markup=False, highlight=False, soft_wrap=True)

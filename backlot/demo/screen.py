"""The summary of a demo, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from backlot import layout
from backlot.demo.report import DemoReport

HEADINGS = ("video", "MB", "parts", "views", "likes", "comments")


def show(report: DemoReport) -> None:
    """The summary, on standard output."""
    console = Console(width=layout.width())
    rows = [
        (e.title, f"{e.size_bytes / 1e6:.2f}", *map(str, (e.parts, e.views, e.likes, e.comments)))
        for e in report.lines
    ]
    title = f"Backlot's first day, at {report.url}"
    framed = _framed(title, rows)
    anywhere = console.options.update(max_width=layout.UNLIMITED)
    if console.measure(framed, options=anywhere).maximum <= console.width:
        console.print(framed)
    else:
        _say(console, title, *layout.table(HEADINGS, rows, console.width))
    _say(console, *report.sentences())


def _framed(title: str, rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

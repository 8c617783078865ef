"""The summary of a demo, for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from backlot.demo.report import Report


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

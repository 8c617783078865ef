"""How `backlot events` prints: JSON documents, JSON lines, and lines for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from backlot.output import show

if TYPE_CHECKING:
    from infra.contract import Wire
    from readapi.audit.shapes import AuditEvent


class Lines:
    """Prints events one by one: under the day on which they were recorded."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._day = ""

    def tell(self, event: AuditEvent) -> None:
        """Print an event."""
        from backlot.events.text import day_of, event_lines

        if self._as_json:
            typer.echo(event.to_json())
            return
        if (day := day_of(event)) != self._day:
            self._day = day
            typer.echo(day)
        show_lines(event_lines(event))


def show_json(found: Wire) -> None:
    """Print an answer exactly as HTTP gives it."""
    show("", found.model_dump(mode="json", by_alias=True, exclude_none=True), as_json=True)


def show_lines(lines: Iterable[str]) -> None:
    """Print lines."""
    for line in lines:
        typer.echo(line)

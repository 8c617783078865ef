"""`backlot events`: the log in the terminal, in files, and whether nobody altered it."""

from backlot.events.commands import app

__all__ = ["app"]

"""`backlot topics`: what is published, what is consumed, and what could be neither."""

from backlot.topics.commands import app

__all__ = ["app"]

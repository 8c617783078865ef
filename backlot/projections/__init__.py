"""`backlot projections`: read models as operators see and change them."""

from backlot.projections.commands import app

__all__ = ["app"]

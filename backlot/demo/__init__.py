"""`backlot demo`: a short film, a small community around it, and a check that it all counted."""

from __future__ import annotations

from backlot.demo.run import run_demo

__all__ = ["run_demo"]

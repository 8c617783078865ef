"""`backlot upload`: sends a file in parts, and goes on where an interrupted upload ended."""

from __future__ import annotations

from backlot.upload.run import Target, run_upload

__all__ = ["Target", "run_upload"]

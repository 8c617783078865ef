"""Property tests say what is true, not how fast a busy machine finds out."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("backlot", deadline=None)
settings.load_profile("backlot")

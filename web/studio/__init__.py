"""The studio: a creator's own videos, at `/studio`."""

from __future__ import annotations

from starlette.routing import BaseRoute

ROUTES: list[BaseRoute] = []

"""The studio: a creator's own videos, at `/studio`."""

from __future__ import annotations

from starlette.routing import BaseRoute

from web.studio import comments, overview, stats, uploads, videos
from web.templating import TEMPLATES

ROUTES: list[BaseRoute] = [
    *overview.ROUTES,
    *videos.ROUTES,
    *stats.ROUTES,
    *comments.ROUTES,
    *uploads.ROUTES,
]

TEMPLATES.globals["studio_sections"] = (
    ("Overview", "/studio"),
    ("Videos", "/studio/videos"),
    ("Comments", "/studio/comments"),
    ("Blocked users", "/studio/blocked"),
    ("Upload", "/studio/upload"),
)

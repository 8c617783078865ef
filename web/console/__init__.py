"""The console: what operators look at and do, at `/console`."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.routing import BaseRoute

from web.console import (
    integrity,
    log,
    moderation,
    now,
    operations,
    outcomes,
    privacy,
    projections,
    queues,
    spending,
    webhooks,
    why,
)
from web.templating import TEMPLATES
from web.visits import ADMIN, AUDITORS, MODERATORS

ROUTES: list[BaseRoute] = [
    *now.ROUTES,
    *log.ROUTES,
    *integrity.ROUTES,
    *moderation.ROUTES,
    *privacy.ROUTES,
    *why.ROUTES,
    *projections.ROUTES,
    *queues.ROUTES,
    *webhooks.ROUTES,
    *spending.ROUTES,
    *operations.ROUTES,
    *outcomes.ROUTES,
]


@dataclass(frozen=True)
class Section:
    """A page of the console in its navigation."""

    name: str
    path: str
    roles: frozenset[str]
    others: tuple[str, ...] = ()
    """Paths of pages that belong to it beside those below its own."""

    def has(self, path: str) -> bool:
        """Return whether a page belongs to it."""
        if self.path == "/console":
            return path == self.path
        return path.startswith((self.path, *self.others))


SECTIONS = (
    Section("Now", "/console", AUDITORS),
    Section("Projections", "/console/projections", ADMIN),
    Section(
        *("Log", "/console/log", AUDITORS),
        others=("/console/events/", "/console/streams/", "/console/trace/"),
    ),
    Section("Queues", "/console/queues", AUDITORS),
    Section("Integrity", "/console/integrity", AUDITORS),
    Section("Moderation", "/console/moderation", MODERATORS),
    Section("Privacy", "/console/privacy", ADMIN),
    Section("Why", "/console/why", AUDITORS),
    Section("Spending", "/console/spending", AUDITORS),
    Section("Who did what", "/console/operations", AUDITORS),
)


TEMPLATES.globals |= {"sections": SECTIONS, "admins": ADMIN}

"""Who may see and do what on the console's pages: by path, which tests hold against the routes.

To add a page, add its path to `CONSOLE`, unless it is below one that has its roles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from starlette.routing import BaseRoute, Route

AUDITORS, MODERATORS, ADMINS = {"auditor", "admin"}, {"moderator", "admin"}, {"admin"}
CONSOLE = {
    "/console": AUDITORS,
    "/console/now/": AUDITORS,
    "/console/projections": ADMINS,
    "/console/log": AUDITORS,
    "/console/events/": AUDITORS,
    "/console/streams/": AUDITORS,
    "/console/trace": AUDITORS,
    "/console/queues": AUDITORS,
    "/console/queues/parked": ADMINS,
    "/console/queues/webhooks": ADMINS,
    "/console/integrity": AUDITORS,
    "/console/integrity/verify": ADMINS,
    "/console/integrity/proof": ADMINS,
    "/console/moderation": MODERATORS,
    "/console/privacy": ADMINS,
    "/console/why": AUDITORS,
    "/console/why/user": ADMINS,
    "/console/spending": AUDITORS,
    "/console/operations": AUDITORS,
    "/console/operations/": ADMINS,
}
"""Who may see a page and those below it, where no longer path says otherwise.

With a slash at its end: those below alone.
"""
SEEN_ONLY = {"/console/queues": ADMINS}
"""Where not all who look may act."""


class Call(NamedTuple):
    """One way to call a route."""

    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def calls(routes: Iterable[BaseRoute], names: Mapping[str, str]) -> Iterator[Call]:
    """Every way to call these routes; `names` are what the names in their paths stand for."""
    for route in routes:
        if not isinstance(route, Route):
            continue
        path = re.sub(r"{(\w+):?\w*}", lambda found: names[found[1]], route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            yield Call(method, path)


def may(call: Call) -> set[str]:
    """Return the roles that may, by the longest path of the table that the call's is or is below.

    `/console` itself has nothing below it: a page that the table lacks is an error.
    """
    fits = [
        each
        for each in CONSOLE
        if call.path == each
        or (each != "/console" and call.path.startswith(f"{each.removesuffix('/')}/"))
    ]
    found = max(fits, key=len)
    return SEEN_ONLY.get(found, CONSOLE[found]) if call.method == "POST" else CONSOLE[found]

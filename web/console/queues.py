"""Queues: what waits for a decision (parked events, dead letters, failed tasks), and what works.

Each kind has a page of its own with all of them; the first page shows the oldest of each.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from starlette.responses import Response

from web.api import ApiProblem, path
from web.console.outcomes import ask, found_or_none, nothing_picked, picked, reason_of
from web.visits import ADMIN, AUDITORS, Form, Visit, action, page

HOME = "/console/queues"
FIRST, LIMIT = 5, 50
EVENT = re.compile(r"([a-z0-9_]{1,63}):([0-9]{1,19})")


async def queues(visit: Visit) -> Response:
    return visit.page("console/queues.html", **await _first(visit))


async def queues_live(visit: Visit) -> Response:
    """Return the first page's lists, or nothing while they are as the browser has them."""
    shown = await _first(visit)
    if visit.query("state") == shown["state"]:
        return Response(status_code=204)
    return visit.page("console/queues_live.html", **shown)


async def _first(visit: Visit) -> dict[str, Any]:
    asked = {
        "tasks": visit.api.get("/admin/tasks"),
        "letters": visit.api.get("/admin/dead-letters", limit=FIRST),
        "failed": visit.api.get("/admin/tasks/failed", limit=FIRST),
    }
    if visit.may(ADMIN):
        asked["parked"] = visit.api.get("/admin/parked", limit=FIRST)
        asked["webhooks"] = visit.api.get("/admin/webhooks")
    found = await asyncio.gather(*asked.values())
    shown = {"parked": None, "webhooks": None} | dict(zip(asked, found, strict=True))
    return shown | {"state": sha256(repr(shown).encode()).hexdigest()[:16]}


async def parked(visit: Visit) -> Response:
    found = await visit.api.get("/admin/parked", limit=LIMIT, cursor=visit.query("cursor"))
    return visit.page("console/queues_parked.html", parked=found)


async def letters(visit: Visit) -> Response:
    subscription = visit.query("subscription")
    found = await visit.api.get(
        "/admin/dead-letters",
        limit=LIMIT, subscription=subscription, cursor=visit.query("cursor"),
    )  # fmt: skip
    return visit.page("console/queues_letters.html", letters=found, subscription=subscription)


async def tasks(visit: Visit) -> Response:
    found = await visit.api.get("/admin/tasks/failed", limit=LIMIT, cursor=visit.query("cursor"))
    queues = (await visit.api.get("/admin/tasks"))["items"]
    return visit.page("console/queues_tasks.html", failed=found, queues=queues)


async def parked_event(visit: Visit) -> Response:
    """Show an event that a projection set aside: what it says, and what went wrong."""
    name, position = visit.asked("name"), int(visit.asked("position"))
    # The list is by position, and its cursor names the one before.
    listed = await _parked_at(visit, name, position)
    if listed is None:
        told = {"title": "Not there", "detail": "This projection has set no such event aside."}
        raise ApiProblem(404, told)
    event = await found_or_none(visit, path("/audit/events/{}", position))
    return visit.page("console/parked.html", name=name, parked=listed, event=event)


async def _parked_at(visit: Visit, name: str, position: int) -> Mapping[str, Any] | None:
    where, cursor = path("/projections/{}/parked", name), None
    while True:
        found = await visit.api.get(where, limit=100, cursor=cursor)
        for each in found["items"]:
            if each["position"] == position:
                return dict(each)
        cursor = found.get("nextCursor")
        if cursor is None or found["items"][-1]["position"] > position:
            return None


def _events(form: Form) -> list[tuple[str, int]]:
    """Return the parked events of a form, each a projection and a position."""
    matches = map(EVENT.fullmatch, picked(form))
    return [(found[1], int(found[2])) for found in matches if found is not None]


async def _decide_parked(visit: Visit, form: Form, verb: str, told: str) -> Response:
    events = _events(form)
    if not events:
        return nothing_picked(visit, HOME)
    which = "allLike" if form.get("all") else "position"
    requests = [
        (path(f"/projections/{{}}/{verb}", name), {**reason_of(form), which: position})
        for name, position in events
    ]
    return await ask(visit, requests, HOME, told)


async def retry_parked(visit: Visit, form: Form) -> Response:
    return await _decide_parked(visit, form, "retry", "Asked to apply after all.")


async def discard_parked(visit: Visit, form: Form) -> Response:
    return await _decide_parked(visit, form, "discard", "Asked to leave out for good.")


async def _decide_letters(visit: Visit, form: Form, verb: str, told: str) -> Response:
    ids = [int(each) for each in picked(form) if each.isdecimal()]
    if not ids:
        return nothing_picked(visit, HOME)
    body = {**reason_of(form), "ids": ids}
    return await ask(visit, [(f"/admin/dead-letters/{verb}", body)], HOME, told)


async def retry_letters(visit: Visit, form: Form) -> Response:
    return await _decide_letters(visit, form, "retry", "Asked to give to the consumers again.")


async def discard_letters(visit: Visit, form: Form) -> Response:
    return await _decide_letters(visit, form, "discard", "Asked to give up for good.")


async def _decide_tasks(visit: Visit, form: Form, verb: str, told: str) -> Response:
    ids = picked(form)
    if not ids:
        return nothing_picked(visit, HOME)
    requests = [(path(f"/admin/tasks/failed/{{}}/{verb}", each), reason_of(form)) for each in ids]
    return await ask(visit, requests, HOME, told)


async def retry_tasks(visit: Visit, form: Form) -> Response:
    return await _decide_tasks(visit, form, "retry", "Asked to send once more.")


async def discard_tasks(visit: Visit, form: Form) -> Response:
    return await _decide_tasks(visit, form, "discard", "Asked to give up for good.")


ROUTES = [
    page(HOME, queues, AUDITORS),
    page(f"{HOME}/live", queues_live, AUDITORS),
    page(f"{HOME}/parked", parked, ADMIN),
    page(f"{HOME}/parked/{{name}}/{{position:int}}", parked_event, ADMIN),
    page(f"{HOME}/letters", letters, AUDITORS),
    page(f"{HOME}/tasks", tasks, AUDITORS),
    action(f"{HOME}/parked/retry", retry_parked, ADMIN),
    action(f"{HOME}/parked/discard", discard_parked, ADMIN),
    action(f"{HOME}/letters/retry", retry_letters, ADMIN),
    action(f"{HOME}/letters/discard", discard_letters, ADMIN),
    action(f"{HOME}/tasks/retry", retry_tasks, ADMIN),
    action(f"{HOME}/tasks/discard", discard_tasks, ADMIN),
]

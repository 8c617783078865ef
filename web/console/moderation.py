"""Moderation: reports, comments that wait for approval, blocked users, failed translations."""

from __future__ import annotations

from starlette.responses import Response

from web.api import known, path
from web.visits import MODERATORS, Form, Visit, action, page

HERE = "/console/moderation"
LIMIT = 20
STATUSES = ("open", "removed", "dismissed", "gone")


async def show_reports(visit: Visit) -> Response:
    status = visit.query("status") or "open"
    cursor = visit.query("cursor")
    found = known(
        await visit.api.get("/moderation/reports", status=status, limit=LIMIT, cursor=cursor)
    )
    shown = {"chosen": status, "statuses": STATUSES, "found": found}
    return visit.page("console/moderation_reports.html", **shown)


async def show_held(visit: Visit) -> Response:
    cursor = visit.query("cursor")
    found = known(await visit.api.get("/moderation/held", limit=LIMIT, cursor=cursor))
    return visit.page("console/moderation_held.html", found=found)


async def show_blocked(visit: Visit) -> Response:
    cursor = visit.query("cursor")
    found = known(await visit.api.get("/users/me/blocked", limit=LIMIT, cursor=cursor))
    return visit.page("console/moderation_blocked.html", found=found)


async def show_untranslated(visit: Visit) -> Response:
    cursor = visit.query("cursor")
    found = known(await visit.api.get("/admin/translations/failed", limit=LIMIT, cursor=cursor))
    return visit.page("console/moderation_translations.html", found=found)


async def decide(visit: Visit, form: Form) -> Response:
    decision = form.get("decision", "")
    body = {"decision": decision, "reason": form.get("reason") or None}
    where = path("/moderation/reports/{}", visit.asked("report"))
    await visit.api.post(where, {name: value for name, value in body.items() if value})
    told = "It was removed." if decision == "remove" else "The reports were dismissed."
    return visit.leave(visit.back(HERE), told)


async def approve(visit: Visit, form: Form) -> Response:
    # The text that was looked at, and no later one.
    body = {"revision": int(form["revision"])} if form.get("revision", "").isdecimal() else None
    await visit.api.post(path("/comments/{}/approve", visit.asked("comment")), body)
    return visit.leave(visit.back(f"{HERE}/held"), "The comment is there for everybody.")


async def remove(visit: Visit, form: Form) -> Response:
    await visit.api.delete(path("/comments/{}", visit.asked("comment")))
    return visit.leave(visit.back(f"{HERE}/held"), "The comment was removed.")


async def block(visit: Visit, form: Form) -> Response:
    await visit.api.put(path("/users/me/blocked/{}", form.get("user", "").strip()))
    return visit.leave(f"{HERE}/blocked", "The user is blocked.")


async def unblock(visit: Visit, form: Form) -> Response:
    await visit.api.delete(path("/users/me/blocked/{}", form.get("user", "")))
    return visit.leave(f"{HERE}/blocked", "The block is taken back.")


async def translate(visit: Visit, form: Form) -> Response:
    where = path("/admin/translations/{}/retry", visit.asked("comment"))
    await visit.api.post(where)
    return visit.leave(f"{HERE}/translations", "It is tried again.")


ROUTES = [
    page(HERE, show_reports, MODERATORS),
    page(f"{HERE}/held", show_held, MODERATORS),
    page(f"{HERE}/blocked", show_blocked, MODERATORS),
    page(f"{HERE}/translations", show_untranslated, MODERATORS),
    action(f"{HERE}/reports/{{report}}", decide, MODERATORS),
    action(f"{HERE}/comments/{{comment}}/approve", approve, MODERATORS),
    action(f"{HERE}/comments/{{comment}}/remove", remove, MODERATORS),
    action(f"{HERE}/block", block, MODERATORS),
    action(f"{HERE}/unblock", unblock, MODERATORS),
    action(f"{HERE}/translations/{{comment}}", translate, MODERATORS),
]

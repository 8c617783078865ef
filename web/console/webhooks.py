"""Webhooks: where published events are sent to, how deliveries went, and what signs them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from web.api import ApiProblem, path
from web.console.outcomes import nothing_picked, picked
from web.visits import ADMIN, Form, Visit, action, page

HOME = "/console/queues/webhooks"
STATUSES = ("waiting", "delivered", "skipped", "lost")
LIMIT = 50


async def webhooks(visit: Visit) -> Response:
    found = await visit.api.get("/admin/webhooks")
    return visit.page("console/webhooks.html", webhooks=found)


async def webhook(visit: Visit) -> Response:
    return await _one(visit)


async def webhook_live(visit: Visit) -> Response:
    """Return the figures of a webhook."""
    found = await visit.api.get(path("/admin/webhooks/{}", visit.asked("webhook_id")))
    return visit.page("console/webhook_live.html", webhook=found)


async def _one(visit: Visit, **more: Any) -> Response:
    webhook_id = visit.asked("webhook_id")
    status = visit.query("status")
    status = status if status in STATUSES else None
    where = path("/admin/webhooks/{}", webhook_id)
    shown = {
        "webhook": await visit.api.get(where),
        "deliveries": await visit.api.get(
            f"{where}/deliveries", limit=LIMIT, status=status, cursor=visit.query("cursor")
        ),
        "chosen": status,
        "statuses": STATUSES,
        "here": f"{HOME}/{webhook_id}" + (f"?{urlencode({'status': status})}" if status else ""),
        "secrets": None,
    }
    return visit.page("console/webhook.html", **(shown | more))


async def add(visit: Visit, form: Form) -> Response:
    topics = [each for each in form.get("topics", "").replace(",", " ").split() if each]
    made = await visit.api.post("/admin/webhooks", {"url": form.get("url", ""), "topics": topics})
    told = "Added. Its receiver needs the secret: show it below."
    return visit.leave(f"{HOME}/{made['webhookId']}", told)


async def change(visit: Visit, form: Form) -> Response:
    """Enable or disable it, or send other topics or to another URL."""
    webhook_id = visit.asked("webhook_id")
    body: dict[str, Any] = {}
    if form.get("enabled"):
        body["enabled"] = form["enabled"] == "true"
    if form.get("url"):
        body["url"] = form["url"]
    if form.get("topics"):
        body["topics"] = form["topics"].replace(",", " ").split()
    await visit.api.patch(path("/admin/webhooks/{}", webhook_id), body)
    return visit.leave(f"{HOME}/{webhook_id}", "Changed.")


async def remove(visit: Visit, form: Form) -> Response:
    await visit.api.delete(path("/admin/webhooks/{}", visit.asked("webhook_id")))
    return visit.leave(HOME, "Removed, with its deliveries.")


async def show_secret(visit: Visit, form: Form) -> Response:
    """Show what deliveries are signed with: asked for by a form, so that no link brings it up."""
    where = path("/admin/webhooks/{}/secret", visit.asked("webhook_id"))
    return await _one(visit, secrets=(await visit.api.get(where))["secrets"])


async def rotate(visit: Visit, form: Form) -> Response:
    webhook_id = visit.asked("webhook_id")
    await visit.api.post(path("/admin/webhooks/{}/secret", webhook_id), {})
    told = "Signed by a new secret, and for a day also by those before."
    return visit.leave(f"{HOME}/{webhook_id}", told)


async def test(visit: Visit, form: Form) -> Response:
    webhook_id = visit.asked("webhook_id")
    await visit.api.post(path("/admin/webhooks/{}/test", webhook_id))
    return visit.leave(f"{HOME}/{webhook_id}", "A message that says nothing is on its way.")


async def _each(visit: Visit, form: Form, verb: str, told: str) -> Response:
    webhook_id = visit.asked("webhook_id")
    ids = picked(form)
    home = visit.back(f"{HOME}/{webhook_id}")
    if not ids:
        return nothing_picked(visit, home)
    refused: list[str] = []
    for each in ids:
        where = path(f"/admin/webhooks/{{}}/deliveries/{{}}/{verb}", webhook_id, each)
        try:
            await visit.api.post(where)
        except ApiProblem as problem:
            if problem.status != 409:
                raise
            refused.append(f"{each}: {problem.detail}")
    if refused:
        return visit.leave(home, " ".join(refused), bad=True)
    return visit.leave(home, told)


async def repeat(visit: Visit, form: Form) -> Response:
    return await _each(visit, form, "repeat", "Delivered once more, soon.")


async def skip(visit: Visit, form: Form) -> Response:
    return await _each(visit, form, "skip", "Given up; what waits behind goes on.")


ROUTES = [
    page(HOME, webhooks, ADMIN),
    page(f"{HOME}/{{webhook_id:uuid}}", webhook, ADMIN),
    page(f"{HOME}/{{webhook_id:uuid}}/live", webhook_live, ADMIN),
    action(HOME, add, ADMIN),
    action(f"{HOME}/{{webhook_id:uuid}}", change, ADMIN),
    action(f"{HOME}/{{webhook_id:uuid}}/remove", remove, ADMIN),
    action(f"{HOME}/{{webhook_id:uuid}}/secret", show_secret, ADMIN),
    action(f"{HOME}/{{webhook_id:uuid}}/rotate", rotate, ADMIN),
    action(f"{HOME}/{{webhook_id:uuid}}/test", test, ADMIN),
    action(f"{HOME}/{{webhook_id:uuid}}/repeat", repeat, ADMIN),
    action(f"{HOME}/{{webhook_id:uuid}}/skip", skip, ADMIN),
]

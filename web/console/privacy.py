"""Privacy: what is held about a person, handed out, forgotten, and looked for afterwards."""

from __future__ import annotations

import orjson
from starlette.responses import Response

from web.api import known, path
from web.console.outcomes import found_or_none, with_query
from web.visits import ADMIN, Form, Visit, action, page

HERE = "/console/privacy"


async def show(visit: Visit) -> Response:
    user = visit.query("user")
    if user is None:
        return visit.page("console/privacy.html", user=None, pseudonym=None, forgetting=None)
    pseudonym = known(await found_or_none(visit, path("/users/{}/pseudonym", user)))
    forgetting = known(await found_or_none(visit, path("/users/{}/forgetting", user)))
    return visit.page("console/privacy.html", user=user, pseudonym=pseudonym, forgetting=forgetting)


async def show_progress(visit: Visit) -> Response:
    user = visit.query("user") or ""
    forgetting = known(await found_or_none(visit, path("/users/{}/forgetting", user)))
    return visit.page("console/privacy_progress.html", user=user, forgetting=forgetting)


async def certify(visit: Visit) -> Response:
    user = visit.query("user") or ""
    found = known(await visit.api.get(path("/users/{}/certificate", user)))
    return visit.page("console/privacy_certificate.html", found=found)


async def export(visit: Visit) -> Response:
    """Give all that is held about a user as a file."""
    user = visit.query("user") or ""
    answer = await visit.api.answer("GET", path("/users/{}/export", user))
    name = 'attachment; filename="personal-data.json"'
    body = orjson.dumps(orjson.loads(answer.content), option=orjson.OPT_INDENT_2)
    return Response(body, media_type="application/json", headers={"Content-Disposition": name})


async def forget(visit: Visit, form: Form) -> Response:
    """Forget a user whose id was typed twice; what becomes of the videos is a choice."""
    user, again = form.get("user", ""), form.get("again", "")
    where = with_query(HERE, user=user)
    if user != again:
        return visit.leave(where, "Nothing was done: type the user id again, exactly.", bad=True)
    await visit.api.delete(path("/users/{}", user), videos=form.get("videos") or None)
    return visit.leave(where, "It has begun. Nothing brings back what is forgotten.")


ROUTES = [
    page(HERE, show, ADMIN),
    page(f"{HERE}/progress", show_progress, ADMIN),
    page(f"{HERE}/certificate", certify, ADMIN),
    page(f"{HERE}/export", export, ADMIN),
    action(f"{HERE}/forget", forget, ADMIN),
]

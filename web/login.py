"""Login and logout: by a token, or by the link that `backlot up` and `backlot login` print."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from web.api import Api, ApiProblem
from web.sessions import SESSION, TokenTooLarge, keep, new_session, same_origin
from web.visits import ANYBODY, Form, Visit, action, answered, page

LARGE = "The token is too large for a cookie; ask its issuer for one with fewer claims."


def own_page(wanted: str | None) -> str:
    """Return a path of ours to go on to: never another site's address."""
    if wanted and wanted.startswith("/") and not wanted.startswith(("//", "/\\")):
        return wanted
    return "/"


async def enter(visit: Visit, token: str, wanted: str) -> Response:
    """Begin a session with a token that the API takes; raise ApiProblem where it does not."""
    told = await Api(visit.client, token).get("/users/me")
    response = RedirectResponse(wanted, 303)
    session = new_session(token, told["userId"], frozenset(told["roles"]))
    try:
        keep(response, session, visit.parts.box, secure=visit.parts.secure)
    except TokenTooLarge:
        raise ApiProblem(422, {"type": "invalid", "title": "Too large", "detail": LARGE}) from None
    return response


async def show_login(visit: Visit) -> Response:
    return visit.page("login.html", wanted=own_page(visit.query("next")), refused=None)


async def log_in(visit: Visit) -> Response:
    """Take the token of the form. Nobody is logged in yet, so only the origin is looked at."""
    form = await visit.form()
    wanted = own_page(form.get("next"))
    if not same_origin(visit.request):
        return visit.refuse(403, "Not from here", "Log in from the page itself.")
    try:
        return await enter(visit, form.get("token", "").strip(), wanted)
    except ApiProblem as problem:
        if problem.status != 401:
            raise
        return visit.page("login.html", 401, wanted=wanted, refused=problem.detail)


async def _log_in(request: Request) -> Response:
    return await answered(request, log_in)


async def follow_link(visit: Visit) -> Response:
    spend = visit.parts.spend_link
    token = None if spend is None else await spend(visit.asked("code"))
    if token is None:
        detail = "The link was used already or is too old. `backlot login` prints another one."
        return visit.page("login.html", 410, wanted="/", refused=detail)
    return await enter(visit, token, own_page(visit.query("next")))


async def log_out(visit: Visit, form: Form) -> Response:
    response = visit.leave("/login", "You are logged out.")
    response.delete_cookie(SESSION, path="/")
    return response


ROUTES = [
    page("/login", show_login),
    Route("/login", _log_in, methods=["POST"]),
    page("/login/link/{code}", follow_link),
    action("/logout", log_out, ANYBODY),
]

"""One request for a page: who asks, the APIs as they may use them, and the page as they see it.

A page is a function of a `Visit` under `page`, what changes something one under `action`; both say
who may come. They only decide what is shown: what counts is what the APIs allow.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlsplit

import httpx
import structlog
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from web.api import Api, ApiProblem, Connect
from web.sealed import Box
from web.sessions import FLASH, LoginSession, proves, same_origin, session_of, set_cookie
from web.templating import TEMPLATES

if TYPE_CHECKING:
    from web.oidc import OidcProvider

log = structlog.get_logger(__name__)

FLASH_SECONDS = 60
MOST_FORM_BYTES = 64 * 1024
ANYBODY: frozenset[str] = frozenset()
ADMIN = frozenset({"admin"})
AUDITORS = frozenset({"admin", "auditor"})
MODERATORS = frozenset({"admin", "moderator"})
OPERATORS = AUDITORS | MODERATORS

Form = Mapping[str, str]


@dataclass(frozen=True)
class WebParts:
    """What the pages run on."""

    connect: Connect
    box: Box
    secure: bool = False
    """Whether browsers reach us by HTTPS only: cookies are sent by nothing else then."""
    site: bool = True
    read_only: bool = False
    """Whether the console changes nothing, whatever its visitor might."""
    media: tuple[str, ...] = ()
    """Origins beside ours to which browsers send parts and from which they play films: S3."""
    spend_link: Callable[[str], Awaitable[str | None]] | None = None
    """Returns the token that a login link stands for, once; None where it stands for none."""
    provider: OidcProvider | None = None
    """Who else may say who somebody is."""
    public_url: str = ""
    """Where browsers reach the pages, without a slash at the end."""


class Visit:
    """A request for a page."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.parts: WebParts = request.app.state.web
        self.session: LoginSession | None = session_of(request, self.parts.box)
        self.client: httpx.AsyncClient = self.parts.connect(request)
        self.api = Api(self.client, self.session.token if self.session else None)
        self.anonymous = Api(self.client, None)

    @property
    def roles(self) -> frozenset[str]:
        return self.session.roles if self.session else frozenset()

    def may(self, roles: Collection[str]) -> bool:
        """Return whether the visitor has one of these roles, or any token where there are none."""
        return self.session is not None and (not roles or not self.roles.isdisjoint(roles))

    @property
    def is_fragment(self) -> bool:
        """Whether htmx asks, which puts the answer into a page that is there already."""
        return "hx-request" in self.request.headers

    def query(self, name: str) -> str | None:
        """Return a parameter of the page's URL; None where it is not there or empty."""
        return self.request.query_params.get(name) or None

    def asked(self, name: str) -> str:
        """Return a part of the page's path."""
        return str(self.request.path_params[name])

    def page(self, template: str, status: int = 200, **shown: Any) -> HTMLResponse:
        """Return a page; its template has `visit` and the names given here."""
        flash = self.parts.box.open(FLASH, self.request.cookies.get(FLASH, ""))
        shown |= {"visit": self, "flash": None if self.is_fragment else flash}
        response = HTMLResponse(TEMPLATES.get_template(template).render(shown), status)
        if shown["flash"]:
            response.delete_cookie(FLASH, path="/")
        return response

    def leave(self, where: str, told: str | None = None, *, bad: bool = False) -> Response:
        """Send the browser to another page of ours, which tells what was done."""
        if self.is_fragment:
            response = Response(status_code=204, headers={"HX-Redirect": where})
        else:
            response = RedirectResponse(where, 303)
        if told is not None:
            sealed = self.parts.box.seal(FLASH, {"text": told[:500], "bad": bad}, FLASH_SECONDS)
            set_cookie(response, FLASH, sealed, FLASH_SECONDS, secure=self.parts.secure)
        return response

    def back(self, otherwise: str) -> str:
        """Return the page of ours that the visitor comes from."""
        headers = self.request.headers
        came = urlsplit(headers.get("hx-current-url") or headers.get("referer", ""))
        if came.netloc != headers.get("host") or not came.path.startswith("/"):
            return otherwise
        return f"{came.path}?{came.query}" if came.query else came.path

    def to_login(self) -> Response:
        """Send the browser to the login, from where it comes back."""
        url = self.request.url
        wanted = f"{url.path}?{url.query}" if url.query else url.path
        if self.request.method != "GET":
            wanted = self.back("/")
        elif self.is_fragment:
            # A part of a page that stays open: the page itself is to come back.
            wanted = self.back(wanted)
        return self.leave(f"/login?next={quote(wanted, safe='/')}")

    def problem(self, problem: ApiProblem) -> Response:
        """Return the page that tells what an API did not give.

        Where it wants a token, or another one since this one is over: the login.
        """
        if problem.status == 401 and (self.session is not None or self.request.method == "POST"):
            return self.to_login()
        template = "problem_fragment.html" if self.is_fragment else "problem.html"
        return self.page(template, problem.status, problem=problem)

    def refuse(self, status: int, title: str, detail: str) -> Response:
        """Return the page that tells why not."""
        told = {"type": "forbidden", "title": title, "detail": detail}
        return self.problem(ApiProblem(status, told))

    async def form(self) -> Form:
        """Return the fields of the form that was sent; of several with one name the last."""
        body = b""
        async for chunk in self.request.stream():
            body += chunk
            if len(body) > MOST_FORM_BYTES:
                raise ApiProblem(413, {"title": "Too much", "detail": "The form is too large."})
        try:
            return dict(parse_qsl(body.decode("utf-8"), keep_blank_values=True))
        except ValueError as error:
            told = {"title": "Unreadable", "detail": "The form can't be read."}
            raise ApiProblem(400, told) from error

    async def aclose(self) -> None:
        await self.client.aclose()


Show = Callable[[Visit], Awaitable[Response]]
Act = Callable[[Visit, Form], Awaitable[Response]]


def page(path: str, show: Show, roles: frozenset[str] | None = None) -> Route:
    """Return the route of a page.

    `roles`: None lets everybody come, an empty set everybody with a token.
    """

    async def answer(request: Request) -> Response:
        async def shown(visit: Visit) -> Response:
            return _refusal(visit, roles) or await show(visit)

        return await answered(request, shown)

    return Route(path, answer, methods=["GET"], name=f"{show.__module__}.{show.__name__}")


def action(path: str, act: Act, roles: frozenset[str] | None = ANYBODY) -> Route:
    """Return the route of what a form does: POST, from one of our pages only.

    `roles` are as those of a page: None lets whoever has no token do what the API lets them.
    Where it succeeds it returns `visit.leave(…)`, or with htmx a fragment.
    """

    async def answer(request: Request) -> Response:
        async def done(visit: Visit) -> Response:
            form = await visit.form()
            if (refusal := _refusal(visit, roles)) is not None:
                return refusal
            nobody = roles is None and visit.session is None
            if not (same_origin(request) if nobody else proves(visit.session, request, form)):
                detail = "The form is not one of this page's; load the page again."
                return visit.refuse(403, "Not from here", detail)
            if visit.parts.read_only and path.startswith("/console"):
                detail = "The console is set to read-only (WEB_READ_ONLY)."
                return visit.refuse(403, "Read-only", detail)
            return await act(visit, form)

        return await answered(request, done)

    return Route(path, answer, methods=["POST"], name=f"{act.__module__}.{act.__name__}")


async def answered(request: Request, show: Show) -> Response:
    """Return what is shown for a request, or what tells why it can't be."""
    visit = Visit(request)
    try:
        return await show(visit)
    except ApiProblem as problem:
        return visit.problem(problem)
    except Exception:
        log.exception("page_broke", path=request.url.path)
        detail = "This is our fault and has been logged; please try again."
        return visit.problem(ApiProblem(500, {"title": "Something went wrong", "detail": detail}))
    finally:
        await visit.aclose()


def _refusal(visit: Visit, roles: frozenset[str] | None) -> Response | None:
    if roles is None or visit.may(roles):
        return None
    if visit.session is None:
        return visit.to_login()
    detail = f"This page is for {' and '.join(sorted(roles))}; you have another role."
    return visit.refuse(403, "Not allowed", detail)

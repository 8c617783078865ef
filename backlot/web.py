"""The pages of one process: which APIs they call, and the links that log somebody in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from secrets import token_urlsafe
from typing import Any
from urllib.parse import urlsplit

import httpx
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.types import ASGIApp

from backlot.health import Readiness, operations
from infra.http.app import HttpApp
from infra.http.auth import Authenticator, mint_token
from infra.http.keys import OneKey
from infra.http.requests import Proxies
from infra.metrics import own_page
from infra.settings import SERVING, Role, Settings
from web.api import TIMEOUT_SECONDS, Connect
from web.app import has_page, make_web_app
from web.oidc import OidcProvider
from web.sealed import Box
from web.sessions import LONGEST_SECONDS
from web.visits import WebParts
from workers.parts import Parts

LINK = "login link"
LINK_SECONDS = 600
SPENT = "web:link:"
OF_OPERATORS = "/console"

Spend = Callable[[str], Awaitable[str | None]]


def web_secret(settings: Settings, local: str) -> str:
    """Return what sessions are sealed with: WEB_SESSION_SECRET, or this installation's secret."""
    given = settings.web.session_secret
    return local if given is None else given.get_secret_value()


def show_pages(
    parts: Parts, whole: HttpApp, public: HttpApp | None = None, apart: HttpApp | None = None
) -> None:
    """Show the pages where the role is; the console at ADMIN_PORT alone, where there is one."""
    settings = parts.settings
    if Role.WEB not in settings.server.roles:
        return
    spend = _spend_link(settings, parts.secret, parts.redis)
    pages = web_app(settings, parts.secret, _connect(settings, whole), spend)
    if public is None or apart is None:
        whole.show_pages(pages, has_page)
        return
    _show_apart(pages, public, apart)


def web_app(settings: Settings, local: str, connect: Connect, spend_link: Spend | None) -> ASGIApp:
    """Return the application of the pages, on these APIs."""
    given, oidc = settings.web, None
    if given.oidc_issuer is not None and given.oidc_client_id is not None:
        secret = given.oidc_client_secret
        oidc = OidcProvider(
            given.oidc_issuer,
            given.oidc_client_id,
            None if secret is None else secret.get_secret_value(),
            given.oidc_scopes,
            given.oidc_token,
        )
    return make_web_app(
        WebParts(
            connect=connect,
            box=Box(web_secret(settings, local)),
            secure=settings.server.public_url.startswith("https://"),
            site=given.site == "on",
            read_only=given.read_only,
            media=_media(settings),
            spend_link=spend_link,
            provider=oidc,
            public_url=settings.server.public_url,
        )
    )


def pages_alone(
    settings: Settings, local: Callable[[], str]
) -> tuple[ASGIApp, Callable[[], Awaitable[Readiness]]]:
    """Return the pages of a process that has nothing else, and what asks whether they are ready.

    `local` returns this installation's secret, for where WEB_SESSION_SECRET is not set.
    """
    apis = FirstThatKnows.of(settings)

    async def ask() -> Readiness:
        try:
            async with httpx.AsyncClient(transport=apis, timeout=2) as client:
                answer = await client.get("http://api/healthz")
            told: dict[str, Any] = {"ok": answer.is_success, "status": answer.status_code}
        except httpx.TransportError as error:
            told = {"ok": False, "error": str(error)}
        return Readiness(ready=told["ok"], parts={"api": told})

    secret = local() if settings.web.session_secret is None else ""
    pages = web_app(settings, secret, partial(_outside, apis), None)
    public, port = _empty(settings, ask), settings.server.admin_port
    if port is None:
        public.show_pages(pages, has_page)
        return public, ask
    apart = _empty(settings, ask)
    public.serve_apart(port, apart)
    _show_apart(pages, public, apart)
    return public, ask


def _empty(settings: Settings, ask: Callable[[], Awaitable[Readiness]]) -> HttpApp:
    """Return an application of no API: only how the process is."""
    app = HttpApp(
        title="Backlot pages",
        version=version("backlot"),
        # Nobody calls anything here with a token.
        authenticator=Authenticator(OneKey(token_urlsafe(48), ("HS256",))),
        body_limit=settings.server.body_limit_bytes,
        translate={},
        proxies=Proxies(settings.server.trusted_proxies),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.router.routes.extend(operations(ask, own_page).routes)
    return app


def _show_apart(pages: ASGIApp, public: HttpApp, apart: HttpApp) -> None:
    """Show the console at one port, and the rest at the other."""
    public.show_pages(pages, lambda path: has_page(path, OF_OPERATORS))
    apart.show_pages(pages, lambda path: has_page(path, "/studio", "/watch"))


def _connect(settings: Settings, whole: HttpApp) -> Connect:
    if settings.server.roles >= SERVING and not settings.web.api_urls:
        return partial(_inside, settings.server.local_url, whole)
    return partial(_outside, FirstThatKnows.of(settings))


class FirstThatKnows(httpx.AsyncBaseTransport):
    """Asks one API after the other, until one has the route: 404 and 405 say that it has not.

    Where commands, queries, and the ports of their operators are apart, each has a part of the
    routes; nothing is done by one that does not have it.
    """

    def __init__(
        self, urls: Sequence[str], transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._urls = [httpx.URL(url) for url in urls]
        self._transport = transport or httpx.AsyncHTTPTransport(retries=1)

    @classmethod
    def of(cls, settings: Settings) -> FirstThatKnows:
        """Return what asks WEB_API_URLS, else the public address."""
        return cls(settings.web.api_urls or (settings.server.public_url,))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path, first, *others = request.url.raw_path, *self._urls
        answer = await self._ask(first, path, request)
        for url in others:
            if answer.status_code not in (404, 405):
                break
            await answer.aclose()
            answer = await self._ask(url, path, request)
        return answer

    async def _ask(self, url: httpx.URL, path: bytes, request: httpx.Request) -> httpx.Response:
        request.url = url.copy_with(raw_path=url.raw_path.rstrip(b"/") + path)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Stay open: all visitors share the connections."""


def _inside(base_url: str, app: HttpApp, request: Request) -> httpx.AsyncClient:
    """Open the APIs of this process, for who sends a request."""
    client = request.client
    transport = httpx.ASGITransport(
        app, raise_app_exceptions=False, client=(client.host if client else "127.0.0.1", 0)
    )
    headers = {"Host": request.headers.get("host", "")}
    return httpx.AsyncClient(
        transport=transport, base_url=base_url, headers=headers, trust_env=False
    )


def _outside(transport: httpx.AsyncBaseTransport, request: Request) -> httpx.AsyncClient:
    """Open the APIs of other processes, for who sends a request."""
    headers = {"Host": request.headers.get("host", "")}
    if request.client is not None:
        headers["X-Forwarded-For"] = request.client.host
    return httpx.AsyncClient(
        transport=transport, base_url="http://api", headers=headers, timeout=TIMEOUT_SECONDS
    )


def _media(settings: Settings) -> tuple[str, ...]:
    """Return the origin of the objects, where that is another one than ours."""
    objects = settings.objects
    url = objects.public_endpoint_url or objects.endpoint_url
    if objects.bucket is None or url is None:
        return ()
    parts = urlsplit(str(url))
    return (f"{parts.scheme}://{parts.netloc}",)


def login_link(
    settings: Settings, local: str, user: str, roles: Sequence[str], *, page: str = "/"
) -> str:
    """Return a URL that logs its first user in, once within ten minutes."""
    told: dict[str, Any] = {"id": token_urlsafe(12), "user": user, "roles": roles}
    code = Box(web_secret(settings, local)).seal(LINK, told, LINK_SECONDS)
    return f"{settings.server.public_url}/login/link/{code}?next={page}"


def operators_link(settings: Settings, local: str) -> str | None:
    """Return the link for whoever started this, as an operator.

    None where there are no pages, or tokens come from elsewhere.
    """
    if Role.WEB not in settings.server.roles or not settings.auth.local:
        return None
    return login_link(settings, local, "operator", ("admin",), page=OF_OPERATORS)


def _spend_link(settings: Settings, local: str, redis: Redis) -> Spend | None:
    auth, box = settings.auth, Box(web_secret(settings, local))
    if auth.secret is None and not auth.local:
        return None
    secret = local if auth.secret is None else auth.secret.get_secret_value()

    async def spend(code: str) -> str | None:
        told = box.open(LINK, code)
        if told is None or not await redis.set(SPENT + told["id"], 1, nx=True, ex=LINK_SECONDS):
            return None
        lifetime = min(auth.max_lifetime, timedelta(seconds=LONGEST_SECONDS))
        return mint_token(
            secret,
            told["user"],
            told["roles"],
            lifetime,
            issuer=auth.issuer,
            audience=auth.audience,
        )

    return spend

"""The pages of one process: which APIs they call, and the links that log somebody in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from secrets import token_urlsafe
from typing import Any
from urllib.parse import urlsplit

import httpx
from redis.asyncio import Redis
from starlette.requests import Request

from infra.http.app import HttpApp
from infra.http.auth import mint_token
from infra.settings import SERVING, Role, Settings
from web.api import TIMEOUT_SECONDS
from web.app import has_page, make_web_app
from web.sealed import Box
from web.sessions import LONGEST_SECONDS
from web.visits import WebParts
from workers.parts import Parts

LINK = "login link"
LINK_SECONDS = 600
SPENT = "web:link:"
OF_OPERATORS = "/console"


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
    pages = make_web_app(
        WebParts(
            connect=_connect(settings, whole),
            box=Box(web_secret(settings, parts.secret)),
            secure=settings.server.public_url.startswith("https://"),
            site=settings.web.site == "on",
            read_only=settings.web.read_only,
            media=_media(settings),
            spend_link=_spend_link(settings, parts.secret, parts.redis),
        )
    )
    if public is None or apart is None:
        whole.show_pages(pages, has_page)
        return
    public.show_pages(pages, lambda path: has_page(path, OF_OPERATORS))
    apart.show_pages(pages, lambda path: has_page(path, "/studio", "/watch"))


def _connect(settings: Settings, whole: HttpApp) -> Callable[[Request], httpx.AsyncClient]:
    if settings.server.roles >= SERVING and settings.web.api_url is None:
        return partial(_inside, settings.server.local_url, whole)
    return partial(_outside, settings.web.api_url or settings.server.public_url)


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


def _outside(base_url: str, request: Request) -> httpx.AsyncClient:
    """Open the APIs of other processes, for who sends a request."""
    headers = {"X-Forwarded-For": request.client.host} if request.client else {}
    return httpx.AsyncClient(
        base_url=base_url, headers=headers, timeout=TIMEOUT_SECONDS, trust_env=False
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
    settings: Settings, local: str, user: str, roles: tuple[str, ...], *, page: str = "/"
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


def _spend_link(
    settings: Settings, local: str, redis: Redis
) -> Callable[[str], Awaitable[str | None]] | None:
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

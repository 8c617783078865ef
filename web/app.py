"""The application of all pages: its routes, its files, and the headers that each answer has."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web import console, login, oidc, site, studio
from web.templating import STATIC
from web.visits import Visit, WebParts, answered

OWN_PATHS = ("/console", "/studio", "/watch", "/login", "/logout", "/static")
"""Where pages are, beside `/` itself; the APIs have the others."""

ONE_YEAR = "public, max-age=31536000, immutable"


def has_page(path: str, *but: str) -> bool:
    """Return whether a path is one of the pages', but of these parts, and not one of the APIs'."""
    own = (each for each in OWN_PATHS if each not in but)
    return path == "/" or any(path == each or path.startswith(f"{each}/") for each in own)


def make_web_app(parts: WebParts) -> Starlette:
    """Return the application of the console, the studio and, where it is on, the site."""
    routes: list[BaseRoute] = [
        Mount("/static", StaticFiles(directory=STATIC), name="static"),
        *login.ROUTES,
        *oidc.ROUTES,
        *console.ROUTES,
        *studio.ROUTES,
        *(site.ROUTES if parts.site else site.OFF),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _unknown})
    app.state.web = parts
    app.add_middleware(SecurityHeaders, media=parts.media)
    return app


def policy(media: Sequence[str]) -> str:
    """Return the content security policy: nothing inline, nothing from elsewhere but films."""
    films = " ".join(("'self'", *media))
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            f"media-src {films} blob:",
            f"connect-src {films}",
            "font-src 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        )
    )


class SecurityHeaders:
    """Gives each answer the headers that keep others out of our pages."""

    def __init__(self, app: ASGIApp, media: Sequence[str]) -> None:
        self._app = app
        self._fixed = {
            "content-security-policy": policy(media),
            "x-content-type-options": "nosniff",
            "referrer-policy": "same-origin",
            "cross-origin-opener-policy": "same-origin",
            "permissions-policy": "camera=(), microphone=(), geolocation=()",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_file = scope["type"] == "http" and scope["path"].startswith("/static/")

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self._fixed)
                versioned = is_file and b"v=" in scope["query_string"]
                headers.setdefault("cache-control", ONE_YEAR if versioned else "no-store")
            await send(message)

        await self._app(scope, receive, stamped)


async def _unknown(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    told = {404: ("No such page", "There is nothing at this address.")}
    title, detail = told.get(status, ("Not possible", str(error)))

    async def tell(visit: Visit) -> Response:
        return visit.refuse(status, title, detail)

    return await answered(request, tell)

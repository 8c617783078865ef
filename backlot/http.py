"""The HTTP application of one process: the routes of its roles, and which port each is at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.staticfiles import StaticFiles

from backlot import problems
from backlot.features import FEATURES
from backlot.health import operations
from infra.http.app import HttpApp
from infra.http.auth import required_roles
from infra.http.problems import Make
from infra.http.requests import Hosts, Proxies
from infra.objects.folder import FolderStore
from infra.objects.routes import object_router, part_router
from infra.settings import Role
from workers.parts import Parts

Lifespan = Callable[[HttpApp], AbstractAsyncContextManager[None]]

STATIC = "/docs/static"
ON_BOTH_PORTS = frozenset({"/healthz", "/readyz"})
OF_OPERATORS = frozenset({"admin", "auditor"})


def applications(parts: Parts, lifespan: Lifespan) -> HttpApp:
    """Return the application with the routes of the roles that this process has.

    With ADMIN_PORT, another one answers at that port with what is for operators, and the one that
    is returned has only the rest.
    """
    routes, port = _routes(parts), parts.settings.server.admin_port
    make = partial(_application, parts, lifespan)
    if port is None:
        return make(routes)
    public = make([route for route in routes if not is_apart(route)])
    apart = [route for route in routes if is_apart(route) or _path(route) in ON_BOTH_PORTS]
    public.serve_apart(port, make(apart))
    return public


def is_apart(route: BaseRoute) -> bool:
    """Return whether a route moves to ADMIN_PORT where there is one.

    Those that only operators and auditors may call, and the metrics, which need no token.
    """
    if _path(route) == "/metrics":
        return True
    roles = required_roles(route) if isinstance(route, APIRoute) else frozenset()
    return bool(roles) and roles <= OF_OPERATORS


def _path(route: BaseRoute) -> str:
    return str(getattr(route, "path", ""))


def _routes(parts: Parts) -> list[BaseRoute]:
    roles = parts.settings.server.roles
    routers: list[APIRouter] = []
    # Commands first: routes are tried in order, and likes come most.
    if Role.COMMANDS in roles:
        routers += (router for feature in FEATURES for router in feature.commands)
    if Role.QUERIES in roles:
        routers += (router for feature in FEATURES for router in feature.queries)
    if isinstance(parts.objects, FolderStore):
        # Clients move bytes through this process; else they talk to S3 itself.
        moving = {Role.COMMANDS: part_router, Role.QUERIES: object_router}
        routers += (router(parts.objects) for role, router in moving.items() if role in roles)
    return [route for router in [*routers, operations(parts)] for route in router.routes]


def _application(parts: Parts, lifespan: Lifespan, routes: Iterable[BaseRoute]) -> HttpApp:
    server = parts.settings.server
    roles, admin = server.roles, server.admin_host or server.host
    translate: dict[type[Exception], Make] = {}
    if Role.COMMANDS in roles:
        translate |= problems.OF_COMMANDS
    if Role.QUERIES in roles:
        translate |= problems.OF_QUERIES
    app = HttpApp(
        title="Backlot",
        authenticator=parts.authenticator,
        body_limit=server.body_limit_bytes,
        translate=translate,
        unlimited=("/objects/",),
        proxies=Proxies(server.trusted_proxies),
        hosts=Hosts([server.host, admin]) if server.configured_public_url is None else None,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    # Not `include_router`: it nests, and each level is searched again for every request.
    app.router.routes.extend(routes)
    _mount_docs(app)
    return app


def _mount_docs(app: FastAPI) -> None:
    """Serve `/docs`; the document itself is at `/openapi.json`."""
    app.mount(STATIC, StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-static")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=f"{app.title} API",
            swagger_js_url=f"{STATIC}/swagger-ui-bundle.js",
            swagger_css_url=f"{STATIC}/swagger-ui.css",
            swagger_favicon_url=f"{STATIC}/favicon.png",
        )

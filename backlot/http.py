"""The HTTP application of one process: the routes of its roles, each at its port, and its refusals.

A refusal or failure of the parts below becomes an answer here, of the commands and of the queries.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import psycopg
import structlog
from eventsourcing.persistence import MapperDeserialisationError, PersistenceError
from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.staticfiles import StaticFiles

from backlot.features import FEATURES
from backlot.health import check, operations
from backlot.overview import router as overview
from backlot.web import show_pages
from commands.comments import AuthorBlocked, CommentsClosed
from commands.uploads import UploadFinalizing
from domain.errors import Conflict, DomainError, Forgotten, Invalid, NotAllowed, NotFound
from engine.checkpoints import ReadModelBehind
from engine.command_bus import Contended, KeyReused
from engine.reservations import QuotaExceeded
from engine.wrapping_keys import KeyDamaged
from infra.batcher import NotBegun, QueueFull
from infra.http.app import HttpApp
from infra.http.auth import required_roles
from infra.http.cors import CrossOrigin
from infra.http.openapi import document
from infra.http.problems import Make, Problem, ProblemType
from infra.http.requests import Hosts, Proxies
from infra.http.shapes import InvalidPosition, encode_position
from infra.key_encryption import KeyEncryptionFailed
from infra.metric_pages import PageUnavailable
from infra.objects.folder import MIN_SECRET_BYTES, FolderStore
from infra.objects.port import NoSuchUpload, ObjectStore, ObjectStoreUnavailable, PartMismatch
from infra.objects.routes import object_router, part_router
from infra.redlock import LocksUnavailable
from infra.settings import SERVING, Role
from projections.analytics.periods import UnfitPeriod
from projections.analytics.queries import AnalyticsUnavailable, TooManyPoints
from readapi.audit.inspector import NotRecorded
from readapi.pages import InvalidCursor
from readapi.queries import ReadModelUnavailable
from workers.parts import Parts

log = structlog.get_logger(__name__)

Lifespan = Callable[[HttpApp], AbstractAsyncContextManager[None]]

STATIC = "/docs/static"
ON_BOTH_PORTS = frozenset({"/healthz", "/readyz"})
OF_OPERATORS = frozenset({"admin", "auditor"})
UNKNOWN = (
    "The event store does not answer; whether the command was recorded is not known. "
    "Send it again with the same Idempotency-Key."
)
NOTHING_RECORDED = "The event store does not answer; nothing was recorded. Send it again."
UNREADABLE = "What is stored here can't be read by this release; an operator has to look at it."
NO_LOCKS = "The lock service does not answer; nothing was changed. Try again later."
NO_KEYS = "What is stored can't be decrypted now; an operator has to look at the keys."
NO_READ_MODELS = "The database of the read models does not answer; try again soon."
NO_SUM = "The process that adds up the metrics of all does not answer; try again soon."
NO_ANALYTICS = "The database of the analytics does not answer; try again soon."


def _refusal(
    status: int,
    slug: ProblemType,
    detail: str | None = None,
    *,
    retry: int = 0,
    logged: bool = False,
) -> Make:
    """Return what makes this problem of an error, in the error's words unless `detail` is given.

    `retry` is after how many seconds the client may try again; 0 says nothing of that.
    """
    headers = {"Retry-After": str(retry)} if retry else {}

    def make(error: Exception) -> Problem:
        if logged:
            log.warning(slug.replace("-", "_"), error=str(error))
        state = error.state if isinstance(error, DomainError) else {}
        return Problem(status, slug, detail or str(error), headers=headers, **state)

    return make


def _unreadable(error: MapperDeserialisationError) -> Problem:
    log.error("stream_unreadable", error=str(error))
    return Problem(503, "stream-unreadable", UNREADABLE)


def _part_mismatch(error: PartMismatch) -> Problem:
    missing, wrong = list(error.missing), list(error.wrong)
    return Problem(422, "parts-mismatch", str(error), missing=missing, wrong=wrong)


def _behind(error: ReadModelBehind) -> Problem:
    events, telemetry = (max(numbers) for numbers in zip(*error.wanted.values(), strict=True))
    return Problem(
        503,
        "read-model-behind",
        str(error),
        headers={"Retry-After": "1"},
        wanted=encode_position(events, telemetry),
        positions={name: encode_position(*at) for name, at in error.positions.items()},
    )


def _over_quota(error: QuotaExceeded) -> Problem:
    headers = {
        "Retry-After": str(error.seconds),
        "RateLimit-Policy": f'"{error.quota}";q={error.most}',
        "RateLimit": f'"{error.quota}";r=0;t={error.seconds}',
    }
    return Problem(429, "quota-exceeded", str(error), headers=headers)


_no_sum = _refusal(503, "unavailable", NO_SUM, retry=1, logged=True)
_store_away = _refusal(503, "store-unavailable", UNKNOWN, retry=1)
_keys_away = _refusal(503, "keys-unavailable", NO_KEYS, retry=5, logged=True)
_objects_away = _refusal(503, "object-store-unavailable", retry=5)

OF_COMMANDS: Mapping[type[Exception], Make] = MappingProxyType(
    {
        NotFound: _refusal(404, "not-found"),
        NotAllowed: _refusal(403, "forbidden"),
        Forgotten: _refusal(410, "forgotten"),
        AuthorBlocked: _refusal(403, "blocked"),
        Conflict: _refusal(409, "conflict"),
        CommentsClosed: _refusal(409, "comments-closed"),
        Contended: _refusal(409, "contended"),
        UploadFinalizing: _refusal(409, "upload-finalizing", retry=2),
        KeyReused: _refusal(409, "idempotency-key-reused"),
        Invalid: _refusal(422, "invalid"),
        QuotaExceeded: _over_quota,
        QueueFull: _refusal(503, "overloaded", "Too many commands wait; try again soon.", retry=1),
        NotBegun: _refusal(503, "store-unavailable", NOTHING_RECORDED, retry=1),
        PersistenceError: _store_away,
        MapperDeserialisationError: _unreadable,
        psycopg.Error: _store_away,
        KeyEncryptionFailed: _keys_away,
        KeyDamaged: _keys_away,
        PartMismatch: _part_mismatch,
        NoSuchUpload: _refusal(409, "upload-gone"),
        LocksUnavailable: _refusal(503, "locks-unavailable", NO_LOCKS, retry=5),
        ObjectStoreUnavailable: _objects_away,
    }
)


def _unfit(error: Exception) -> Problem:
    field = error.field if isinstance(error, UnfitPeriod) else None
    return Problem(422, "invalid", str(error), field=field)


OF_QUERIES: Mapping[type[Exception], Make] = MappingProxyType(
    {
        ReadModelBehind: _behind,
        ReadModelUnavailable: _refusal(
            503, "read-model-unavailable", NO_READ_MODELS, retry=1, logged=True
        ),
        AnalyticsUnavailable: _refusal(
            503, "analytics-unavailable", NO_ANALYTICS, retry=1, logged=True
        ),
        KeyEncryptionFailed: _keys_away,
        KeyDamaged: _keys_away,
        TooManyPoints: lambda error: Problem(422, "invalid", str(error), field="bucket"),
        UnfitPeriod: _unfit,
        InvalidPosition: _refusal(422, "position-invalid"),
        NotRecorded: _refusal(404, "not-found"),
        InvalidCursor: _refusal(422, "cursor-invalid"),
        ObjectStoreUnavailable: _objects_away,
    }
)


def applications(parts: Parts, lifespan: Lifespan) -> HttpApp:
    """Return the application with the routes of the roles that this process has.

    With ADMIN_PORT, another one answers at that port with what is for operators, and the one that
    is returned has only the rest.
    """
    server = parts.settings.server
    of_operators = operations(partial(check, parts), parts.page)
    routes, port = _routes(server.roles, parts.objects, of_operators), server.admin_port
    make, title = partial(_application, parts, lifespan), _title(server.roles)
    public = make(title, [route for route in routes if port is None or not is_apart(route)])
    if (cors := parts.settings.cors).origins:
        public.cross_origin = CrossOrigin(cors.origins, credentials=cors.credentials)
    if port is None:
        show_pages(parts, public)
        return public
    apart = make(
        f"{title}, for operators",
        [route for route in routes if is_apart(route) or _path(route) in ON_BOTH_PORTS],
    )
    public.serve_apart(port, apart)
    # The pages ask for both.
    whole = make(title, routes)
    whole.state = public.state
    show_pages(parts, whole, public, apart)
    return public


class ApiPart(StrEnum):
    """A document of its own: that of the commands, that of the queries, that of both."""

    ALL = "all"
    COMMANDS = "commands"
    QUERIES = "queries"

    @property
    def roles(self) -> frozenset[Role]:
        """The roles of a process that serves it."""
        return SERVING if self is ApiPart.ALL else frozenset({Role(self)})


TITLES = {
    ApiPart.ALL.roles: "Backlot",
    ApiPart.COMMANDS.roles: "Backlot commands",
    ApiPart.QUERIES.roles: "Backlot queries",
}


def _title(roles: Collection[Role]) -> str:
    """Return what the API is called that a process with these roles serves."""
    return TITLES.get(SERVING.intersection(roles), "Backlot operations")


def describe(api: ApiPart) -> dict[str, Any]:
    """Return the OpenAPI document of an API, as a process with a folder of objects serves it."""
    folder = FolderStore(Path(), bytes(MIN_SECRET_BYTES), timedelta(0), lambda: datetime.now(UTC))
    routes = _routes(api.roles, folder, operations(_unasked, _unasked))
    return document(_title(api.roles), version("backlot"), routes)


async def _unasked() -> NoReturn:
    """Stand in for what answers, where nobody asks."""
    raise NotImplementedError


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


def _routes(
    roles: Collection[Role], objects: ObjectStore, of_operators: APIRouter
) -> list[BaseRoute]:
    routers: list[APIRouter] = []
    # Commands first: routes are tried in order, and likes come most.
    if Role.COMMANDS in roles:
        routers += (router for feature in FEATURES for router in feature.commands)
    if Role.QUERIES in roles:
        routers += (router for feature in FEATURES for router in feature.queries)
        routers.append(overview)
    if isinstance(objects, FolderStore):
        # Clients move bytes through this process; else they talk to S3 itself.
        moving = {Role.COMMANDS: part_router, Role.QUERIES: object_router}
        routers += (router(objects) for role, router in moving.items() if role in roles)
    return [route for router in [*routers, of_operators] for route in router.routes]


def _application(
    parts: Parts, lifespan: Lifespan, title: str, routes: Iterable[BaseRoute]
) -> HttpApp:
    server = parts.settings.server
    roles, admin = server.roles, server.admin_host or server.host
    translate: dict[type[Exception], Make] = {PageUnavailable: _no_sum}
    if Role.COMMANDS in roles:
        translate |= OF_COMMANDS
    if Role.QUERIES in roles:
        translate |= OF_QUERIES
    app = HttpApp(
        title=title,
        version=version("backlot"),
        authenticator=parts.authenticator,
        body_limit=server.body_limit_bytes,
        translate=translate,
        unlimited=("/objects/", "/tus/"),
        overridden=("/tus/",),
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

"""The application that both APIs are made of: its edge, its answers, and its callers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

import structlog
from fastapi import Depends, FastAPI, Request, Response

from infra.http.auth import Authenticator, Identity, InvalidToken, KeysUnavailable
from infra.http.edge import DirectRoute, Edge, EdgedApp, add_header, client_address, header, hot
from infra.http.problems import (
    FRAMEWORK,
    TITLES,
    Make,
    Problem,
    ProblemDetails,
    explain,
    problem_response,
    problems,
    request_id_of,
)
from infra.http.shapes import Wire

log = structlog.get_logger(__name__)

__all__ = [
    "TITLES",
    "TOKEN_OPTIONAL",
    "Admin",
    "Auditor",
    "Caller",
    "DirectRoute",
    "MaybeCaller",
    "Problem",
    "add_header",
    "client_address",
    "create_app",
    "header",
    "hot",
    "maybe_identity",
    "problems",
    "request_id_of",
    "require_identity",
    "wire",
]

TOKEN_OPTIONAL: dict[str, Any] = {"security": [{}, {"bearer": []}]}
"""`openapi_extra=` of a public call that tells a known caller more."""


class JsonResponse(Response):
    """An answer whose body is JSON already; made without what other answers may need."""

    def __init__(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()),
        ]


def wire(body: Wire, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response made straight from a contract shape."""
    return JsonResponse(body.to_json(), status, headers or {})


def create_app(
    *,
    title: str,
    authenticator: Authenticator,
    body_limit: int,
    translate: Mapping[type[Exception], Make],
    unlimited: tuple[str, ...] = (),
    **options: Any,
) -> FastAPI:
    """Return a FastAPI application behind the edge. `translate` maps exceptions to problems.

    `unlimited` are path prefixes whose bodies are streamed and limit themselves.
    """
    handlers = {**FRAMEWORK, **translate}
    edge = Edge(body_limit=body_limit, translate=handlers, unlimited=unlimited)
    app = EdgedApp(edge, title=title, **options)
    app.state.authenticator = authenticator

    def handler(make: Make) -> Callable[[Request, Any], Awaitable[Response]]:
        async def handle(request: Request, error: Any) -> Response:
            problem = request.scope.get("problem") or explain(make(error), request, error)
            return problem_response(request.scope, problem)

        return handle

    for kind, make in handlers.items():
        app.add_exception_handler(kind, handler(make))
    app.openapi = _document(app)  # type: ignore[method-assign]
    return app


async def maybe_identity(request: Request) -> Identity | None:
    """Return who calls, or None without a token; a token that proves nothing is refused (401)."""
    given = header(request.scope, b"authorization")
    if given is None:
        return None
    scheme, _, token = given.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise _unauthenticated("Send `Authorization: Bearer <token>`.")
    return await _verify(request.app.state.authenticator, token.strip())


async def require_identity(request: Request) -> Identity:
    """Return who calls; 401 without a token."""
    identity = await maybe_identity(request)
    if identity is None:
        raise _unauthenticated("This call needs a token: `Authorization: Bearer <token>`.")
    return identity


async def require_admin(request: Request) -> Identity:
    """Return an operator; 403 for everybody else."""
    identity = await require_identity(request)
    if not identity.is_admin:
        raise Problem(403, "forbidden", "This call needs the role `admin`.")
    return identity


async def require_auditor(request: Request) -> Identity:
    """Return an auditor or an operator, who may look into the event log; 403 for anybody else."""
    identity = await require_identity(request)
    if not (identity.is_admin or "auditor" in identity.roles):
        raise Problem(403, "forbidden", "This call needs the role `auditor` or `admin`.")
    return identity


MaybeCaller = Annotated[Identity | None, Depends(maybe_identity)]
Caller = Annotated[Identity, Depends(require_identity)]
Admin = Annotated[Identity, Depends(require_admin)]
Auditor = Annotated[Identity, Depends(require_auditor)]


async def _verify(authenticator: Authenticator, token: str) -> Identity:
    known = authenticator.recall(token)
    if known is not None:
        return known
    try:
        if authenticator.may_block:
            return await asyncio.to_thread(authenticator.authenticate, token)
        return authenticator.authenticate(token)
    except InvalidToken as error:
        raise _unauthenticated(f"The token was refused: {error.reason}.") from error
    except KeysUnavailable as error:
        log.warning("key_server_unavailable", error=str(error))
        raise Problem(
            503, "unavailable", "Tokens can't be verified right now.", headers={"Retry-After": "5"}
        ) from error


def _unauthenticated(detail: str) -> Problem:
    return Problem(401, "unauthenticated", detail, headers={"WWW-Authenticate": "Bearer"})


def _document(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """OpenAPI with the problem shape, and the token wherever a call can answer 401."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        components = document.setdefault("components", {})
        components["securitySchemes"] = {
            "bearer": {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": "`backlot token --user alice` mints one for the local secret.",
            }
        }
        components.setdefault("schemas", {})["ProblemDetails"] = ProblemDetails.model_json_schema()
        for path in document.get("paths", {}).values():
            for operation in path.values():
                if "401" in operation.get("responses", {}):
                    operation.setdefault("security", [{"bearer": []}])
        return document

    return openapi

"""Who sends a request: its headers, its address, its token, and the roles that routes require."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import structlog
from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.types import Scope

from infra.http.addresses import Proxies
from infra.http.auth import Authenticator, Identity, InvalidToken
from infra.http.jwks import KeysUnavailable
from infra.http.problems import Problem
from infra.security_log import SecurityEvent, record

log = structlog.get_logger(__name__)

# What the edge keeps in a request's scope: its headers, those that its answer gets beside its own,
# and who sends it, or the problem of a token that proves nothing.
HEADERS = "backlot.headers"
ADDED = "backlot.added"
CALLER = "backlot.caller"
ROLES = "backlot_roles"


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header of the request by its name in lower case; of several the first one."""
    value: bytes | None = scope[HEADERS].get(name)
    return None if value is None else value.decode("latin-1")


def client_address(scope: Scope) -> str:
    """Return the address of the client, as trusted proxies tell it; '' on a socket file."""
    host, _ = scope.get("client") or ("", 0)
    proxies: Proxies = scope["app"].proxies
    if not proxies.any_trusted:
        return str(host)
    return proxies.client(str(host), scope[HEADERS].get(b"x-forwarded-for"))


def add_header(scope: Scope, name: bytes, value: str) -> None:
    """Have the answer carry a header, whatever it is; the first value of a name stays."""
    scope.setdefault(ADDED, {}).setdefault(name, value.encode("latin-1"))


async def maybe_identity(request: Request) -> Identity | None:
    """Return who calls, or None without a token; a token that proves nothing is refused (401)."""
    caller = await caller_of(request.scope)
    if isinstance(caller, Problem):
        raise caller
    return caller


def recalled(scope: Scope) -> Identity | None:
    """Return the caller of a token that was verified before; most requests end here."""
    given: bytes | None = scope[HEADERS].get(b"authorization")
    if given is None or not given.startswith(b"Bearer "):
        return None
    authenticator: Authenticator = scope["app"].state.authenticator
    if (identity := authenticator.recall(given[7:].strip().decode("latin-1"))) is not None:
        scope[CALLER] = identity
    return identity


async def caller_of(scope: Scope) -> Identity | Problem | None:
    """Return who calls, or the problem of a token that proves nothing; found out once."""
    if CALLER not in scope:
        try:
            scope[CALLER] = await _identify(scope)
        except Problem as refusal:
            scope[CALLER] = refusal
    caller: Identity | Problem | None = scope[CALLER]
    return caller


async def _identify(scope: Scope) -> Identity | None:
    given = header(scope, b"authorization")
    if given is None:
        return None
    scheme, _, token = given.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise _unauthenticated("Send `Authorization: Bearer <token>`.")
    try:
        return await _verify(scope["app"].state.authenticator, token.strip())
    except InvalidToken as error:
        record(SecurityEvent.TOKEN_REFUSED, client_address(scope), reason=error.reason)
        raise _unauthenticated(f"The token was refused: {error.reason}.") from error


async def require_identity(request: Request) -> Identity:
    """Return who calls; 401 without a token."""
    return require_known(await maybe_identity(request))


def require_known(identity: Identity | None) -> Identity:
    """Return who calls; 401 for nobody."""
    if identity is None:
        raise _unauthenticated("This call needs a token: `Authorization: Bearer <token>`.")
    return identity


def role_refused(request: Request, caller: Identity, detail: str) -> Problem:
    """Return the answer (403) to a caller without the role that is needed, and record it."""
    route = getattr(request.scope.get("route"), "path", "")
    roles = ", ".join(sorted(caller.roles))
    record(SecurityEvent.ROLE_REFUSED, caller.user_id, route=route, roles=roles)
    return Problem(403, "forbidden", detail)


def _require_role(*roles: str) -> Callable[[Request], Awaitable[Identity]]:
    """Return what gives a caller with one of these roles; 403 for everybody else."""
    needed = " or ".join(f"`{role}`" for role in roles)

    async def require(request: Request) -> Identity:
        identity = await require_identity(request)
        if identity.roles.isdisjoint(roles):
            raise role_refused(request, identity, f"This call needs the role {needed}.")
        return identity

    setattr(require, ROLES, frozenset(roles))
    return require


def required_roles(route: APIRoute) -> frozenset[str]:
    """Return the roles of which every caller of a route needs one; none where it takes others."""
    return _roles_of(route.dependant)


def _roles_of(dependant: Dependant) -> frozenset[str]:
    own: frozenset[str] = getattr(dependant.call, ROLES, frozenset())
    return own.union(*map(_roles_of, dependant.dependencies))


require_admin = _require_role("admin")
require_moderator = _require_role("moderator", "admin")
MaybeCaller = Annotated[Identity | None, Depends(maybe_identity)]
Caller = Annotated[Identity, Depends(require_identity)]
Admin = Annotated[Identity, Depends(require_admin)]
Moderator = Annotated[Identity, Depends(require_moderator)]
Auditor = Annotated[Identity, Depends(_require_role("auditor", "admin"))]
"""Who may look into the event log."""


async def _verify(authenticator: Authenticator, token: str) -> Identity:
    known = authenticator.recall(token)
    if known is not None:
        return known
    try:
        await authenticator.prepare(token)
        return authenticator.authenticate(token)
    except KeysUnavailable as error:
        log.warning("key_server_unavailable", error=str(error))
        raise Problem(
            503, "unavailable", "Tokens can't be verified right now.", headers={"Retry-After": "5"}
        ) from error


def _unauthenticated(detail: str) -> Problem:
    return Problem(401, "unauthenticated", detail, headers={"WWW-Authenticate": "Bearer"})

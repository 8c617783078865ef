"""Who sends a request: its address, its token, the roles that routes require, the host it names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Annotated
from urllib.parse import urlsplit

import structlog
from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.types import Scope

from infra.http.auth import Authenticator, Identity, InvalidToken
from infra.http.jwks import KeysUnavailable
from infra.http.problems import Problem
from infra.security_log import SecurityEvent, record

log = structlog.get_logger(__name__)

Network = IPv4Network | IPv6Network
REMEMBERED = 10_000
LONGEST_REMEMBERED = 200
# What one subscriber gets of IPv6 (RFC 6177), so that nobody has 2^64 buckets.
SUBSCRIBER_BITS = 64
LOCALHOST = "localhost"
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


class Proxies:
    """The proxies before this program whose word about their clients is taken."""

    def __init__(self, trusted: Sequence[Network] = ()) -> None:
        self._trusted = tuple(trusted)
        self.any_trusted = bool(self._trusted)
        self._is_trusted = lru_cache(REMEMBERED)(self._search)

    def client(self, peer: str, forwarded: str | None) -> str:
        """Return who sends a request: `peer`, or whom a trusted one names in `X-Forwarded-For`.

        The last address there that is no trusted proxy's is the client's: what stands before it
        was written by the client.
        """
        if forwarded is None or not self._is_trusted(peer):
            return peer
        client = peer
        for word in reversed(forwarded.split(",")):
            named = _bare(word.strip())
            if named is None:
                break
            client = named
            if not self._is_trusted(named):
                break
        return client

    def _search(self, address: str) -> bool:
        try:
            found = ip_address(address)
        except ValueError:
            # A socket file: only this machine's programs reach it.
            return address == ""
        plain = found.ipv4_mapped or found if isinstance(found, IPv6Address) else found
        return any(plain in network for network in self._trusted)


def _bare(word: str) -> str | None:
    """Return the address in a word, with or without a port; None for anything else."""
    if word.startswith("["):
        word = word[1:].partition("]")[0]
    elif word.count(":") == 1:
        word = word.partition(":")[0]
    try:
        return str(ip_address(word))
    except ValueError:
        return None


def client_address(scope: Scope) -> str:
    """Return the address of the client, as trusted proxies tell it; '' on a socket file."""
    host, _ = scope.get("client") or ("", 0)
    proxies: Proxies = scope["app"].proxies
    if not proxies.any_trusted:
        return str(host)
    return proxies.client(str(host), header(scope, b"x-forwarded-for"))


@lru_cache(REMEMBERED)
def subscriber(address: str) -> str:
    """Return what stands for whoever has this address: of IPv6 the network of their own."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(IPv6Network((found, SUBSCRIBER_BITS), strict=False).network_address)
    return str(found)


class Hosts:
    """The hosts that requests may name where no public URL is configured.

    URLs are made from them, and a page of another site could have its name lead here (DNS
    rebinding): so only loopback counts, and the address that this server has.
    """

    def __init__(self, bound: Collection[str] = ()) -> None:
        """`bound` are the names or addresses that the server was told to listen on."""
        self._bound = {name.lower() for name in bound}
        self._known: dict[tuple[str, str], bool] = {}

    def knows(self, host: str | None, scope: Scope) -> bool:
        """Return whether a `Host` is this server's; one that is missing names nobody else."""
        if host is None:
            return True
        server, _ = scope.get("server") or ("", 0)
        asked = host, str(server)
        known = self._known.get(asked)
        if known is None:
            known = self._is_own(*asked)
            if len(host) <= LONGEST_REMEMBERED and len(self._known) < REMEMBERED:
                self._known[asked] = known
        return known

    def _is_own(self, host: str, server: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in (LOCALHOST, server) or name in self._bound:
                return True
            address = ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or (server != "" and address == _address(server))


def _address(text: str) -> object:
    try:
        return ip_address(text)
    except ValueError:
        return None


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
    if not (token := _token(scope)):
        return None
    authenticator: Authenticator = scope["app"].state.authenticator
    if (identity := authenticator.recall(token)) is not None:
        scope[CALLER] = identity
    return identity


async def caller_of(scope: Scope) -> Identity | Problem | None:
    """Return who calls, or the problem of a token that proves nothing; found out once."""
    if CALLER not in scope and recalled(scope) is None:
        try:
            scope[CALLER] = await _identify(scope)
        except Problem as refusal:
            scope[CALLER] = refusal
    caller: Identity | Problem | None = scope[CALLER]
    return caller


def _token(scope: Scope) -> str | None:
    """Return the token of a request: None without one, nothing where it sends something else."""
    given = header(scope, b"authorization")
    if given is None:
        return None
    scheme, _, token = given.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def _identify(scope: Scope) -> Identity | None:
    token = _token(scope)
    if token is None:
        return None
    if not token:
        raise _unauthenticated("Send `Authorization: Bearer <token>`.")
    authenticator: Authenticator = scope["app"].state.authenticator
    try:
        await authenticator.prepare(token)
        return authenticator.authenticate(token)
    except InvalidToken as error:
        record(SecurityEvent.TOKEN_REFUSED, client_address(scope), reason=error.reason)
        raise _unauthenticated(f"The token was refused: {error.reason}.") from error
    except KeysUnavailable as error:
        log.warning("key_server_unavailable", error=str(error))
        raise Problem(
            503, "unavailable", "Tokens can't be verified right now.", headers={"Retry-After": "5"}
        ) from error


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


def _unauthenticated(detail: str) -> Problem:
    return Problem(401, "unauthenticated", detail, headers={"WWW-Authenticate": "Bearer"})

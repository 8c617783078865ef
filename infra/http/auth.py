"""Who calls: verifies bearer tokens, mints them for the local secret, asks for roles.

A token is verified once and remembered, so that a busy client's requests cost microseconds. What is
revoked is forgotten at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Lock
from typing import Annotated, Any, TypeVar
from uuid import uuid4

import jwt
import psycopg
import structlog
from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.types import Scope

from domain.errors import Forgotten
from domain.model import ActorKind, is_reserved
from domain.text import is_name
from domain.upload import VideoViewer
from infra.cache import SingleFlight
from infra.http.keys import Keys, KeysUnavailable, keys_of
from infra.http.problems import Problem
from infra.http.requests import client_address, header
from infra.key_encryption import KeyEncryptionFailed
from infra.pseudonyms import UNKNOWN, OwnNames, Pseudonyms
from infra.security_log import SecurityEvent, record
from infra.settings.adapters import AuthSettings

log = structlog.get_logger(__name__)

R = TypeVar("R")

# Who decides about what anybody wrote, and sees private videos that are not their own.
MODERATORS = frozenset(("moderator", "admin"))
MAX_TOKEN_LENGTH = 8192
MAX_USER_ID_LENGTH = 128
CLOCK_SKEW_SECONDS = 10
# Who is an operator as far as the log goes; other roles may do only what users may, or only look.
OPERATORS = frozenset({"admin", "moderator"})
# A token stays remembered for at most this long, so that a withdrawn key stops working.
REMEMBER_SECONDS = 300.0
# What is kept in a request's scope: who sends it, or the problem of a token that proves nothing.
CALLER = "backlot.caller"
ROLES = "backlot_roles"
REASONS: Mapping[type[jwt.PyJWTError], str] = {
    jwt.InvalidSignatureError: "signature does not match",
    jwt.InvalidIssuerError: "token is from another issuer",
    jwt.InvalidAudienceError: "token is for another audience",
    jwt.InvalidAlgorithmError: "algorithm is not allowed",
    jwt.ImmatureSignatureError: "token is not valid yet",
}


class InvalidToken(Exception):
    """The token proves nothing; the reason may be shown to its sender."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified caller: the pseudonym of the token's ``sub``, its ``roles``, its end (Unix time).

    An anonymous one has no token; a key that nobody can guess stands in place of the pseudonym.
    What follows from these is found out once, since a token is remembered with its identity.
    """

    person: str
    roles: frozenset[str]
    anonymous: bool = False
    expires: float = field(default=0.0, compare=False)
    kind: ActorKind = field(init=False, repr=False, compare=False)
    """What is recorded of the caller beside the name."""
    viewer: VideoViewer = field(init=False, repr=False, compare=False)
    """As whom the caller sees videos."""

    def __post_init__(self) -> None:
        kind = ActorKind.USER if self.roles.isdisjoint(OPERATORS) else ActorKind.OPERATOR
        person = None if self.anonymous else self.person
        object.__setattr__(self, "kind", ActorKind.ANONYMOUS if self.anonymous else kind)
        object.__setattr__(self, "viewer", VideoViewer(person, self.is_moderator))

    @property
    def is_admin(self) -> bool:
        return "admin" in self.roles

    @property
    def is_moderator(self) -> bool:
        """Whether they decide about what anybody wrote."""
        return not self.roles.isdisjoint(MODERATORS)


@dataclass(frozen=True, slots=True)
class RevokedTokens:
    """Tokens that count no more: single ones by `jti`, and a person's by the time of their issue.

    `users` are Unix times in seconds: whatever was issued to that user up to then is revoked.
    """

    tokens: frozenset[str] = frozenset()
    users: Mapping[str, float] = field(default_factory=dict)

    def has(self, claims: Mapping[str, Any], person: str, now: float) -> bool:
        """Return whether a person's token with these verified claims is revoked.

        Clocks may differ by 10 seconds. Of a user with revoked tokens, one that does not tell when
        it was issued, or tells a time that is still to come, is taken for one of them.
        """
        if claims.get("jti") in self.tokens:
            return True
        until = self.users.get(person)
        if until is None:
            return False
        issued = claims.get("iat")
        return issued is None or not until < issued - CLOCK_SKEW_SECONDS <= now


class Authenticator:
    """Turns bearer tokens into identities; safe to share between threads."""

    def __init__(
        self,
        keys: Keys,
        *,
        persons: Pseudonyms | None = None,
        issuer: str | None = None,
        audience: str | None = None,
        max_lifetime: timedelta = timedelta(days=7),
        remember: int = 20_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self.persons = persons or OwnNames()
        self._issuer = issuer
        self._audience = audience
        self.max_lifetime = max_lifetime
        self._remember = remember
        self._clock = clock
        self._verified: OrderedDict[str, tuple[Identity, float, Any]] = OrderedDict()
        self.revoked = RevokedTokens()
        self._fetches: SingleFlight[None] = SingleFlight()
        self._lock = Lock()

    async def prepare(self, token: str) -> None:
        """Have the key server asked where it takes that to authenticate a token.

        Callers share one question. Raise KeysUnavailable.
        """
        if self._lacks_key(token):
            await self._fetches.join("keys", lambda: asyncio.to_thread(self._keys.fetch))

    def _lacks_key(self, token: str) -> bool:
        try:
            return len(token) <= MAX_TOKEN_LENGTH and self._keys.lacks(token)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            # What is no token lacks nothing.
            return False

    def revoke(self, revoked: RevokedTokens) -> None:
        """Refuse these tokens from now on, no others; verify again whom there is news about."""
        with self._lock:
            users = {person for person, _ in revoked.users.items() - self.revoked.users.items()}
            tokens = revoked.tokens - self.revoked.tokens
            self.revoked = revoked
            for token, (identity, _, token_id) in list(self._verified.items()):
                if identity.person in users or token_id in tokens:
                    del self._verified[token]

    def recall(self, token: str) -> Identity | None:
        """Return the identity of a token verified before and still valid; never blocks."""
        with self._lock:
            if (entry := self._verified.get(token)) is None:
                return None
            identity, until, _ = entry
            if self._clock() >= until:
                del self._verified[token]
                return None
            self._verified.move_to_end(token)
            return identity

    def authenticate(self, token: str) -> Identity:
        """Verify signature, lifetime, issuer and audience, and that it is not revoked.

        May block. Raise InvalidToken with the reason, KeysUnavailable when the key server did not
        answer, Forgotten, and what the persons raise when their database is away.
        """
        identity = self.recall(token)
        if identity is not None:
            return identity
        if len(token) > MAX_TOKEN_LENGTH:
            raise InvalidToken(f"token longer than {MAX_TOKEN_LENGTH} characters")
        claims = self._verify(token)
        user_id, roles = _subject(claims)
        person, revoked = self.persons.admit(user_id), self.revoked
        identity = Identity(person, roles, expires=float(claims["exp"]))
        if revoked.has(claims, person, self._clock()):
            raise InvalidToken("token is revoked; get a new one")
        self._keep(token, identity, claims, revoked)
        return identity

    def _verify(self, token: str) -> dict[str, Any]:
        try:
            key, algorithms = self._keys.find(token)
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(algorithms),
                issuer=self._issuer,
                audience=self._audience,
                leeway=CLOCK_SKEW_SECONDS,
                options={
                    "require": ["exp", "sub"],
                    "verify_exp": False,
                    # When a token was made says nothing of its validity (RFC 7519, 4.1.6), and a
                    # provider's clock may be ahead of ours; `nbf` is what holds one back.
                    "verify_iat": False,
                    "verify_aud": self._audience is not None,
                },
            )
        except jwt.PyJWTError as error:
            raise InvalidToken(_reason(error)) from error
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            # PyJWT lets these out for headers and claims of unexpected shapes.
            raise InvalidToken("token is malformed") from error
        _require_time("exp", claims["exp"])
        _require_time("iat", claims.get("iat", 0))
        # No leeway here: a remembered token must end at the same moment as an unseen one.
        now = self._clock()
        if claims["exp"] <= now:
            raise InvalidToken("token has expired")
        most = self.max_lifetime.total_seconds()
        if claims["exp"] - min(claims.get("iat", now), now) > most + CLOCK_SKEW_SECONDS:
            raise InvalidToken(
                f"token is valid for longer than {most:.0f} seconds from `iat` (or now) to `exp`, "
                "which JWT_MAX_LIFETIME_SECONDS allows; get one for a shorter time"
            )
        return claims

    def _keep(self, token: str, identity: Identity, claims: Any, checked: RevokedTokens) -> None:
        until = min(float(claims["exp"]), self._clock() + REMEMBER_SECONDS)
        with self._lock:
            if self.revoked is not checked:
                # What was revoked meanwhile was not looked at: the next request is.
                return
            self._verified[token] = (identity, until, claims.get("jti"))
            if len(self._verified) > self._remember:
                self._verified.popitem(last=False)


def make_authenticator(
    settings: AuthSettings, local_secret: str | None = None, persons: Pseudonyms | None = None
) -> Authenticator:
    """Return the authenticator that the settings ask for.

    ``local_secret`` is used when no ``JWT_*`` key is set. Raise SettingsError for a public key
    that cannot be used.
    """
    return Authenticator(
        keys_of(settings, local_secret),
        persons=persons,
        issuer=settings.issuer,
        audience=settings.audience,
        max_lifetime=settings.max_lifetime,
    )


def mint_token(
    secret: str,
    user_id: str,
    roles: Iterable[str] = (),
    ttl: timedelta = timedelta(hours=1),
    *,
    issuer: str | None = None,
    audience: str | None = None,
) -> str:
    """Return a token for ``user_id``, signed with ``secret`` (HS256), valid for ``ttl``.

    Its ``jti`` names it, to revoke it. Raise InvalidToken for what no token may say.
    """
    now = int(time.time())
    claims: dict[str, Any] = {"sub": user_id, "iat": now, "exp": now + int(ttl.total_seconds())}
    claims |= {"jti": str(uuid4()), "roles": sorted(roles)}
    _subject(claims)
    told = {"iss": issuer, "aud": audience}
    claims |= {name: value for name, value in told.items() if value is not None}
    return jwt.encode(claims, secret, algorithm="HS256")


def token_id(minted: str) -> str:
    """Return the ``jti`` of a token that was minted here; nothing is verified."""
    return str(jwt.decode(minted, options={"verify_signature": False})["jti"])


def _require_time(claim: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise InvalidToken(f"{claim} must be a time in seconds")


def user_id_of(text: str) -> str:
    """Return what a call has where it names a user; raise ValueError for what no token can say."""
    if not is_name(text, MAX_USER_ID_LENGTH) or is_reserved(text):
        raise ValueError(f"must be a user id of at most {MAX_USER_ID_LENGTH} characters")
    return text


def _subject(claims: dict[str, Any]) -> tuple[str, frozenset[str]]:
    """Return the user id and the roles of a token; raise InvalidToken."""
    user_id, roles = claims["sub"], claims.get("roles", [])
    if not isinstance(user_id, str) or not is_name(user_id, MAX_USER_ID_LENGTH):
        raise InvalidToken(
            f"sub must be 1 to {MAX_USER_ID_LENGTH} characters that can be seen, without control "
            "characters, ends of lines and changes of direction"
        )
    if is_reserved(user_id):
        raise InvalidToken(
            "sub is a name that only parts of the system and operators at the command line have "
            "(such as `system` and `operator:…`); give this user another id"
        )
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        raise InvalidToken("roles must be a list of strings")
    return user_id, frozenset(roles)


def _reason(error: jwt.PyJWTError) -> str:
    for kind, reason in REASONS.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"token has no {error.claim}"
    return "token is malformed or signed with an unknown key"


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
    if (given := header(scope, b"authorization")) is None:
        return None
    scheme, _, token = given.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def _identify(scope: Scope) -> Identity | None:
    token = _token(scope)
    if token is None:
        return None
    if not token:
        raise unauthenticated("Send `Authorization: Bearer <token>`.")
    authenticator: Authenticator = scope["app"].state.authenticator
    try:
        await authenticator.prepare(token)
        return await ask(authenticator.authenticate, token)
    except InvalidToken as error:
        record(SecurityEvent.TOKEN_REFUSED, client_address(scope), reason=error.reason)
        raise unauthenticated(f"The token was refused: {error.reason}.") from error
    except KeysUnavailable as error:
        log.warning("key_server_unavailable", error=str(error))
        raise Problem(
            503, "unavailable", "Tokens can't be verified right now.", headers={"Retry-After": "5"}
        ) from error


async def ask(question: Callable[..., R], *given: Any) -> R:
    """Return what persons answer to a question that may block.

    Raise Problem: 410 of whom was forgotten, 503 where nobody can be told apart now.
    """
    try:
        return await asyncio.to_thread(question, *given)
    except Forgotten as error:
        raise Problem(410, "forgotten", str(error)) from error
    except (psycopg.Error, KeyEncryptionFailed) as error:
        log.warning("persons_unavailable", error=" ".join(str(error).split()))
        raise Problem(
            503, "unavailable", "Users can't be told apart right now.", headers={"Retry-After": "1"}
        ) from error


async def persons_of(request: Request) -> Pseudonyms:
    """Return who is who for a request."""
    authenticator: Authenticator = request.app.state.authenticator
    return authenticator.persons


async def persons_named(request: Request, user_ids: Sequence[str]) -> list[str]:
    """Return the pseudonyms of users that a call names; UNKNOWN where nobody has that name."""
    find = (await persons_of(request)).find
    return await ask(lambda: [find(user_id) or UNKNOWN for user_id in user_ids])


async def person_named(request: Request, user_id: str) -> str:
    """Return the pseudonym of one user that a call names, as `persons_named` does."""
    (person,) = await persons_named(request, (user_id,))
    return person


async def person_admitted(request: Request, user_id: str) -> str:
    """Return the pseudonym of a user of whom something is recorded, also before they came here.

    Raise Problem 410 for one who was forgotten.
    """
    return await ask((await persons_of(request)).admit, user_id)


async def require_identity(request: Request) -> Identity:
    """Return who calls; 401 without a token."""
    return require_known(await maybe_identity(request))


def require_known(identity: Identity | None) -> Identity:
    """Return who calls; 401 for nobody."""
    if identity is None:
        raise unauthenticated("This call needs a token: `Authorization: Bearer <token>`.")
    return identity


def role_refused(request: Request, caller: Identity, detail: str) -> Problem:
    """Return the answer (403) to a caller without the role that is needed, and record it."""
    route = getattr(request.scope.get("route"), "path", "")
    roles = ", ".join(sorted(caller.roles))
    record(SecurityEvent.ROLE_REFUSED, caller.person, route=route, roles=roles)
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


require_admin, require_moderator = _require_role("admin"), _require_role("moderator", "admin")
MaybeCaller = Annotated[Identity | None, Depends(maybe_identity)]
Caller = Annotated[Identity, Depends(require_identity)]
Admin = Annotated[Identity, Depends(require_admin)]
Moderator = Annotated[Identity, Depends(require_moderator)]
Auditor = Annotated[Identity, Depends(_require_role("auditor", "admin"))]
Service = Annotated[Identity, Depends(_require_role("service", "admin"))]
"""Who may look into the event log; a program that may have all that is published."""


def unauthenticated(detail: str) -> Problem:
    return Problem(401, "unauthenticated", detail, headers={"WWW-Authenticate": "Bearer"})

"""Authentication: verifies bearer tokens, and mints them for the local secret.

A token is verified once and remembered, so that a busy client's requests cost microseconds.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import Any

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from domain.text import is_name
from domain.upload import VideoViewer
from infra.circuit_breaker import CircuitBreaker
from infra.settings import SettingsError
from infra.settings.adapters import AuthSettings

log = structlog.get_logger(__name__)

FETCH_TIMEOUT_SECONDS = 5.0
KEYS_LIFESPAN_SECONDS = 600.0
RETRY_SECONDS = 5.0

# Who decides about what anybody wrote, and sees private videos that are not their own.
MODERATORS = frozenset(("moderator", "admin"))
MAX_TOKEN_LENGTH = 8192
MAX_USER_ID_LENGTH = 128
CLOCK_SKEW_SECONDS = 10
# A token stays remembered for at most this long, so that a withdrawn key stops working.
REMEMBER_SECONDS = 300.0
REASONS: Mapping[type[jwt.PyJWTError], str] = {
    jwt.InvalidSignatureError: "signature does not match",
    jwt.InvalidIssuerError: "token is from another issuer",
    jwt.InvalidAudienceError: "token is for another audience",
    jwt.InvalidAlgorithmError: "algorithm is not allowed",
    jwt.ImmatureSignatureError: "token is not valid yet",
}


class KeysUnavailable(Exception):
    """The key server did not give its keys: nobody can be told apart until it does."""


class KeyServerBreaker(CircuitBreaker):
    """During an outage each caller would wait for its own time-out: they fail at once instead."""

    def refusal(self, retry_after: float | None) -> Exception:
        return KeysUnavailable("the key server did not answer a moment ago")

    def blames(self, error: BaseException) -> bool | None:
        if isinstance(error, jwt.PyJWTError):
            # It did answer, and knows no such key.
            return False
        return True if isinstance(error, KeysUnavailable) else None


class RemoteKeys:
    """Finds a token's key by its ``kid``; unknown ones refetch at most every 30 seconds."""

    def __init__(
        self, url: str, algorithms: Collection[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = jwt.PyJWKClient(
            url, lifespan=KEYS_LIFESPAN_SECONDS, timeout=FETCH_TIMEOUT_SECONDS
        )
        self._algorithms = frozenset(algorithms)
        self._breaker = KeyServerBreaker(RETRY_SECONDS, clock=clock)

    def find(self, token: str) -> tuple[Any, Sequence[str]]:
        """Return the key that the token names, and the one algorithm that this key is for.

        Raise jwt.PyJWTError when the token names no known key, and KeysUnavailable.
        """
        kid = jwt.get_unverified_header(token).get("kid")
        if not isinstance(kid, str):
            raise jwt.InvalidTokenError("the token names no key")
        key = self._key(kid)
        if key.algorithm_name not in self._algorithms:
            raise jwt.InvalidAlgorithmError(f"{key.algorithm_name} is not allowed")
        return key.key, [key.algorithm_name]

    def count(self) -> int:
        """Return how many signing keys the server gives now; raise KeysUnavailable."""
        with self._answering(jwt.PyJWTError):
            return len(self._client.get_signing_keys())

    def _key(self, kid: str) -> jwt.PyJWK:
        with self._breaker.attempt():
            with self._answering(jwt.PyJWTError):
                known = self._client.match_kid(self._client.get_signing_keys(), kid)
            if known is not None:
                return known
            with self._answering(jwt.PyJWKClientConnectionError):
                return self._client.get_signing_key(kid)

    @contextmanager
    def _answering(self, failure: type[jwt.PyJWTError]) -> Iterator[None]:
        """Raise KeysUnavailable where the server fails in the block."""
        try:
            yield
        except (failure, OSError, ValueError) as error:
            log.error("jwks_unavailable", url=self._client.uri, error=str(error))
            raise KeysUnavailable(f"no signing keys from {self._client.uri}") from error


class InvalidToken(Exception):
    """The token proves nothing; the reason may be shown to its sender."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified caller: the token's ``sub`` and ``roles``.

    An anonymous one has no token; a key that nobody can guess stands in place of the user id.
    """

    user_id: str
    roles: frozenset[str]
    anonymous: bool = False

    @property
    def is_admin(self) -> bool:
        return "admin" in self.roles

    @property
    def is_moderator(self) -> bool:
        """Whether they decide about what anybody wrote."""
        return not self.roles.isdisjoint(MODERATORS)

    @property
    def viewer(self) -> VideoViewer:
        """As whom the caller sees videos."""
        user_id = None if self.anonymous else self.user_id
        return VideoViewer(user_id, self.is_moderator)


@dataclass(frozen=True, slots=True)
class OneKey:
    """A secret or public key from the settings."""

    key: Any
    algorithms: Sequence[str]

    def find(self, token: str) -> tuple[Any, Sequence[str]]:
        return self.key, self.algorithms


class Authenticator:
    """Turns bearer tokens into identities; safe to share between threads."""

    def __init__(
        self,
        keys: OneKey | RemoteKeys,
        *,
        issuer: str | None = None,
        audience: str | None = None,
        remember: int = 20_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._remember = remember
        self._clock = clock
        self._verified: OrderedDict[str, tuple[Identity, float]] = OrderedDict()
        self._lock = Lock()

    @property
    def may_block(self) -> bool:
        """Whether verifying an unseen token may wait for another server."""
        return isinstance(self._keys, RemoteKeys)

    def recall(self, token: str) -> Identity | None:
        """Return the identity of a token verified before and still valid; never blocks."""
        with self._lock:
            entry = self._verified.get(token)
            if entry is None:
                return None
            identity, until = entry
            if self._clock() >= until:
                del self._verified[token]
                return None
            self._verified.move_to_end(token)
            return identity

    def authenticate(self, token: str) -> Identity:
        """Verify signature, lifetime, issuer and audience.

        Raise InvalidToken with the reason, or KeysUnavailable when the key server does not
        answer. May block on the network when ``may_block``: call it in a thread then.
        """
        identity = self.recall(token)
        if identity is not None:
            return identity
        if len(token) > MAX_TOKEN_LENGTH:
            raise InvalidToken(f"token longer than {MAX_TOKEN_LENGTH} characters")
        claims = self._verify(token)
        identity = _identity(claims)
        self._keep(token, identity, float(claims["exp"]))
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
        if claims["exp"] <= self._clock():
            raise InvalidToken("token has expired")
        return claims

    def _keep(self, token: str, identity: Identity, exp: float) -> None:
        until = min(exp, self._clock() + REMEMBER_SECONDS)
        with self._lock:
            self._verified[token] = (identity, until)
            if len(self._verified) > self._remember:
                self._verified.popitem(last=False)


def make_authenticator(settings: AuthSettings, local_secret: str | None = None) -> Authenticator:
    """Return the authenticator that the settings ask for.

    ``local_secret`` is used when no ``JWT_*`` key is set. Raise SettingsError for a public key
    that cannot be used.
    """
    return Authenticator(
        _keys(settings, local_secret), issuer=settings.issuer, audience=settings.audience
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
    """Return a token for ``user_id``, signed with ``secret`` (HS256), valid for ``ttl``."""
    now = int(time.time())
    claims: dict[str, Any] = {"sub": user_id, "iat": now, "exp": now + int(ttl.total_seconds())}
    claims["roles"] = sorted(roles)
    _identity(claims)
    if issuer is not None:
        claims["iss"] = issuer
    if audience is not None:
        claims["aud"] = audience
    return jwt.encode(claims, secret, algorithm="HS256")


def read_or_make_secret(path: Path) -> str:
    """Return the local signing secret at ``path``; make it on first use, readable by its owner."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        pass
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(48) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    return path.read_text().strip()


def _require_time(claim: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise InvalidToken(f"{claim} must be a time in seconds")


def _identity(claims: dict[str, Any]) -> Identity:
    user_id, roles = claims["sub"], claims.get("roles", [])
    if not isinstance(user_id, str) or not is_name(user_id, MAX_USER_ID_LENGTH):
        raise InvalidToken(
            f"sub must be 1 to {MAX_USER_ID_LENGTH} characters that can be seen, without control "
            "characters, ends of lines and changes of direction"
        )
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        raise InvalidToken("roles must be a list of strings")
    return Identity(user_id, frozenset(roles))


def _reason(error: jwt.PyJWTError) -> str:
    for kind, reason in REASONS.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"token has no {error.claim}"
    return "token is malformed or signed with an unknown key"


def _keys(settings: AuthSettings, local_secret: str | None) -> OneKey | RemoteKeys:
    algorithms = sorted(settings.algorithms)
    if settings.jwks_url is not None:
        return RemoteKeys(settings.jwks_url, algorithms)
    if settings.public_key is not None:
        return _public_key(settings.public_key, settings.configured_algorithms)
    if settings.secret is not None:
        return OneKey(settings.secret.get_secret_value(), algorithms)
    if local_secret is None:
        raise SettingsError("JWT_SECRET: not set, and there is no local secret to use instead")
    return OneKey(local_secret, algorithms)


def _public_key(pem: str, configured: Iterable[str]) -> OneKey:
    try:
        key = load_pem_public_key(pem.encode())
    except ValueError:
        raise SettingsError("JWT_PUBLIC_KEY: is not a readable PEM public key") from None
    if isinstance(key, RSAPublicKey):
        algorithm = "RS256"
    elif isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        algorithm = "ES256"
    else:
        raise SettingsError("JWT_PUBLIC_KEY: must be an RSA key or an EC key on P-256")
    if configured and algorithm not in configured:
        raise SettingsError(f"JWT_ALGORITHMS: JWT_PUBLIC_KEY verifies {algorithm} only")
    return OneKey(key, [algorithm])

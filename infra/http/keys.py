"""The keys of tokens: one from the settings or of this installation, or an identity provider's.

Of the provider's keys, what is known is found without asking anybody, also while the provider is
away. Only a `kid` that is not known makes the provider be asked. All callers share one question,
and each `kid` that the provider does not have is left alone for longer and longer: made-up ones
cost the provider a request every two seconds at most, and the callers with known keys nothing.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import Any, NoReturn, Protocol

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from infra.settings import SettingsError
from infra.settings.adapters import AuthSettings
from infra.settings.values import secret_weakness

log = structlog.get_logger(__name__)

FETCH_TIMEOUT_SECONDS = 5.0
# Older keys go on while new ones are fetched.
KEYS_LIFESPAN_SECONDS = 600.0
# After a failure the provider is left alone for so long, after an answer for so much.
RETRY_SECONDS = 5.0
PAUSE_SECONDS = 2.0
# A `kid` that the provider does not have is not asked for again within the first, then twice as
# long, up to the second.
FIRST_ABSENCE_SECONDS = 30.0
LONGEST_ABSENCE_SECONDS = 600.0
MOST_ABSENT = 1_000
MAX_KID_LENGTH = 256


class KeysUnavailable(Exception):
    """The key server did not give its keys: unknown ones can't be told from wrong ones."""


class Keys(Protocol):
    """Where the key of a token is found."""

    def lacks(self, token: str) -> bool:
        """Return whether `fetch` should be called before `find`."""

    def find(self, token: str) -> tuple[Any, Sequence[str]]:
        """Return the key and its algorithms; raise jwt.PyJWTError and KeysUnavailable."""

    def fetch(self) -> None:
        """Get keys from where they are; may block. Raise KeysUnavailable."""


@dataclass(frozen=True, slots=True)
class OneKey:
    """A secret or public key from the settings."""

    key: Any
    algorithms: Sequence[str]

    def lacks(self, token: str) -> bool:
        return False

    def find(self, token: str) -> tuple[Any, Sequence[str]]:
        return self.key, self.algorithms

    def fetch(self) -> None:
        """It is here."""


@dataclass(slots=True)
class Absence:
    """A `kid` that the provider does not have is not asked for until then."""

    until: float
    seconds: float


class RemoteKeys:
    """The signing keys at a JWKS URL. `find` belongs to one thread, `fetch` to any."""

    def __init__(
        self,
        url: str,
        algorithms: Collection[str],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=FETCH_TIMEOUT_SECONDS)
        self._algorithms = frozenset(algorithms)
        self._clock = clock
        self._sleep = sleep
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._fetched_at = -KEYS_LIFESPAN_SECONDS
        self._pause_until = 0.0
        self._failed = False
        self._absent: OrderedDict[str, Absence] = OrderedDict()
        self._fetching = Lock()
        self._refreshing = Lock()

    def lacks(self, token: str) -> bool:
        """Return whether `fetch` should be called before `find`, which never waits."""
        kid = _kid(token)
        if kid is None or kid in self._keys:
            return False
        now = self._clock()
        if self._failed and now < self._pause_until:
            return False
        absence = self._absent.get(kid)
        return absence is None or now >= absence.until

    def find(self, token: str) -> tuple[Any, Sequence[str]]:
        """Return the key that the token names, and the one algorithm that this key is for.

        Old keys are fetched anew behind the caller's back. Raise jwt.PyJWTError when the token
        names no key or one that the provider does not have, KeysUnavailable when that is not known.
        """
        kid = _kid(token)
        if kid is None:
            raise jwt.InvalidTokenError("the token names no key")
        key = self._keys.get(kid)
        if key is None:
            self._refuse(kid)
        self._refresh_old()
        if key.algorithm_name not in self._algorithms:
            raise jwt.InvalidAlgorithmError(f"{key.algorithm_name} is not allowed")
        return key.key, [key.algorithm_name]

    def fetch(self) -> None:
        """Ask the provider, after the pause that it is given; raise KeysUnavailable.

        Blocks for up to 2 seconds and the time-out of the request.
        """
        with self._fetching:
            if (pause := self._pause_until - self._clock()) > 0:
                if self._failed:
                    raise KeysUnavailable("the key server did not answer a moment ago")
                self._sleep(pause)
            self._ask()

    def count(self) -> int:
        """Return how many signing keys the server gives now; raise KeysUnavailable."""
        self.fetch()
        return len(self._keys)

    def _ask(self) -> None:
        try:
            found = self._client.get_signing_keys()
        except (jwt.PyJWTError, OSError, ValueError) as error:
            self._failed = True
            self._pause_until = self._clock() + RETRY_SECONDS
            log.error("jwks_unavailable", url=self._client.uri, error=str(error))
            raise KeysUnavailable(f"no signing keys from {self._client.uri}") from error
        self._keys = {str(key.key_id): key for key in found}
        self._failed = False
        self._fetched_at = self._clock()
        self._pause_until = self._fetched_at + PAUSE_SECONDS

    def _refuse(self, kid: str) -> NoReturn:
        """Raise what an unknown `kid` is answered with, and leave it alone from now on."""
        if self._failed or not self._keys:
            raise KeysUnavailable("the key server did not answer a moment ago")
        now = self._clock()
        absence = self._absent.pop(kid, None)
        if absence is None:
            absence = Absence(now + FIRST_ABSENCE_SECONDS, FIRST_ABSENCE_SECONDS)
        elif now >= absence.until:
            seconds = min(2 * absence.seconds, LONGEST_ABSENCE_SECONDS)
            absence = Absence(now + seconds, seconds)
        self._absent[kid] = absence
        if len(self._absent) > MOST_ABSENT:
            self._absent.popitem(last=False)
        raise jwt.InvalidKeyError("the provider has no such key")

    def _refresh_old(self) -> None:
        now = self._clock()
        if now - self._fetched_at < KEYS_LIFESPAN_SECONDS or now < self._pause_until:
            return
        if self._refreshing.acquire(blocking=False):
            Thread(target=self._refresh, name="jwks", daemon=True).start()

    def _refresh(self) -> None:
        try:
            self.fetch()
        except KeysUnavailable:
            # Told in the log; the known keys go on, and a later token has it tried again.
            pass
        finally:
            self._refreshing.release()


def _kid(token: str) -> str | None:
    """Return the key that a token names; raise jwt.PyJWTError for what is no token."""
    kid = jwt.get_unverified_header(token).get("kid")
    return kid if isinstance(kid, str) and len(kid) <= MAX_KID_LENGTH else None


def keys_of(settings: AuthSettings, local_secret: str | None) -> Keys:
    """Return where the settings have the keys of tokens; raise SettingsError.

    ``local_secret`` is used when no ``JWT_*`` key is set.
    """
    algorithms = sorted(settings.algorithms)
    if settings.jwks_url is not None:
        return RemoteKeys(settings.jwks_url, algorithms)
    if settings.public_key is not None:
        return _public_key(settings.public_key, settings.configured_algorithms)
    if settings.secret is not None:
        return OneKey(settings.secret.get_secret_value(), algorithms)
    if local_secret is None:
        raise SettingsError("JWT_SECRET: not set, and there is no local secret to use instead")
    if weak := secret_weakness(local_secret):
        raise SettingsError(f"the local secret {weak}; remove the file, and a new one is made")
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

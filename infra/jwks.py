"""Signing keys of an identity provider, fetched from its JWKS URL and remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jwt
import structlog

from infra.circuit_breaker import CircuitBreaker, CircuitState

FETCH_TIMEOUT_SECONDS = 5.0
KEYS_LIFESPAN_SECONDS = 600.0
RETRY_SECONDS = 5.0

log = structlog.get_logger(__name__)


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

    def changed(self, before: CircuitState, error: BaseException | None) -> None:
        """Each failure is logged where it happens."""


class RemoteKeys:
    """Finds a token's key by its ``kid``; unknown ones refetch at most every 30 seconds."""

    def __init__(
        self,
        url: str,
        algorithms: Collection[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = jwt.PyJWKClient(
            url, lifespan=KEYS_LIFESPAN_SECONDS, timeout=FETCH_TIMEOUT_SECONDS
        )
        self._algorithms = frozenset(algorithms)
        self._breaker = KeyServerBreaker(RETRY_SECONDS, clock=clock)

    def find(self, token: str) -> tuple[Any, Sequence[str]]:
        """The key that the token names, and the one algorithm that this key is for."""
        kid = jwt.get_unverified_header(token).get("kid")
        if not isinstance(kid, str):
            raise jwt.InvalidTokenError("the token names no key")
        key = self._key(kid)
        if key.algorithm_name not in self._algorithms:
            raise jwt.InvalidAlgorithmError(f"{key.algorithm_name} is not allowed")
        return key.key, [key.algorithm_name]

    def count(self) -> int:
        """How many signing keys the server gives now; raises KeysUnavailable."""
        try:
            return len(self._client.get_signing_keys())
        except (jwt.PyJWTError, OSError, ValueError) as error:
            raise self._unavailable(error) from error

    def _key(self, kid: str) -> jwt.PyJWK:
        with self._breaker.attempt():
            try:
                known = self._client.match_kid(self._client.get_signing_keys(), kid)
            except (jwt.PyJWTError, OSError, ValueError) as error:
                raise self._unavailable(error) from error
            if known is not None:
                return known
            try:
                return self._client.get_signing_key(kid)
            except (jwt.PyJWKClientConnectionError, OSError, ValueError) as error:
                raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> KeysUnavailable:
        log.error("jwks_unavailable", url=self._client.uri, error=str(error))
        return KeysUnavailable(f"no signing keys from {self._client.uri}")

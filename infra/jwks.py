"""Signing keys of an identity provider, fetched from its JWKS URL and remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jwt
import structlog

FETCH_TIMEOUT_SECONDS = 5.0
KEYS_LIFESPAN_SECONDS = 600.0
RETRY_SECONDS = 5.0

log = structlog.get_logger(__name__)


class KeysUnavailable(Exception):
    """The key server did not give its keys: nobody can be told apart until it does."""


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
        self._clock = clock
        self._retry_at = 0.0

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
        # During an outage each caller would wait for its own timeout: fail at once instead.
        if self._clock() < self._retry_at:
            raise KeysUnavailable("the key server did not answer a moment ago")
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
        self._retry_at = self._clock() + RETRY_SECONDS
        log.error("jwks_unavailable", url=self._client.uri, error=str(error))
        return KeysUnavailable(f"no signing keys from {self._client.uri}")

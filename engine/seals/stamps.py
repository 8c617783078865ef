"""Time stamps over seals, which say that a seal existed at a time, whoever holds the keys."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from engine.seals.chain import Seal
from engine.seals.outside import SEAL_FAILURES
from infra.timestamps import TimestampInvalid, TimestampServer, TimestampUnavailable

log = structlog.get_logger(__name__)

RETRY_SECONDS = 60.0


class SealStamps:
    """Has seals stamped by a time-stamp server, one in each interval."""

    def __init__(
        self, server: TimestampServer, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._server, self._seconds, self._clock = server, seconds, clock
        self._next: float | None = None
        self._stamped: tuple[bytes, bytes] | None = None

    def __call__(self, seal: Seal) -> bytes | None:
        """Return a time stamp over the hash of the seal, None where none is due or to be had.

        All who ask for one seal get the same. A failure is logged and counted.
        """
        if self._stamped is not None and self._stamped[0] == seal.hash:
            return self._stamped[1]
        if self._next is not None and self._clock() < self._next:
            return None
        self._next = self._clock() + self._seconds
        try:
            self._stamped = (seal.hash, self._server.stamp(seal.hash))
        except (TimestampUnavailable, TimestampInvalid) as error:
            self._next = self._clock() + min(self._seconds, RETRY_SECONDS)
            SEAL_FAILURES.labels("timestamp").inc()
            log.warning("seal_not_stamped", number=seal.number, error=str(error))
            return None
        return self._stamped[1]

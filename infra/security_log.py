"""The security log: who was refused what, and who read what is personal, in lines without a flood.

`record` counts each event as a metric. It logs the first one of a kind and subject at once. Repeats
within the same interval are told in one line when the interval ends, with their number. So neither
a client that tries without end nor a crowd of clients fills the disk.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock

import structlog

from domain.text import without_misleading
from infra.metrics import counter

log = structlog.get_logger(__name__)

INTERVAL_SECONDS = 60.0
# Of each kind so many subjects are told apart in an interval; the others share one line.
MOST_SUBJECTS = 100
MAX_TEXT = 200
OTHERS = "others"

EVENTS = counter(
    "backlot_security_events",
    "What the security log was told of, by kind, repeats included.",
    ("kind",),
)


class SecurityEvent(StrEnum):
    """What the security log tells of, and whose name its `subject` is."""

    TOKEN_REFUSED = "token_refused"  # noqa: S105 - no password; the address that sent it
    ROLE_REFUSED = "role_refused"  # the user who lacks the role
    PERSONAL_DATA_READ = "personal_data_read"  # the auditor or operator
    LIMIT_HIT = "limit_hit"  # the user or the address that is limited


@dataclass(slots=True)
class Repeats:
    """What came again in the present interval, with the details that came first."""

    details: Mapping[str, object]
    count: int = 0


class SecurityLog:
    """Tells of security events in a bounded number of lines; safe to share between threads.

    An interval has at most `2 * (subjects + 1)` lines of a kind: the first and the repeats of each
    subject, and of all others together.
    """

    def __init__(
        self,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        subjects: int = MOST_SUBJECTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval_seconds = interval_seconds
        self._subjects = subjects
        self._clock = clock
        self._ends_at = clock() + interval_seconds
        self._known: dict[tuple[SecurityEvent, str], Repeats] = {}
        self._told_apart: Counter[SecurityEvent] = Counter()
        self._lock = Lock()

    def record(self, kind: SecurityEvent, subject: str, **details: object) -> None:
        """Count the event, and log it unless it repeats one of this interval.

        `subject` is a user's pseudonym or an address; `details` are short values for whoever reads
        the line. Neither may hold a user id, a token, a secret or what a person wrote.
        """
        EVENTS.labels(kind).inc()
        if self._clock() >= self._ends_at:
            self.flush()
        with self._lock:
            key = self._key(kind, _short(subject))
            if (known := self._known.get(key)) is not None:
                known.count += 1
                return
            self._known[key] = Repeats(details)
        _tell(*key, details)

    def flush(self) -> None:
        """End the interval: log what was repeated in it, and tell everything anew from now on."""
        with self._lock:
            ended, self._known = self._known, {}
            self._told_apart.clear()
            self._ends_at = self._clock() + self._interval_seconds
        for key, repeats in ended.items():
            if repeats.count:
                _tell(*key, {**repeats.details, "repeats": repeats.count})

    async def run(self) -> None:
        """End each interval in time, until cancelled; then tell what is left."""
        try:
            while True:
                await asyncio.sleep(self._interval_seconds)
                self.flush()
        finally:
            self.flush()

    def _key(self, kind: SecurityEvent, subject: str) -> tuple[SecurityEvent, str]:
        if (kind, subject) in self._known:
            return kind, subject
        if self._told_apart[kind] >= self._subjects:
            return kind, OTHERS
        self._told_apart[kind] += 1
        return kind, subject


def _tell(kind: SecurityEvent, subject: str, details: Mapping[str, object]) -> None:
    told = {
        name: _short(value) if isinstance(value, str) else value for name, value in details.items()
    }
    log.warning("security", kind=str(kind), subject=subject, **told)


def _short(text: str) -> str:
    return without_misleading(text[:MAX_TEXT])


SECURITY_LOG = SecurityLog()
"""That of this process."""


def record(kind: SecurityEvent, subject: str, **details: object) -> None:
    """Record a security event in the log of this process; see `SecurityLog.record`."""
    SECURITY_LOG.record(kind, subject, **details)

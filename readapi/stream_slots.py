"""How many live streams one user, and one address, may have open at once in a process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from infra.http.problems import Problem
from infra.settings import Settings

MAX_WATCHERS = 10_000


@dataclass(frozen=True, slots=True)
class LiveLimits:
    """How many streams one user, and one address, may have open in this process."""

    per_user: int = MAX_WATCHERS
    per_address: int = MAX_WATCHERS

    @classmethod
    def of(cls, settings: Settings) -> LiveLimits:
        """Return the limits of these settings; none where they limit nothing."""
        quotas = settings.quotas
        if not settings.rate_limits.on:
            return cls()
        return cls(quotas.live_streams_per_user, quotas.live_streams_per_address)


class StreamSlots:
    """Counts the open streams of each user and each address."""

    def __init__(self, limits: LiveLimits) -> None:
        self._limits = limits
        self._taken: dict[str, int] = {}

    def take(self, person: str | None, address: str) -> tuple[str, ...]:
        """Return the names under which one more stream is counted; `free` has to be given them.

        Raise Problem 429 when the user or the address has as many streams as one may.
        """
        slots = {f"address {address}": self._limits.per_address}
        if person is not None:
            slots[f"user {person}"] = self._limits.per_user
        if any(self._taken.get(name, 0) >= most for name, most in slots.items()):
            detail = "So many streams are open already from here; close some, or share one."
            raise Problem(429, "too-many-streams", detail, headers={"Retry-After": "30"})
        for name in slots:
            self._taken[name] = self._taken.get(name, 0) + 1
        return tuple(slots)

    def free(self, slots: Iterable[str]) -> None:
        for name in slots:
            self._taken[name] -= 1
            if not self._taken[name]:
                del self._taken[name]

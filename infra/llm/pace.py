"""How often a language model is called: a token bucket whose callers wait for their turn.

The bucket is kept as the time at which the next call is due (the generic cell rate algorithm).
https://www.rfc-editor.org/rfc/rfc2697 has the bucket, ITU-T I.371 the algorithm.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from infra.llm.errors import TooManyCalls

# Sums of fractions of a second are not exact; nobody is turned away for that.
ROUNDING = 0.000_001


class Pace:
    """So many calls a minute; a second's worth of them (one at least) may be made at once.

    To be used from one event loop; turns are given in the order of asking.
    """

    def __init__(self, calls_per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 60.0 / calls_per_minute
        self._burst = max(1.0, calls_per_minute / 60.0) * self._interval
        self._clock = clock
        self._due = clock()

    async def turn(self, most: float) -> None:
        """Return when a call may be made; TooManyCalls at once when not within `most` seconds."""
        pause = self._reserve(most)
        if pause > 0:
            await asyncio.sleep(pause)

    def _reserve(self, most: float) -> float:
        now = self._clock()
        due = max(self._due, now)
        pause = max(due + self._interval - self._burst - now, 0.0)
        if pause > most + ROUNDING:
            raise TooManyCalls(
                "More calls of the language model wait than LLM_CALLS_PER_MINUTE lets through.",
                retry_after=pause - most,
            )
        self._due = due + self._interval
        return pause

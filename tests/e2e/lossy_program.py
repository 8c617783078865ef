"""The program, whose waits lose cancellations as those of Python 3.11 do, each task's first two.

Run as `python -m tests.e2e.lossy_program up`. It tells on standard error what was lost,
and before each wait how many others are in it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from backlot.cli import main
from engine.subscription import Notifications, woken
from readapi.live import LiveVideos
from workers import sources

LOSSES = 2
_lost: Counter[asyncio.Task[Any] | None] = Counter()
_waiting: Counter[str] = Counter()


def losing(work: Callable[..., Any]) -> Callable[..., Any]:
    """A coroutine that returns instead of raising a cancellation that may be lost."""

    async def lossy(*args: Any, **kwargs: Any) -> Any:
        name = work.__qualname__
        sys.stderr.write(f"waits with {_waiting[name]} in {name}\n")
        _waiting[name] += 1
        try:
            return await work(*args, **kwargs)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if _lost[task] >= LOSSES:
                raise
            _lost[task] += 1
            sys.stderr.write(f"lost by {name}\n")
        finally:
            _waiting[name] -= 1

    return lossy


if __name__ == "__main__":
    with (
        patch.object(sources, "woken", losing(woken)),
        patch.object(Notifications, "_listen", losing(Notifications._listen)),
        patch.object(LiveVideos, "_look", losing(LiveVideos._look)),
    ):
        main()

"""A progress bar for work whose size is known only once it has begun."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from backlot.screen import Act, Screen


class LateBar:
    """Shows nothing until `begin` says how many events there are."""

    def __init__(self, screen: Screen, title: str) -> None:
        self._screen, self._title = screen, title
        self._stack = ExitStack()
        self._act: Act | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def begin(self, total: int, done: int = 0) -> None:
        """So many events in all, of which an earlier run has done some."""
        if done:
            self._screen.say(f"{self._title}: going on after {done:,} events")
        if total > done:
            act = self._screen.act(self._title, total - done, "events")
            self._act = self._stack.enter_context(act)

    def advance(self, steps: int) -> None:
        if self._act is not None and steps:
            self._act.advance(steps)

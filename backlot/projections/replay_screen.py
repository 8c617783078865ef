"""What a replay shows of itself on standard error: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, TaskProgressColumn

from backlot.screen import bar, said
from projections.replaying import progress as replay_progress

QUARTERS = 4
LINE_SECONDS = 30.0


class ReplayScreen:
    """Hears of a replay's progress; to be used as a context manager."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = Console(stderr=True)
        self._bar = Progress(
            said("{task.description}"),
            *bar(self._console),
            TaskProgressColumn(),
            said("{task.fields[told]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=None, told="")
        self._told: tuple[str, int] | None = None
        self._told_at = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: replay_progress.Progress) -> None:
        described, told = f"{self._title}: {progress.state}", describe(progress)
        if self._console.is_terminal:
            self._bar.update(
                self._task,
                description=described,
                total=progress.target,
                completed=progress.position,
                told=told,
            )
            return
        quarter = progress.position * QUARTERS // max(progress.target, 1)
        long_ago = time.monotonic() - self._told_at > LINE_SECONDS
        if (progress.state, quarter) != self._told or long_ago:
            self._told, self._told_at = (progress.state, quarter), time.monotonic()
            self.say(f"{described}, position {progress.position}/{progress.target}, {told}")

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Leave the terminal to somebody else meanwhile."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()

    def say(self, text: str) -> None:
        """One line, above the bar if there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def describe(progress: replay_progress.Progress) -> str:
    """Events, positions per second and remaining time in words."""
    words = [f"{progress.events:,} events", f"{progress.rate:,.0f}/s"]
    if progress.eta_seconds is not None:
        minutes, seconds = divmod(round(progress.eta_seconds), 60)
        hours, minutes = divmod(minutes, 60)
        words.append(f"{hours}:{minutes:02}:{seconds:02} left")
    return ", ".join(words)

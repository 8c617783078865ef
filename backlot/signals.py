"""Ctrl-C and SIGTERM: the first asks what runs to stop, a second Ctrl-C ends the process at once.

A handler does no more than write to a pipe: an exception raised wherever the program happens to be
may be lost (in a `__del__`, in a callback) or cut a clean-up in two, and a lock taken there may be
held already. A thread reads the pipe, tells whoever runs, and watches the deadline.

Python runs a handler only where the main thread comes by: one that begins to wait just as the
signal comes may wait for ever. So Python's wake-up descriptor, which is written to at once, tells
the thread as well, and of the two the one that has told of more signals is believed.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, Self, TypeVar

import structlog

from infra.errors import ExitCode

log = structlog.get_logger(__name__)

T = TypeVar("T")

STOPS = (signal.SIGINT, signal.SIGTERM)
# Longer than anything that runs may take to stop: what is not done by then never will be.
STOP_SECONDS = 60.0
SHOW_CURSOR = b"\x1b[?25h"
# Added to a signal's number by the handler: those of the wake-up descriptor come as they are.
HANDLED = 128

_last_words: list[Callable[[], object]] = []


@contextmanager
def last_word(word: Callable[[], object]) -> Iterator[None]:
    """Have `word` said before this process is ended by force within the block.

    It may neither wait nor take a lock: what it is about may hang.
    """
    _last_words.append(word)
    try:
        yield
    finally:
        _last_words.remove(word)


class Stop:
    """The wish that this process stops, for as long as the block runs.

    `ask` is called once, in another thread. A second Ctrl-C, or a stop that takes longer than
    `seconds`, ends the process as it stands. Signals count also where the process was started
    with them ignored, as a shell does behind `&`: nobody sends one by chance. Outside of the main
    thread, which signals go to, nobody ever asks.
    """

    def __init__(
        self,
        ask: Callable[[], object] = lambda: None,
        *,
        numbers: Sequence[signal.Signals] = (signal.SIGINT,),
        seconds: float = STOP_SECONDS,
        raises: bool = False,
    ) -> None:
        """`raises`: the first also raises KeyboardInterrupt in the main thread."""
        self.asked = False
        self._ask, self._numbers, self._seconds = ask, numbers, seconds
        self._raises = raises
        self._raised = False
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        self._earlier = {number: signal.signal(number, self._handle) for number in self._numbers}
        self._woken = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        if (outer := self._outer) is not None and outer.asked:
            # Its KeyboardInterrupt was lost on the way here.
            self.note(signal.SIGINT)
        return self

    def __exit__(self, *_: object) -> None:
        if self._earlier:
            signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        if not self.asked:
            if self._earlier:
                os.close(self._write)
        elif (outer := self._outer) is not None and not outer.asked:
            # What is left to do is to end: the next Ctrl-C is the second one there too.
            outer.note(signal.SIGINT)

    def note(self, number: int) -> None:
        """Take a signal as received, and as told of by both."""
        self.asked = True
        os.write(self._write, bytes([number, number + HANDLED]))

    @property
    def _outer(self) -> Stop | None:
        """Whose block this one is in."""
        owners = (getattr(handler, "__self__", None) for handler in self._earlier.values())
        return next((owner for owner in owners if isinstance(owner, Stop)), None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        os.write(self._write, bytes([number + HANDLED]))
        if self._raises and not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def _watch(self) -> None:
        told = [0, 0]
        if self._hear(told) is None:
            os.close(self._read)
            return
        self.asked = True
        deadline = time.monotonic() + self._seconds
        try:
            self._ask()
        except Exception:
            # Such as that the loop is closed: then it is ending already.
            log.exception("stop_not_told")
        while select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if self._hear(told) == signal.SIGINT and max(told) > 1:
                _end(ExitCode.INTERRUPTED)
        threads = sorted(thread.name for thread in threading.enumerate())
        log.error("stop_overdue", kind="process", seconds=self._seconds, threads=threads)
        _end(ExitCode.OVERDUE)

    def _hear(self, told: list[int]) -> int | None:
        """Wait for a signal, and count it in `told`; None once nobody can ask any more."""
        while byte := os.read(self._read, 1):
            teller, number = divmod(byte[0], HANDLED)
            # Every signal that has a handler of Python's comes to the wake-up descriptor.
            if teller or number in self._numbers:
                told[teller] += 1
                return number
        return None


def run(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, run on an event loop of its own.

    Ctrl-C cancels it until it is done; raises KeyboardInterrupt then.
    """
    task = asyncio.run(_heeding(work))
    if task is None:
        raise KeyboardInterrupt
    return task.result()


async def _heeding(work: Coroutine[Any, Any, T]) -> asyncio.Task[T] | None:
    """Return the finished task of `work`; None when Ctrl-C ended it."""
    from infra.cancellation import cancel

    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    task = asyncio.ensure_future(work)
    asking = asyncio.ensure_future(asked.wait())
    with Stop(lambda: loop.call_soon_threadsafe(asked.set)):
        await asyncio.wait({task, asking}, return_when=asyncio.FIRST_COMPLETED)
        await cancel(asking, task)
    return None if task.cancelled() or not task.done() else task


def _end(code: int) -> NoReturn:
    for word in _last_words:
        word()
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), SHOW_CURSOR)
    os._exit(code)

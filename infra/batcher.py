"""Batches: what arrives while one is under way makes up the next one.

A `Batcher` processes items in a thread of its own, `Batches` ask a database or Redis from the event
loop, and a `BatchLoader` reads values by their keys. One batch is under way at a time, so that each
answer is as new as its question.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Generic, TypeVar

# Under load a batch waits for those who were just answered: until all have come back, or as long
# as it takes to tell so many, but no longer than a commit. A lone client waits for nobody.
GATHER_SECONDS_EACH = 0.00004
MOST_GATHER_SECONDS = 0.002
# After a batch of several, the next begins so much later than that one did: a batch costs a
# millisecond or two, however much is in it. It begins sooner where as many wait again as did
# before: else a few clients that wait for their answers would be slowed down.
PACE_SECONDS = 0.01

MOST = 64
"""So many questions are asked at once, where nothing else is said."""

T = TypeVar("T")
R = TypeVar("R")
Q = TypeVar("Q")
A = TypeVar("A")
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Again:
    """Stands for the result of an item that the next batch begins with."""


AGAIN: Final = Again()


class QueueFull(Exception):
    """More work waits than may; the caller should come back later."""


class NotBegun(QueueFull):
    """Nothing was done about it, since the work before it met an outage; come back later."""


class Batcher(Generic[T, R]):
    """Hands items, in the order of their arrival, to `process` in one thread, batch by batch.

    `process` gets 1 to `max_batch` items and returns for each its result, the exception that its
    submitter shall see, or AGAIN: that item is in the next batch, and the others' submitters need
    not wait for it. An exception that `process` raises goes to the whole batch. Where one is among
    the `outages`, who already waits is told NotBegun: the next batch would only take as long
    to find the same. To be used from one event loop.
    """

    def __init__(
        self,
        process: Callable[[Sequence[T]], Sequence[R | BaseException | Again]],
        *,
        name: str,
        max_batch: int,
        max_waiting: int,
        outages: tuple[type[Exception], ...] = (),
    ) -> None:
        self._process = process
        self._outages = outages
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._gathering: asyncio.TimerHandle | None = None
        self._expected = 0
        self._began = float("-inf")
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def submit(self, item: T) -> R:
        """Return the result of `item` once its batch is done; raise QueueFull when too many wait.

        Work that was submitted is done even when the submitter goes away.
        """
        if self._closed or len(self._waiting) >= self._max_waiting:
            raise QueueFull
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, future))
        if self._idle.is_set():
            self._idle.clear()
            # Not at once: what arrives in the same turn of the loop shares the batch.
            loop.call_soon(self._start, loop)
        elif self._gathering is not None and len(self._waiting) >= self._expected:
            self._start(loop)
        return await future

    async def close(self) -> None:
        """Take nothing more, and return when what waits is done."""
        self._closed = True
        if self._gathering is not None:
            self._start(asyncio.get_running_loop())
        await self._idle.wait()
        self._thread.shutdown()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if self._waiting:
            self._began = loop.time()
            self._thread.submit(self._work, loop)
        else:
            self._idle.set()

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        # Taken only now: what arrived while the thread woke up shares the batch.
        size = min(len(self._waiting), self._max_batch)
        batch = [self._waiting.popleft() for _ in range(size)]
        results: Sequence[R | BaseException | Again]
        try:
            results = self._process([item for item, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(batch)} items in, {len(results)} results out")
        except Exception as error:  # noqa: BLE001 - it belongs to those who submitted
            results = [error] * len(batch)
        loop.call_soon_threadsafe(self._finish, batch, results, loop)

    def _finish(
        self,
        batch: list[tuple[T, asyncio.Future[R]]],
        results: Sequence[R | BaseException | Again],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        answered, again = 0, list[tuple[T, asyncio.Future[R]]]()
        for (item, future), result in zip(batch, results, strict=True):
            if isinstance(result, Again):
                again.append((item, future))
                continue
            if future.done():
                continue
            answered += 1
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
        self._waiting.extendleft(reversed(again))
        if any(isinstance(result, self._outages) for result in results):
            while self._waiting:
                _, waiter = self._waiting.popleft()
                if not waiter.done():
                    waiter.set_exception(NotBegun())
        # What those ask next who were just answered shares the batch.
        self._expected = min(len(self._waiting) + answered, self._max_batch)
        if self._closed or len(self._waiting) >= self._expected:
            self._start(loop)
        else:
            gather = min(GATHER_SECONDS_EACH * answered, MOST_GATHER_SECONDS)
            if len(batch) > 1:
                gather = max(gather, self._began + PACE_SECONDS - loop.time())
            self._gathering = loop.call_later(gather, self._start, loop)


class Batches(Generic[Q, A]):
    """Asks what callers want to know meanwhile with one call; for one event loop.

    A busy process pays for a round trip once per batch, an idle one answers at once.
    """

    def __init__(
        self, ask_all: Callable[[Sequence[Q]], Awaitable[Sequence[A]]], most: int = MOST
    ) -> None:
        """`ask_all` answers so many questions at most, in their order."""
        self._ask_all = ask_all
        self._most = most
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """Return the answer to a question, asked after this call; its failure is shared."""
        return await self._put(question)

    def _put(self, question: Q) -> asyncio.Future[A]:
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._answer_all())
        return answer

    def _next(self) -> list[tuple[Q, asyncio.Future[A]]]:
        """Take the next batch from those who wait."""
        batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        return batch

    async def _answer_all(self) -> None:
        """Answer as long as somebody waits; who comes meanwhile, is next."""
        batch: list[tuple[Q, asyncio.Future[A]]] = []
        try:
            while self._waiting:
                batch = self._next()
                try:
                    answers = await self._ask_all([question for question, _ in batch])
                except Exception as error:  # noqa: BLE001 - each caller is told
                    _fail(batch, error)
                else:
                    for (_, waits), answer in zip(batch, answers, strict=True):
                        if not waits.done():
                            waits.set_result(answer)
        except BaseException as error:
            # The process ends: nobody may wait for ever.
            while self._waiting:
                batch += self._next()
            _fail(batch, error)
            raise
        finally:
            self._task = None


class BatchLoader(Batches[K, V]):
    """Values that are read by key; who asks for one that somebody waits for shares it."""

    def __init__(
        self, read: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]], most: int = MOST
    ) -> None:
        """`read` gets so many keys at most, and returns the value of each."""

        async def read_all(keys: Sequence[K]) -> list[V]:
            found = await read(keys)
            return [found[key] for key in keys]

        super().__init__(read_all, most)
        self._wanted: dict[K, asyncio.Future[V]] = {}

    def load(self, key: K) -> asyncio.Future[V]:
        """Return the value to come, which several callers may wait for: shield it."""
        wanted = self._wanted.get(key)
        if wanted is None:
            wanted = self._wanted[key] = self._put(key)
        return wanted

    async def ask(self, question: K) -> V:
        """Return the value; raise what `read` raises."""
        return await asyncio.shield(self.load(question))

    def _next(self) -> list[tuple[K, asyncio.Future[V]]]:
        batch = super()._next()
        for key, _ in batch:
            del self._wanted[key]
        return batch


def _fail(waiting: Sequence[tuple[object, asyncio.Future[A]]], error: BaseException) -> None:
    for _, waits in waiting:
        if not waits.done():
            waits.set_exception(error)
            # It is raised where somebody waits; asyncio must not complain where nobody does.
            waits.exception()

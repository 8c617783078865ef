"""Questions of many callers that are asked as one, of a database or of Redis.

One batch is under way at a time. Who asks meanwhile is in the next one, so that each answer is as
new as its question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MOST = 64


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

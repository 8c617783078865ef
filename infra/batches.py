"""Questions of many callers that are asked as one: of a database, or of Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")

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
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._answer_all())
        return await answer

    async def _answer_all(self) -> None:
        """Answer as long as somebody waits; who comes meanwhile, is next."""
        batch: list[tuple[Q, asyncio.Future[A]]] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
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
            _fail([*batch, *self._waiting], error)
            self._waiting = []
            raise
        finally:
            self._task = None


def _fail(waiting: Sequence[tuple[object, asyncio.Future[A]]], error: BaseException) -> None:
    for _, waits in waiting:
        if not waits.done():
            waits.set_exception(error)
            # It is raised where somebody waits; asyncio must not complain where nobody does.
            waits.exception()

"""Many clients at once, who remember what was acknowledged to them and repeat what was not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx

from backlot.demo.client import Lanes
from tests.e2e.program import Program
from tests.support import DEADLINE_SECONDS

RETRY_SECONDS = 0.05


@dataclass(eq=False)
class Request:
    """One command, and its answer once there is one."""

    user: str
    method: str
    path: str
    body: dict[str, Any] | None = None
    key: str | None = None
    answer: httpx.Response | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"Idempotency-Key": self.key} if self.key else {}


class Clients:
    """Sends requests as whoever they belong to."""

    def __init__(self, program: Program, http: httpx.AsyncClient) -> None:
        self._program, self._http = program, http

    async def send(self, request: Request) -> httpx.Response:
        """The answer, whatever it is; raises httpx.TransportError when none comes."""
        token = self._program.token(request.user)
        headers = {"Authorization": f"Bearer {token}", **request.headers}
        return await self._http.request(
            request.method, request.path, headers=headers, json=request.body
        )


def together(
    program: Program, requests: Iterable[Request], *, connections: int = 64
) -> list[httpx.Response]:
    """Send all requests, as many at once as there are connections; their answers, in order."""

    async def run() -> list[httpx.Response]:
        at_once = asyncio.Semaphore(connections)

        async def one(request: Request) -> httpx.Response:
            async with at_once:
                return await clients.send(request)

        async with _http(program, connections) as http:
            clients = Clients(program, http)
            return await asyncio.gather(*map(one, requests))

    return asyncio.run(run())


@dataclass
class Load:
    """Comments, likes and toggles on one video, each of a text or a viewer of its own."""

    program: Program
    video: str
    workers: int = 12
    sent: list[Request] = field(default_factory=list)
    refusals: list[httpx.Response] = field(default_factory=list)

    @property
    def acknowledged(self) -> list[Request]:
        return [request for request in self.sent if request.answer is not None]

    def run_until_killed(self, kill: Callable[[], None], *, after: int) -> None:
        """Kill the program once `after` commands were acknowledged; those under way get lost."""
        asyncio.run(self._run(kill, after=after, then=0, seconds=30))

    def run_through(self, kill: Callable[[], None], *, after: int, then: int) -> None:
        """Kill something that comes back, and go on until `then` more were acknowledged."""
        asyncio.run(self._run(kill, after=after, then=then, seconds=60))

    async def _run(
        self, kill: Callable[[], None], *, after: int, then: int, seconds: float
    ) -> None:
        deadline = time.monotonic() + seconds
        numbers, stopping = count(), asyncio.Event()
        async with _http(self.program, self.workers) as http:
            clients = Clients(self.program, http)
            workers = [
                asyncio.create_task(self._work(clients, numbers, stopping))
                for _ in range(self.workers)
            ]
            await self._reach(after, workers, deadline)
            kill()
            if then:
                await self._reach(len(self.acknowledged) + then, workers, deadline)
            else:
                await asyncio.wait(workers, timeout=seconds)
            stopping.set()
            await asyncio.gather(*workers)

    async def _reach(self, goal: int, workers: list[asyncio.Task[None]], deadline: float) -> None:
        while len(self.acknowledged) < goal:
            assert time.monotonic() < deadline, f"{len(self.acknowledged)} of {goal} in time"
            assert not all(worker.done() for worker in workers), "nobody works any more"
            await asyncio.sleep(0.005)

    async def _work(
        self, clients: Clients, numbers: Iterable[int], stopping: asyncio.Event
    ) -> None:
        for number in numbers:
            if stopping.is_set():
                return
            request = self._make(number)
            self.sent.append(request)
            try:
                await self._insist(clients, request)
            except httpx.TransportError:
                return

    async def _insist(self, clients: Clients, request: Request) -> None:
        while request.answer is None:
            answer = await clients.send(request)
            if answer.is_success:
                request.answer = answer
            else:
                self.refusals.append(answer)
                await asyncio.sleep(RETRY_SECONDS)

    def _make(self, number: int) -> Request:
        path, user = f"/videos/{self.video}", f"viewer-{number}"
        if number % 3 == 0:
            body = {"content": f"comment {number}"}
            return Request(user, "POST", f"{path}/comments", body, key=f"comment-{number}")
        if number % 3 == 1:
            return Request(user, "PUT", f"{path}/like")
        return Request(user, "POST", f"{path}/like", key=f"toggle-{number}")


def _http(program: Program, connections: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=program.url, transport=Lanes(connections), timeout=DEADLINE_SECONDS
    )

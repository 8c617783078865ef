"""Load on a server: keep-alive connections that each send the next request after an answer.

Runs in a process of its own, and does so little per request that the server is what is measured.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice, repeat
from operator import add
from typing import Any

import uvloop

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
HEAD_END = b"\r\n\r\n"
# 200 or 201.
OK = b"HTTP/1.1 20"
# However fast the server is, no more than this; and no answer may take longer.
MOST_REQUESTS = 2_000_000
ANSWER_SECONDS = 30.0
SLICE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Order:
    """What to send, to where, for how long; `paths` and `tokens`, if any, combined at random.

    `addresses`, if any, are those of the tokens, as a proxy tells them; `body` is JSON. With a
    `pace`, all connections together send so many requests a second, and no more; 0: as many as are
    answered. `once`: nothing twice; as many requests as there are paths, or tokens if these are
    more, unless the time is over before.
    """

    port: int
    paths: list[str]
    tokens: list[str]
    seed: int
    warmup_seconds: float
    seconds: float
    connections: int = 64
    method: str = "POST"
    addresses: Sequence[str] = ()
    body: str = ""
    pace: float = 0.0
    once: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What came back: requests/s and latencies (ms) after the warm-up, and all answers counted.

    `slices` are the answers of each SLICE_SECONDS from `measured_from` on, by `time.perf_counter`.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    answered: int
    cpu_share: float
    measured_from: float
    slices: list[int]


class BadAnswer(Exception):
    """The server answered with something else than success, or went away."""


class Load:
    """The requests still to be sent, and the measured latencies."""

    def __init__(self, order: Order) -> None:
        told = [f"X-Forwarded-For: {address}\r\n" for address in order.addresses] or repeat("")
        tails = [
            f"{address}Authorization: Bearer {token}\r\n\r\n{order.body}".encode()
            for address, token in zip(told, order.tokens, strict=False)
        ]
        tails = tails or [b"\r\n"]
        about = f"Host: 127.0.0.1\r\nContent-Length: {len(order.body.encode())}\r\n"
        if order.body:
            about += "Content-Type: application/json\r\n"
        self._heads = [
            f"{order.method} {path} HTTP/1.1\r\n{about}".encode() for path in order.paths
        ]
        self._tails = tails
        chance = random.Random(order.seed)
        self._random = chance.random
        self._left: Iterator[bytes] | None = self._each(chance) if order.once else None
        self._interval = 1 / order.pace if order.pace else 0.0
        self._due = time.perf_counter()
        self.measure_from = time.perf_counter() + order.warmup_seconds
        self.end = self.measure_from + order.seconds
        self.latencies, self.ends = array("d"), array("d")
        self.answered = 0
        self.open = order.connections
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def next_request(self, now: float) -> bytes | None:
        """A request, or None when it is enough."""
        if now >= self.end or self.answered >= MOST_REQUESTS:
            return None
        if self._left is not None:
            if (request := next(self._left, None)) is None:
                self.end = now
            return request
        head = self._heads[int(self._random() * len(self._heads))]
        return head + self._tails[int(self._random() * len(self._tails))]

    def _each(self, chance: random.Random) -> Iterator[bytes]:
        heads, tails = (chance.sample(each, len(each)) for each in (self._heads, self._tails))
        most = max(len(heads), len(tails))
        return map(add, islice(cycle(heads), most), cycle(tails))

    def pause(self) -> float:
        """In how many seconds the next request is due."""
        if not self._interval:
            return 0.0
        self._due += self._interval
        return self._due - time.perf_counter()

    def took(self, started: float, ended: float) -> None:
        self.answered += 1
        # Of a server that is that slow, what comes first counts also when it comes late.
        if self.measure_from <= ended and (ended <= self.end or not self.latencies):
            self.latencies.append(ended - started)
            self.ends.append(ended)

    def closed(self, error: Exception | None) -> None:
        """One connection has ended; the load is over with the last one, or with an error."""
        self.open -= 1
        if self.done.done():
            return
        if error is not None:
            self.done.set_exception(error)
        elif self.open == 0:
            self.done.set_result(None)


class Connection(asyncio.Protocol):
    """One client: sends, waits for the whole answer, sends again."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""
        self._started = 0.0
        self._transport: Any = None
        self._finished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send_when_due()

    def data_received(self, data: bytes) -> None:
        self._received = received = self._received + data if self._received else data
        end = received.find(HEAD_END)
        if end < 0:
            return
        length = CONTENT_LENGTH.search(received, 0, end + 2)
        if not received.startswith(OK) or length is None:
            self._finish(BadAnswer(received[:500].decode(errors="replace")))
        elif len(received) >= end + len(HEAD_END) + int(length[1]):
            self._received = b""
            self._load.took(self._started, time.perf_counter())
            self._send_when_due()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(exc or BadAnswer("The server closed the connection."))

    def _send_when_due(self) -> None:
        if (pause := self._load.pause()) > 0:
            asyncio.get_running_loop().call_later(pause, self._send)
        else:
            self._send()

    def _send(self) -> None:
        if self._finished:
            return
        self._started = time.perf_counter()
        request = self._load.next_request(self._started)
        if request is None:
            self._finish(None)
        else:
            self._transport.write(request)

    def _finish(self, error: Exception | None) -> None:
        if not self._finished:
            self._finished = True
            self._transport.close()
            self._load.closed(error)


async def run(order: Order) -> Report:
    """Load the server as ordered. Raises BadAnswer, or TimeoutError when it hangs."""
    loop = asyncio.get_running_loop()
    load = Load(order)
    for _ in range(order.connections):
        await loop.create_connection(lambda: Connection(load), "127.0.0.1", order.port)
    cpu, began = time.process_time(), time.perf_counter()
    limit = order.warmup_seconds + order.seconds + ANSWER_SECONDS
    await asyncio.wait_for(load.done, limit)
    share = (time.process_time() - cpu) / (time.perf_counter() - began)
    taken = sorted(load.latencies)
    if not taken:
        raise BadAnswer("Nothing was answered after the warm-up.")
    return Report(
        rate=len(taken) / (load.end - load.measure_from),
        p50_ms=taken[len(taken) // 2] * 1000,
        p99_ms=taken[len(taken) * 99 // 100] * 1000,
        answered=load.answered,
        cpu_share=share,
        measured_from=load.measure_from,
        slices=_slices(load, order.seconds),
    )


def _slices(load: Load, seconds: float) -> list[int]:
    found = Counter(int((ended - load.measure_from) / SLICE_SECONDS) for ended in load.ends)
    return [found[number] for number in range(int(seconds / SLICE_SECONDS))]


if __name__ == "__main__":
    report = uvloop.run(run(Order(**json.load(sys.stdin))))
    print(json.dumps(asdict(report)))

"""Completing uploads over HTTP: alone, with rivals for the same one, and many at a time."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import uvloop

from benchmarks.bench import Bench, medians
from benchmarks.processes import ProcessFailed, Served, serving
from benchmarks.results import Comparison, Side
from infra.http.auth import mint_token

CONTENT = bytes(64 * 1024)
AT_ONCE = 16
HEAD_END = b"\r\n\r\n"

Round = tuple[float, dict[str, float]]


class Line:
    """One keep-alive connection; a request costs its sender next to nothing."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def post(self, path: str, token: str) -> float:
        """Seconds until the whole answer was there. Raises ProcessFailed unless it is 200."""
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n"
        started = time.perf_counter()
        self._writer.write(f"{head}Authorization: Bearer {token}\r\n\r\n".encode())
        answer = await self._reader.readuntil(HEAD_END)
        _, _, rest = answer.lower().partition(b"\r\ncontent-length:")
        body = await self._reader.readexactly(int(rest.partition(b"\r\n")[0]))
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise ProcessFailed(f"A completion was refused: {body.decode(errors='replace')}")
        return time.perf_counter() - started

    def close(self) -> None:
        self._writer.close()


@dataclass(frozen=True)
class Site:
    """The server, and whoever owns the uploads."""

    served: Served
    token: str

    def uploads(self, count: int) -> list[str]:
        """Paths that complete so many new uploads, each of one part that has arrived."""
        headers = {"Authorization": f"Bearer {self.token}"}
        url = f"http://127.0.0.1:{self.served.port}"
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
            return [f"/uploads/{_upload(client)}/complete" for _ in range(count)]

    def with_rivals(self, rivals: int, uploads: int) -> Round:
        """p50 in ms of all answers when so many others complete the same upload; p99 beside it."""
        taken = sorted(uvloop.run(self._race(self.uploads(uploads), rivals + 1)))
        p99 = taken[len(taken) * 99 // 100] * 1000
        return taken[len(taken) // 2] * 1000, {"p99 ms": p99}

    def different(self, at_once: int, uploads: int) -> Round:
        """Uploads completed per second when so many different ones are completed at once."""
        paths = self.uploads(uploads)
        return uploads / uvloop.run(self._rush(paths, at_once)), {}

    async def _race(self, paths: list[str], rivals: int) -> list[float]:
        lines = [await self._line() for _ in range(rivals)]
        taken: list[float] = []
        for path in paths:
            taken += await asyncio.gather(*(line.post(path, self.token) for line in lines))
        for line in lines:
            line.close()
        return taken

    async def _rush(self, paths: list[str], at_once: int) -> float:
        lines = [await self._line() for _ in range(at_once)]
        rest = iter(paths)
        started = time.perf_counter()
        await asyncio.gather(*(self._work(line, rest) for line in lines))
        seconds = time.perf_counter() - started
        for line in lines:
            line.close()
        return seconds

    async def _work(self, line: Line, rest: Iterator[str]) -> None:
        for path in rest:
            await line.post(path, self.token)

    async def _line(self) -> Line:
        return Line(*await asyncio.open_connection("127.0.0.1", self.served.port))


def _upload(client: httpx.Client) -> str:
    details = {"title": "Rain", "filename": "rain.mp4", "contentType": "video/mp4"}
    answer = client.post("/uploads", json={**details, "sizeBytes": len(CONTENT)})
    started = answer.raise_for_status().json()
    client.put(started["parts"][0]["url"], content=CONTENT).raise_for_status()
    return str(started["uploadId"])


def run(bench: Bench) -> list[Comparison]:
    """Uploads of one 64 KiB part into the folder store, with the embedded Redis for their locks."""
    secret = secrets.token_urlsafe(32)
    settings = {
        "DATABASE_URL": bench.database(),
        "JWT_SECRET": secret,
        "BACKLOT_DATA_DIR": "data",
        "LOG_LEVEL": "warning",
    }
    folder = bench.folder / "finalize"
    with serving("server", folder, health="/readyz", settings=settings) as served:
        site = Site(served, mint_token(secret, "owner", []))
        alone, many = bench.size(100, 3), bench.size(300, 10)
        measured = bench.interleave(
            bench.size(3, 1),
            {
                "no rival": lambda _: site.with_rivals(0, alone),
                "1 rival": lambda _: site.with_rivals(1, alone),
                "50 rivals": lambda _: site.with_rivals(50, bench.size(20, 1)),
                "one at a time": lambda _: site.different(1, alone),
                f"{AT_ONCE} at once": lambda _: site.different(AT_ONCE, many),
            },
        )
    sides = {name: _side(f"finalize, {name}", rounds) for name, rounds in measured.items()}
    return [
        Comparison("finalize, p50", "ms", sides["1 rival"], sides["no rival"]),
        Comparison("finalize, p50", "ms", sides["50 rivals"], sides["no rival"]),
        Comparison(
            "finalize, different uploads",
            "uploads/s",
            sides[f"{AT_ONCE} at once"],
            sides["one at a time"],
        ),
    ]


def _side(name: str, rounds: list[Round]) -> Side:
    return Side(name, [value for value, _ in rounds], medians([notes for _, notes in rounds]))

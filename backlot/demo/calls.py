"""The demo's HTTP client: one per person, each reading its own writes, all of them measured."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx

from infra.errors import OperatorError

ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0
# What a repeat may mend: no answer at all, and a part that is down for a moment.
PASSING = (None, httpx.codes.SERVICE_UNAVAILABLE)
# Longer than the server's default: a busy machine is no reason to fail a demo.
WAIT_MS = "20000"


class DemoFailed(OperatorError):
    """The demo cannot be played; the text says what to do."""


class CallFailed(Exception):
    """A call did not succeed, however often it was tried; `status` is None without an answer."""

    def __init__(self, call: str, problem: str, status: int | None = None) -> None:
        super().__init__(f"{call}: {problem}")
        self.status = status


@dataclass
class Meter:
    """What was asked of the server, and how it went; durations in seconds."""

    requests: int = 0
    durations: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def percentile_ms(self, share: float) -> float:
        """The duration that `share` (0 to 1) of the API calls did not exceed, in ms."""
        if not self.durations:
            return 0.0
        ordered = sorted(self.durations)
        return 1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)]


class Person:
    """One user of the server: a token, and how far in the log they have written."""

    def __init__(self, http: httpx.AsyncClient, meter: Meter, name: str, token: str) -> None:
        self.name = name
        self.position: str | None = None
        self._http = http
        self._meter = meter
        self._authorization = {"Authorization": f"Bearer {token}"}

    async def command(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Do something; a repeat after an outage carries the same key, so it counts once."""
        headers = {**self._authorization}
        if method == "POST":
            headers["Idempotency-Key"] = str(uuid4())
        answer = await self._call(method, path, headers, json=body)
        self.position = answer.headers.get("Backlot-Position", self.position)
        return _object(answer)

    async def query(self, path: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Read, and see at least everything that this person has done."""
        headers = {**self._authorization}
        if self.position is not None:
            headers |= {"Backlot-Min-Position": self.position, "Backlot-Timeout-Ms": WAIT_MS}
        return _object(await self._call("GET", path, headers, params=params))

    async def all(self, path: str) -> list[dict[str, Any]]:
        """Every item of a list, page by page."""
        items: list[dict[str, Any]] = []
        params: dict[str, Any] | None = {"limit": 100}
        while params is not None:
            page = await self.query(path, params)
            items += page["items"]
            following = page.get("nextCursor")
            params = {"limit": 100, "cursor": following} if following else None
        return items

    async def bytes(
        self, method: str, url: str, *, content: bytes | None = None, byte_range: str | None = None
    ) -> httpx.Response:
        """Send or fetch media: the URL is the permission. Not part of the measured calls."""
        headers = {"Range": byte_range} if byte_range else {}
        return await self._call(method, url, headers, timed=False, content=content)

    async def _call(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        *,
        timed: bool = True,
        **options: Any,
    ) -> httpx.Response:
        request = self._http.build_request(method, url, headers=headers, **options)
        call = f"{method} {request.url.path}"
        attempt = 1
        while True:
            try:
                answer = await self._send(request, timed)
            except httpx.TransportError as error:
                failure = CallFailed(call, f"{type(error).__name__} {error}".strip())
                pause = FIRST_PAUSE_SECONDS * attempt
            else:
                if answer.is_success:
                    return answer
                failure = CallFailed(call, _problem(answer), answer.status_code)
                pause = _pause(answer, attempt)
            self._meter.errors[str(failure)] += 1
            if attempt == ATTEMPTS or failure.status not in PASSING:
                raise failure
            await asyncio.sleep(pause)
            attempt += 1

    async def _send(self, request: httpx.Request, timed: bool) -> httpx.Response:
        self._meter.requests += 1
        started = time.perf_counter()
        answer = await self._http.send(request)
        if timed:
            self._meter.durations.append(time.perf_counter() - started)
        return answer


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError as error:
        raise CallFailed(answer.request.url.path, "the answer is not JSON") from error
    if not isinstance(found, dict):
        raise CallFailed(answer.request.url.path, "the answer is not a JSON object")
    return found


def _problem(answer: httpx.Response) -> str:
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = answer.reason_phrase
    return f"{answer.status_code} {detail}"


def _pause(answer: httpx.Response, attempt: int) -> float:
    wished = answer.headers.get("Retry-After", "")
    return min(
        float(wished) if wished.isdecimal() else FIRST_PAUSE_SECONDS * attempt,
        LONGEST_PAUSE_SECONDS,
    )

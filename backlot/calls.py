"""HTTP calls that outlive an outage: how often they are tried, and what is told when they fail."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from operator import attrgetter
from typing import Any

import httpx

from infra.errors import OperatorError

# What a repeat may mend: no answer at all, too slow, too many at once, a part that is down.
PASSING = frozenset({httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS})
XML_MESSAGE = re.compile(r"<Message>([^<]+)</Message>")


@dataclass(eq=False)
class CallFailed(Exception):
    """A call did not succeed; `status` is None without an answer.

    `members` are those of the problem that was answered, `told_pause` its Retry-After in seconds.
    """

    call: str
    problem: str
    status: int | None = None
    passing: bool = False
    members: Mapping[str, Any] = field(default_factory=dict)
    told_pause: float | None = None

    def __str__(self) -> str:
        return f"{self.call}: {self.problem}"

    @classmethod
    def unanswered(cls, call: str, error: httpx.TransportError) -> CallFailed:
        """Return the failure of a call that got no answer.

        A repeat may help, unless the request itself can't be sent.
        """
        ours = isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError))
        return cls(call, f"{type(error).__name__} {error}".strip(), passing=not ours)

    @classmethod
    def refused(cls, call: str, answer: httpx.Response) -> CallFailed:
        """Return the failure that an answer tells of, in the words of whoever answered."""
        status, members = answer.status_code, _members(answer)
        problem = f"{status} {members.get('detail') or _plain_reason(answer)}"
        passing = answer.is_server_error or status in PASSING
        return cls(call, problem, status, passing, members, _retry_after(answer))

    @property
    def slug(self) -> str:
        """The problem's type; empty where there is none."""
        return str(self.members.get("type", ""))


@dataclass(frozen=True)
class Patience:
    """How often a call is tried, and how long the pauses between are (seconds)."""

    attempts: int
    first: float
    longest: float
    longest_told: float

    def pause(self, attempt: int, told: float | None = None) -> float:
        """Return the wait after try `attempt` (from 1): doubling, spread, or what was `told`.

        Spread over the upper half, so that clients that failed together don't return together.
        """
        least, spread = min(told or 0.0, self.longest_told), self.first
        if told is None:
            least = spread = min(self.first * 2.0 ** min(attempt - 1, 60), self.longest) / 2
        return least + random.uniform(0, spread)  # noqa: S311 - keeps no secret


Note = Callable[[CallFailed, float | None], None]
"""Told of each failed try, and of the seconds until the next one; None: there is none."""


async def persist(
    call: str,
    send: Callable[[], Awaitable[httpx.Response]],
    patience: Patience,
    *,
    note: Note,
    again: Callable[[CallFailed], bool] = attrgetter("passing"),
) -> httpx.Response:
    """Return the first successful answer to `send`; `again` says whether another try may help.

    Raises the last CallFailed, and what `send` itself raises.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            answer = await send()
        except httpx.TransportError as error:
            failure = CallFailed.unanswered(call, error)
        else:
            if answer.is_success:
                return answer
            failure = CallFailed.refused(call, answer)
        pause = None
        if attempt < patience.attempts and again(failure):
            pause = patience.pause(attempt, failure.told_pause)
        note(failure, pause)
        if pause is None:
            raise failure
        await asyncio.sleep(pause)


class UserClient:
    """One user's calls to one server. Any call may raise CallFailed.

    `position` is how far in the log this user has written.
    """

    def __init__(
        self, http: httpx.AsyncClient, token: str, *, patience: Patience, note: Note
    ) -> None:
        self.position: str | None = None
        self.http, self.patience, self.note = http, patience, note
        self._authorization = {"Authorization": f"Bearer {token}"}
        self._answered = False

    async def call(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        """Return the successful answer to a request; `options` are httpx's."""
        headers = {**self._authorization, **(headers or {})}

        async def send() -> httpx.Response:
            started = time.perf_counter()
            answer = await self.http.request(method, path, headers=headers, **options)
            self._answered = True
            self.measure(time.perf_counter() - started)
            return answer

        def again(failure: CallFailed) -> bool:
            # Where nobody has answered yet, somebody would wait for a mistyped address.
            return failure.passing and (self._answered or failure.status is not None)

        call = f"{method} {path}"
        answer = await persist(call, send, self.patience, note=self.note, again=again)
        self.position = answer.headers.get("Backlot-Position", self.position)
        return answer

    def measure(self, seconds: float) -> None:
        """Take note of how long an answer took, also one that tells of a failure."""


def _members(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _plain_reason(answer: httpx.Response) -> str:
    """Return what an object store says in XML, else the status in words."""
    found = XML_MESSAGE.search(answer.text)
    return found[1] if found else answer.reason_phrase


def _retry_after(answer: httpx.Response) -> float | None:
    """Return the seconds of either form of the header (RFC 9110, section 10.2.3)."""
    told = answer.headers.get("Retry-After", "").strip()
    if told.isdecimal():
        return float(told)
    try:
        moment = parsedate_to_datetime(told)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def check_url(url: str, failed: type[OperatorError]) -> None:
    """Raise `failed` for what is no URL of a server."""
    try:
        scheme = httpx.URL(url).scheme
    except httpx.InvalidURL as error:
        raise failed(f"--url: {url!r} is not a URL ({error})") from error
    if scheme not in ("http", "https"):
        raise failed(f"--url: {url!r} has to start with http:// or https://")

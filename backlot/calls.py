"""HTTP calls that outlive an outage: how often they are tried, and what is told when they fail."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

# What a repeat may mend: no answer at all, too slow, too many at once, a part that is down.
PASSING = frozenset({httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS})
XML_MESSAGE = re.compile(r"<Message>([^<]+)</Message>")


class CallFailed(Exception):
    """A call did not succeed; `status` is None without an answer.

    `members` are those of the problem that was answered, `told_pause` its Retry-After in seconds.
    """

    def __init__(
        self, call: str, problem: str, status: int | None = None, *, passing: bool = False
    ) -> None:
        super().__init__(f"{call}: {problem}")
        self.problem = problem
        self.status = status
        self.passing = passing
        self.members: dict[str, Any] = {}
        self.told_pause: float | None = None

    @classmethod
    def unanswered(cls, call: str, error: httpx.TransportError) -> CallFailed:
        """Nothing came back; a repeat may help unless we asked for what can't be sent."""
        ours = isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError))
        return cls(call, f"{type(error).__name__} {error}".strip(), passing=not ours)

    @classmethod
    def refused(cls, call: str, answer: httpx.Response) -> CallFailed:
        """An answer other than success, in the words of whoever gave it."""
        members = _members(answer)
        status = answer.status_code
        found = cls(
            call,
            f"{status} {members.get('detail') or _plain_reason(answer)}",
            status,
            passing=answer.is_server_error or status in PASSING,
        )
        found.members, found.told_pause = members, _retry_after(answer)
        return found

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
        """How long to wait after try `attempt` (from 1): doubling, spread, or what was `told`.

        Spread over the upper half, so that clients that failed together don't return together.
        """
        if told is not None:
            return min(told, self.longest_told) + self.first * _chance()
        whole = min(self.first * 2.0 ** min(attempt - 1, 60), self.longest)
        return whole * (1 + _chance()) / 2


def may_pass(failure: CallFailed) -> bool:
    """Whether the failure may be over when the same is asked again."""
    return failure.passing


Note = Callable[[CallFailed, float | None], None]
"""Told of each failed try, and of the seconds until the next one; None: there is none."""


async def persist(
    call: str,
    send: Callable[[], Awaitable[httpx.Response]],
    patience: Patience,
    *,
    note: Note,
    again: Callable[[CallFailed], bool] = may_pass,
) -> httpx.Response:
    """The first successful answer to `send`, tried again while `again` says that it may help.

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


def _chance() -> float:
    return random.random()  # noqa: S311 - spreads retries, keeps no secret


def _members(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _plain_reason(answer: httpx.Response) -> str:
    """What an object store says in XML, else the status in words."""
    found = XML_MESSAGE.search(answer.text)
    return found[1] if found else answer.reason_phrase


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds, from either form of the header (RFC 9110, section 10.2.3)."""
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

"""Repeating what was not answered, or not now, with pauses that grow."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from backlot_client.problem import Problem

# Each says that the same request may succeed a little later.
BUSY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
BUSY_CONFLICTS = frozenset({"contended", "upload-finalizing"})
EVENT_STREAM = "text/event-stream"
UNANSWERED = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long to repeat a request; times are in seconds.

    The pause before repeat n is random, between half of `first_pause` * 2^n and all of it, and
    never more than `longest_pause`. Where the answer has a `Retry-After`, it comes on top; one
    that asks for more than `longest_pause` is not waited for.
    """

    repeats: int = 5
    first_pause: float = 0.2
    longest_pause: float = 30.0
    sleep: Callable[[float], None] = field(default=time.sleep, compare=False)

    def pause(self, repeat: int) -> float:
        """Return how long to wait before a repeat, which are counted from 0."""
        longest = min(self.longest_pause, self.first_pause * 2**repeat)
        return random.uniform(longest / 2, longest)  # noqa: S311 - spreads load, hides nothing


class Attempts:
    """The attempts of one request."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._made = 0

    def pause_after(self, response: httpx.Response) -> float | None:
        """Return how long to wait before the next attempt; None if the server asks for more."""
        asked = _retry_after(response)
        return None if asked > self._policy.longest_pause else self.pause(asked)

    def pause(self, at_least: float = 0.0) -> float | None:
        """Return how long to wait before the next attempt; None if there is none."""
        if self._made == self._policy.repeats:
            return None
        pause = at_least + self._policy.pause(self._made)
        self._made += 1
        return pause


def is_busy(response: httpx.Response) -> bool:
    """Return whether the same request may be answered otherwise a little later."""
    if response.status_code == httpx.codes.CONFLICT:
        return Problem.of(response).type in BUSY_CONFLICTS
    return response.status_code in BUSY_STATUSES


def _retry_after(response: httpx.Response) -> float:
    said = response.headers.get("Retry-After", "")
    return float(said) if said.isdecimal() else 0.0


class Retries(httpx.BaseTransport):
    """Sends each request until it is answered, or the policy gives up.

    Answers are read to their end, but for live streams: one that breaks off counts as none.
    """

    def __init__(self, transport: httpx.BaseTransport, policy: RetryPolicy) -> None:
        self._transport = transport
        self._policy = policy

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the answer; raise what the last attempt failed with."""
        # So that the body can be sent again.
        request.read()
        attempts = Attempts(self._policy)
        while True:
            try:
                response = self._attempt(request)
            except UNANSWERED:
                pause = attempts.pause()
                if pause is None:
                    raise
            else:
                pause = attempts.pause_after(response) if is_busy(response) else None
                if pause is None:
                    return response
            self._policy.sleep(pause)

    def _attempt(self, request: httpx.Request) -> httpx.Response:
        response = self._transport.handle_request(request)
        # Errors of a body that is read here name the request.
        response.request = request
        if response.is_error or request.headers.get("Accept") != EVENT_STREAM:
            try:
                response.read()
            finally:
                response.close()
        return response

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

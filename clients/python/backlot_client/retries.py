"""Repeating what was not answered, or not now, with pauses that grow."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from backlot_client.problem import Problem

# Each says that the same request may succeed a little later.
BUSY_STATUSES = frozenset({429, 502, 503, 504})
BUSY_TYPES = frozenset({"contended", "part-cut-off", "part-stalled", "upload-finalizing"})
EVENT_STREAM = "text/event-stream"
UNANSWERED = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long to repeat a request; times are in seconds.

    The pause before repeat n is random, between half of `first_pause` * 2^n and all of it, and
    never more than `longest_pause`. Where the answer has a `Retry-After`, it comes on top. What
    would take longer than `patience` in pauses is given up.
    """

    repeats: int = 8
    patience: float = 60.0
    first_pause: float = 0.2
    longest_pause: float = 10.0
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
        self._patience = policy.patience

    def pause_after(self, response: httpx.Response) -> float | None:
        """Return how long to wait before the request is sent again; None if it is answered."""
        return self.pause(_retry_after(response)) if _is_busy(response) else None

    def pause(self, at_least: float = 0.0) -> float | None:
        """Return how long to wait before the next attempt; None if there is none."""
        pause = at_least + self._policy.pause(self._made)
        if self._made == self._policy.repeats or pause > self._patience:
            return None
        self._made += 1
        self._patience -= pause
        return pause


def _is_busy(response: httpx.Response) -> bool:
    if response.status_code in (400, 409):
        return Problem.of(response).type in BUSY_TYPES
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
                pause = attempts.pause_after(response)
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

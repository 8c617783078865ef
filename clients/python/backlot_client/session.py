"""What every request of one caller carries: its token, a key to repeat it by, and a position."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from threading import Lock
from uuid import uuid4

import httpx

from backlot_client.problem import Problem
from backlot_client.retries import EVENT_STREAM

Token = str | Callable[[], str] | None


class Tokens:
    """The token of a caller, and a new one when it is refused."""

    def __init__(self, source: Token) -> None:
        self._source = source
        self._token = source if isinstance(source, str) else None
        self._lock = Lock()

    def current(self) -> str | None:
        """Return the token, which is asked for once; None for nobody."""
        return self.after(None)

    def after(self, refused: str | None) -> str | None:
        """Return a token instead of a refused one; it is asked for once, however many ask."""
        with self._lock:
            if callable(self._source) and self._token == refused:
                self._token = self._source()
            return self._token


class Positions:
    """How far the log has to be in what is read: all that this caller was told that it did."""

    def __init__(self, position: str | None = None) -> None:
        self._position = position
        self._lock = Lock()

    @property
    def position(self) -> str | None:
        """The position that includes all that were seen; None if there was none."""
        return self._position

    def see(self, position: str) -> None:
        """Include one more."""
        with self._lock:
            self._position = latest(self._position, position)

    def set(self, position: str | None) -> None:
        """Forget what was seen; go on from another position, or from none."""
        with self._lock:
            self._position = position


def latest(known: str | None, other: str) -> str:
    """Return the position that includes both; the other one if they are of different stores."""
    if known is None:
        return other
    try:
        (store, *mine), (other_store, *theirs) = _decode(known), _decode(other)
        if store != other_store:
            return other
        numbers = [max(int(mine[n]), int(theirs[n])) for n in range(2)]
    except (binascii.Error, ValueError):
        return other
    text = ":".join([store, *map(str, numbers)])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode(position: str) -> list[str]:
    """Return the store and two numbers, of which the second may be left out in a position."""
    padded = position + "=" * (-len(position) % 4)
    fields = base64.urlsafe_b64decode(padded).decode().split(":")
    return fields if len(fields) > 2 else [*fields, "0"]


class Session(httpx.BaseTransport):
    """Completes each request and raises Problem for what is refused.

    A token goes with all of them, and is renewed once when it is refused; an `Idempotency-Key`
    with each POST; with each query the position of the commands before it.
    """

    def __init__(
        self, transport: httpx.BaseTransport, tokens: Tokens, positions: Positions
    ) -> None:
        self._transport = transport
        self._tokens = tokens
        self._positions = positions

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the answer; raise Problem for one that is none."""
        complete(request, self._positions.position)
        token = self._tokens.current()
        response = self._send(request, token)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            renewed = self._tokens.after(token)
            if renewed != token:
                response = self._send(request, renewed)
        return accept(request, response, self._positions)

    def _send(self, request: httpx.Request, token: str | None) -> httpx.Response:
        authorize(request, token)
        return self._transport.handle_request(request)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


def complete(request: httpx.Request, position: str | None) -> None:
    """Add a key to repeat a POST by, and to a query the position that it has to include."""
    if request.method == "POST":
        request.headers.setdefault("Idempotency-Key", str(uuid4()))
    elif request.method == "GET" and position and not _is_stream(request):
        request.headers.setdefault("Backlot-Min-Position", position)


def authorize(request: httpx.Request, token: str | None) -> None:
    """Add the token; nobody in particular has none."""
    if token is not None:
        request.headers["Authorization"] = f"Bearer {token}"


def accept(
    request: httpx.Request, response: httpx.Response, positions: Positions
) -> httpx.Response:
    """Return the answer, and keep the position of a command; raise Problem for a refusal."""
    if response.is_error:
        raise Problem.of(response)
    if request.method not in ("GET", "HEAD") and "Backlot-Position" in response.headers:
        positions.see(response.headers["Backlot-Position"])
    return response


def _is_stream(request: httpx.Request) -> bool:
    return str(request.headers.get("Accept")) == EVENT_STREAM

"""Calls to servers that somebody else named: none can be turned against a network of ours.

The name of the server is resolved once for each connection, every address is checked, and the
connection goes to the one that was checked, under the server's name: what a name means later, or to
another resolver, changes nothing. No redirect is followed, no proxy of the environment is used, and
an answer is its head: what comes behind is read only where it is short.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import httpcore

from infra.http.outbound_rules import OutboundRules

CONNECT_SECONDS = 5.0
RESOLVING_THREADS = 8
# What is longer, or comes later, costs the connection instead.
SHORT_BYTES, SHORT_SECONDS = 4096, 1.0
CONNECTIONS, IDLE_CONNECTIONS, IDLE_SECONDS = 200, 50, 30.0


FAULTS = (
    *(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException),
    *(httpcore.UnsupportedProtocol, ssl.SSLError, OSError),
)
"""What a server, or the way to it, may do wrong."""


class AddressRefused(httpcore.ConnectError):
    """A name stands for an address at which nobody may be called."""


class NoAnswer(Exception):
    """The server could not be reached, or did not answer in time, or not in HTTP."""


class OutboundAnswer(NamedTuple):
    """What a server answered: its status, and `Retry-After` in seconds where it says so."""

    status: int
    retry_after: float | None


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Resolves a name, and connects to what was checked."""

    def __init__(self, rules: OutboundRules) -> None:
        self._rules = rules
        self._backend = httpcore.AnyIOBackend()
        # Its own: a resolver that hangs must not hold up whatever else runs in threads.
        self._threads = ThreadPoolExecutor(RESOLVING_THREADS, "resolving")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's own interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        if refused := [each for each in addresses if not self._rules.allow(ip_address(each))]:
            raise AddressRefused(f"{host} stands for {refused[0]}, which is not on the internet")
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._backend.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's own interface
        socket_options: Iterable[Any] | None = None,
    ) -> NoReturn:
        raise AddressRefused("no socket of this machine is called")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def close(self) -> None:
        """Resolve nothing more; what is under way is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _resolve(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses of a host, the first to be tried first."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._threads, _look_up, host, port)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} can't be resolved: {error}") from error
        return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _look_up(host: str, port: int) -> list[Any]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class Outbound:
    """Posts to servers that somebody else named; safe for many calls at once in one event loop."""

    def __init__(
        self, rules: OutboundRules, *, seconds: float, ca_file: Path | None = None
    ) -> None:
        """Each call takes `seconds` at most. `ca_file` vouches for servers, else what all trust."""
        self._seconds = seconds
        self._network = CheckedNetwork(rules)
        trust = httpcore.default_ssl_context()
        if ca_file is not None:
            trust = ssl.create_default_context(cafile=str(ca_file))
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trust,
            max_connections=CONNECTIONS,
            max_keepalive_connections=IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=self._network,
        )

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> OutboundAnswer:
        """Return the answer, whatever its status; raise AddressRefused and NoAnswer."""
        times = {"connect": CONNECT_SECONDS, "read": self._seconds, "write": self._seconds}
        try:
            async with (
                asyncio.timeout(self._seconds),
                self._pool.stream(
                    "POST",
                    url,
                    headers=list(headers.items()),
                    content=body,
                    extensions={"timeout": {**times, "pool": self._seconds}},
                ) as answer,
            ):
                await _read_short(answer)
                return OutboundAnswer(answer.status, _retry_after(answer.headers))
        except AddressRefused:
            raise
        except TimeoutError as error:
            raise NoAnswer(f"no answer within {self._seconds:g} seconds") from error
        except FAULTS as error:
            raise NoAnswer(_told(error)) from error

    async def aclose(self) -> None:
        """Close all connections."""
        self._network.close()
        await self._pool.aclose()


async def _read_short(answer: httpcore.Response) -> None:
    """Read what is there to the end where that is short, so that the connection can be kept."""
    read = 0
    with suppress(TimeoutError, *FAULTS):
        async with asyncio.timeout(SHORT_SECONDS):
            async for chunk in answer.aiter_stream():
                read += len(chunk)
                if read > SHORT_BYTES:
                    return


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200]


def _retry_after(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Return the seconds of the header where it is a number of them."""
    for name, value in headers:
        if name.lower() == b"retry-after" and value.strip().isdigit() and len(value) < 10:
            return float(value)
    return None

"""Bytes as no HTTP client would send them."""

from __future__ import annotations

import socket
from http.client import HTTPResponse

from tests.e2e.program import Program
from tests.support import DEADLINE_SECONDS


class Wire:
    """One bare connection to the program."""

    def __init__(self, program: Program) -> None:
        self._socket = socket.create_connection(
            ("127.0.0.1", program.port), timeout=DEADLINE_SECONDS
        )

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, head: list[str], body: bytes = b"") -> None:
        """The request line and headers as they stand here, then the body."""
        lines = [*head, "Host: localhost", "", ""]
        self._socket.sendall("\r\n".join(lines).encode("latin-1") + body)

    def hang_up(self) -> None:
        """Say that nothing more will be sent."""
        self._socket.shutdown(socket.SHUT_WR)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case) and body of the answer."""
        response = HTTPResponse(self._socket)
        response.begin()
        headers = {name.lower(): text for name, text in response.getheaders()}
        found = (response.status, headers, response.read())
        response.close()
        return found

    def all_bytes(self) -> bytes:
        """Everything that comes until the program ends the connection."""
        return b"".join(iter(lambda: self._socket.recv(65_536), b""))

    def is_silent(self) -> bool:
        """Whether the program ends the connection without a word."""
        return self._socket.recv(1) == b""

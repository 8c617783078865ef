"""A wire between a client and the program that is cut after so many bytes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Lock, Thread

BLOCK = 64 * 1024
NO_LIMIT = 1 << 60


class CutWire:
    """Carries what clients send until `left` bytes are spent; then every connection ends."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = Lock()
        self._open: list[socket.socket] = []
        self._threads: list[Thread] = []
        self.left = NO_LIMIT
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Take connections until `close`."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._connect(client)

    def mend(self) -> None:
        """Carry whatever comes from now on."""
        with self._lock:
            self.left = NO_LIMIT

    def close(self) -> None:
        """End everything."""
        # Unlike closing, it wakes who waits for a connection.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut()
        for thread in self._threads:
            thread.join()

    def _connect(self, client: socket.socket) -> None:
        with self._lock:
            if self.left <= 0:
                client.close()
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            self._open += [client, server]
        for source, target, counted in ((client, server, True), (server, client, False)):
            thread = Thread(target=self._carry, args=(source, target, counted))
            thread.start()
            self._threads.append(thread)

    def _carry(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while block := source.recv(BLOCK):
                target.sendall(block)
                if counted and self._spend(len(block)):
                    self._cut()
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _spend(self, size: int) -> bool:
        with self._lock:
            self.left -= size
            return self.left <= 0

    def _cut(self) -> None:
        with self._lock:
            ends, self._open = self._open, []
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def cut_wire_to(port: int) -> Iterator[CutWire]:
    """A wire to the program on `port`."""
    with ExitStack() as stack:
        wire = CutWire(port)
        thread = Thread(target=wire.serve)
        thread.start()
        stack.callback(thread.join)
        stack.callback(wire.close)
        yield wire

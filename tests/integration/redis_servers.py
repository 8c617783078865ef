"""Real Redis servers for tests: their own processes, to be killed, paused and started again."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra.redis import connect_redis
from tests.support import requires, unused_port

START_SECONDS = 60.0
STOP_SECONDS = 10.0
ATTEMPTS = 5


class NotStarted(Exception):
    """The server ended at its start, or something else answers at its port."""


class RedisServer:
    """A redis-server that keeps nothing; each start is a new process on the same port."""

    def __init__(self, folder: Path) -> None:
        self.port = unused_port()
        self._program = requires("redis-server")
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **changes: float) -> Redis:
        """A client as the program has it but for these timeouts; whoever asks for it closes it."""
        client = connect_redis(self.url)
        client.connection_pool.connection_kwargs.update(changes)
        return client

    def start(self) -> None:
        """Return once this very process answers. Raises NotStarted."""
        command = [self._program, "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no", "--dir", str(self._folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while (answering := self._answering()) != self._process.pid:
            if answering is not None or self._process.poll() is not None:
                self.kill()
                raise NotStarted(f"port {self.port} is another program's ({answering})")
            if time.monotonic() > deadline:
                self.kill()
                raise NotStarted(f"nothing answers at port {self.port}")
            time.sleep(0.01)

    def start_anywhere(self) -> None:
        """Start, on another port when this one was taken meanwhile."""
        for _ in range(ATTEMPTS - 1):
            try:
                return self.start()
            except NotStarted:
                self.port = unused_port()
        return self.start()

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without warning; a paused one too."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it hang: its port takes connections, and nobody gets an answer."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _end(self, sign: signal.Signals) -> None:
        if self._process is not None:
            self._signal(sign)
            self._process.wait(STOP_SECONDS)

    def _signal(self, sign: signal.Signals) -> None:
        assert self._process is not None, "not started"
        self._process.send_signal(sign)

    def _answering(self) -> int | None:
        with redis.Redis(port=self.port, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)) as client:
            try:
                return int(client.info("server")["process_id"])
            except redis.RedisError:
                return None


@contextmanager
def redis_servers(count: int, folder: Path) -> Iterator[list[RedisServer]]:
    """So many running servers; whatever became of them, none is left behind."""
    servers = [RedisServer(folder) for _ in range(count)]
    try:
        for server in servers:
            server.start_anywhere()
        yield servers
    finally:
        for server in servers:
            server.kill()

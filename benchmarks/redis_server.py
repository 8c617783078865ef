"""A Redis for the benchmarks that need one: a process of its own that keeps nothing."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from backlot.demo.client import stop
from benchmarks.processes import START_SECONDS, STOP_SECONDS, ProcessFailed, free_port


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The URL of a running redis-server; raises ProcessFailed where none is installed."""
    program = shutil.which("redis-server")
    if program is None:
        raise ProcessFailed("redis-server is not installed: apt install redis-server")
    folder.mkdir()
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _await(process, port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        stop(process, STOP_SECONDS)


def _await(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    with redis.Redis(port=port) as client:
        while True:
            try:
                if client.info("server")["process_id"] == process.pid:
                    return
            except redis.RedisError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise ProcessFailed("redis-server does not answer")
            time.sleep(0.05)

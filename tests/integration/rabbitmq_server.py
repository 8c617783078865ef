"""A real RabbitMQ for tests: Debian's, on loopback, with a node name and ports of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pika
from pika.exceptions import AMQPError

from tests.support import unavailable, unused_port

# The one in /usr/sbin becomes another user, who may not enter a test's folder.
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
START_SECONDS = 180.0
STOP_SECONDS = 60.0


@contextmanager
def rabbitmq_server(folder: Path) -> Iterator[str]:
    """The URL of a running server with nothing in it; it takes 120 MB and some five seconds."""
    if not SERVER.exists():
        unavailable("rabbitmq-server is not installed: apt-get install rabbitmq-server")
    names, port = unused_port(), unused_port()
    environment = _environment(folder, names, port)
    # The daemon that knows nodes by name; left to itself it would outlive the tests.
    with (
        _child(["epmd", "-port", str(names), "-address", "127.0.0.1"], environment),
        _child([str(SERVER)], environment) as server,
    ):
        url = f"amqp://guest:guest@127.0.0.1:{port}"
        _wait(url, server)
        yield url


def _environment(folder: Path, names: int, port: int) -> dict[str, str]:
    loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
    return os.environ | {
        "HOME": str(folder),
        "ERL_EPMD_PORT": str(names),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"backlot-{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(unused_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_CONFIG_FILE": str(folder / "none"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"+S 1:1 +sbwt none {loopback}",
    }


@contextmanager
def _child(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    quiet = subprocess.DEVNULL
    child = subprocess.Popen(
        command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(STOP_SECONDS)


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert server.poll() is None, "rabbitmq-server ended at its start"
        try:
            pika.BlockingConnection(pika.URLParameters(url)).close()
        except (AMQPError, OSError):
            assert time.monotonic() < deadline, "rabbitmq-server does not answer"
            time.sleep(0.2)
        else:
            return

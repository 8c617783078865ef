"""A Kafka for the benchmarks: librdkafka's mock cluster in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from backlot.demo.client import stop
from benchmarks.processes import STOP_SECONDS, ProcessFailed


@contextmanager
def kafka_server() -> Iterator[str]:
    """Its address, host:port; raises ProcessFailed when it does not start."""
    command = [sys.executable, "-m", "tests.kafka_cluster"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        address = process.stdout.readline().decode().strip() if process.stdout else ""
        if not address:
            raise ProcessFailed("the mock cluster of Kafka does not start")
        yield address
    finally:
        stop(process, STOP_SECONDS)

"""A Kafka cluster without a JVM: librdkafka's mock brokers, which speak the protocol on a port.

`python -m tests.kafka_cluster` runs one in a process of its own and prints its address.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import confluent_kafka

PRODUCER = 0
BROKER = 1
PRODUCE_API = 0


class MockCluster:
    """One broker that can be taken down and up again; topics come to be when they are used.

    What was published outlives an outage, but not the cluster.
    """

    def __init__(self) -> None:
        lib = _library()
        told = ctypes.create_string_buffer(512)
        self._client = lib.rd_kafka_new(PRODUCER, _quiet(lib), told, len(told))
        if not self._client:
            raise RuntimeError(told.value.decode())
        self._cluster = lib.rd_kafka_mock_cluster_new(self._client, 1)
        self.bootstrap_servers: str = lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create_topic(self, name: str, partitions: int) -> None:
        """A topic with that many partitions; others get four."""
        _check(_library().rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1))

    def go_down(self) -> None:
        """Drop every connection and take no new one."""
        _check(_library().rd_kafka_mock_broker_set_down(self._cluster, BROKER))

    def come_up(self) -> None:
        _check(_library().rd_kafka_mock_broker_set_up(self._cluster, BROKER))

    def refuse_publishing(self, *codes: int) -> None:
        """Answer the next requests to publish with these error codes of the protocol."""
        errors = (ctypes.c_int * len(codes))(*codes)
        _library().rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(PRODUCE_API), ctypes.c_size_t(len(codes)), errors
        )

    def close(self) -> None:
        _library().rd_kafka_mock_cluster_destroy(self._cluster)
        _library().rd_kafka_destroy(self._client)


@contextmanager
def kafka_cluster() -> Iterator[MockCluster]:
    """A cluster of this process, gone at the end."""
    cluster = MockCluster()
    try:
        yield cluster
    finally:
        cluster.close()


@cache
def _library() -> ctypes.CDLL:
    package = Path(confluent_kafka.__file__).parent
    (path,) = (package.parent / "confluent_kafka.libs").glob("librdkafka*.so*")
    lib = ctypes.CDLL(str(path))
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    lib.rd_kafka_conf_new.restype = pointer
    lib.rd_kafka_new.restype = pointer
    lib.rd_kafka_new.argtypes = [ctypes.c_int, pointer, text, ctypes.c_size_t]
    lib.rd_kafka_mock_cluster_new.restype = pointer
    lib.rd_kafka_mock_cluster_new.argtypes = [pointer, ctypes.c_int]
    lib.rd_kafka_mock_cluster_bootstraps.restype = text
    lib.rd_kafka_mock_cluster_bootstraps.argtypes = [pointer]
    lib.rd_kafka_mock_topic_create.argtypes = [pointer, text, ctypes.c_int, ctypes.c_int]
    lib.rd_kafka_mock_broker_set_down.argtypes = [pointer, ctypes.c_int32]
    lib.rd_kafka_mock_broker_set_up.argtypes = [pointer, ctypes.c_int32]
    lib.rd_kafka_mock_push_request_errors_array.argtypes = [
        pointer,
        ctypes.c_int16,
        ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_int),
    ]
    lib.rd_kafka_mock_cluster_destroy.argtypes = [pointer]
    lib.rd_kafka_destroy.argtypes = [pointer]
    return lib


def _quiet(lib: ctypes.CDLL) -> ctypes.c_void_p:
    """A configuration whose client says nothing of its missing servers."""
    conf = ctypes.c_void_p(lib.rd_kafka_conf_new())
    lib.rd_kafka_conf_set(conf, b"log_level", b"0", None, ctypes.c_size_t(0))
    return conf


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"The mock cluster refused: error {code}.")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with kafka_cluster() as started:
        sys.stdout.write(f"{started.bootstrap_servers}\n")
        sys.stdout.flush()
        signal.pause()

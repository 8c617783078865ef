"""A broker that knows topics and their settings, which librdkafka's mock brokers do not.

It speaks Kafka's protocol on a port, and keeps no message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any

from aiokafka.protocol.admin import (
    AlterConfigsRequest_v1,
    AlterConfigsResponse_v1,
    ApiVersionRequest_v0,
    ApiVersionResponse_v0,
    DescribeConfigsRequest_v1,
    DescribeConfigsResponse_v1,
)
from aiokafka.protocol.metadata import MetadataRequest_v1, MetadataResponse_v1

TOPIC = 2
OF_TOPIC, OF_BROKER = 1, 5
UNKNOWN_TOPIC, NOT_AUTHORIZED = 3, 29
DEFAULTS = {
    "cleanup.policy": "delete",
    "retention.ms": "604800000",
    "segment.ms": "604800000",
    "max.message.bytes": "1048588",
}
SPOKEN: dict[int, Any] = {
    request.API_KEY: request
    for request in (
        ApiVersionRequest_v0,
        MetadataRequest_v1,
        DescribeConfigsRequest_v1,
        AlterConfigsRequest_v1,
    )
}


class TopicBroker(ThreadingTCPServer):
    """Its topics, each with the settings of its own; for others there are Kafka's defaults."""

    daemon_threads = True

    def __init__(self, topics: Mapping[str, Mapping[str, str]]) -> None:
        self.topics = {topic: dict(own) for topic, own in topics.items()}
        self.makes_topics = True
        self.takes_settings = True
        super().__init__(("127.0.0.1", 0), Conversation)

    @property
    def bootstrap_servers(self) -> str:
        host, port = self.server_address[:2]
        return f"{host!s}:{port}"

    def answer(self, request: Any) -> Any:
        match request:
            case ApiVersionRequest_v0():
                spoken = [(key, one.API_VERSION, one.API_VERSION) for key, one in SPOKEN.items()]
                return ApiVersionResponse_v0(0, spoken)
            case MetadataRequest_v1():
                return self._metadata(request.topics or [])
            case DescribeConfigsRequest_v1():
                found = [self._described(topic) for _, topic, _ in request.resources]
                return DescribeConfigsResponse_v1(0, found)
        altered = [self._altered(topic, given) for _, topic, given in request.resources]
        return AlterConfigsResponse_v1(0, altered)

    def _metadata(self, topics: list[str]) -> MetadataResponse_v1:
        """As Kafka does: who asks for a topic that is not there is told so, and it is made."""
        known = set(self.topics)
        for topic in topics if self.makes_topics else ():
            self.topics.setdefault(topic, {})
        told: list[Any] = [
            (0 if topic in known else UNKNOWN_TOPIC, topic, False, []) for topic in topics
        ]
        host, port = self.server_address[:2]
        return MetadataResponse_v1([(1, host, port, None)], 1, told)

    def _described(self, topic: str) -> tuple[Any, ...]:
        if topic not in self.topics:
            return (UNKNOWN_TOPIC, "", TOPIC, topic, [])
        own = self.topics[topic]
        entries: list[Any] = [
            (name, value, False, OF_TOPIC if name in own else OF_BROKER, False, [])
            for name, value in (DEFAULTS | own).items()
        ]
        return (0, None, TOPIC, topic, entries)

    def _altered(self, topic: str, given: list[tuple[str, str]]) -> tuple[Any, ...]:
        if not self.takes_settings:
            return (NOT_AUTHORIZED, "Topic authorization failed.", TOPIC, topic)
        # What is not given again is no longer set.
        self.topics[topic] = dict(given)
        return (0, None, TOPIC, topic)


class Conversation(StreamRequestHandler):
    server: TopicBroker

    def handle(self) -> None:
        while size := self.rfile.read(4):
            read = BytesIO(self.rfile.read(*struct.unpack(">i", size)))
            key, _, correlation, length = struct.unpack(">hhih", read.read(10))
            read.read(length)
            answer = self.server.answer(SPOKEN[key].decode(read)).encode()
            self.wfile.write(struct.pack(">ii", 4 + len(answer), correlation) + answer)


@contextmanager
def topic_broker(topics: Mapping[str, Mapping[str, str]]) -> Iterator[TopicBroker]:
    with TopicBroker(topics) as broker:
        thread = Thread(target=broker.serve_forever)
        thread.start()
        try:
            yield broker
        finally:
            broker.shutdown()
            thread.join()
